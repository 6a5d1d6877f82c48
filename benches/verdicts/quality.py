"""What a budget costs in right answers: the embedded model under one budget after the other, closed in different ways.

Held-out questions of arithmetic are answered by sampling, all ways with the same seed. "hard cut" closes at the cap,
"line boundary" at the first end of a line in the last sixteen tokens before it, "close message" says so before the end
marker, and "rising bias" makes the end likelier from half the budget on. "unlimited" is the model alone, without a budget
and with room enough for every thinking that ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from benches.measuring import one_thread
from thinkguard.demo.arithmetic import Question, is_right, questions
from thinkguard.demo.run import MODELS, ask
from thinkguard.policy import ThinkPolicy

ANSWER_TOKENS: Final = 40  # room behind the budget, for the end marker, a message and the answer
BUDGETS: Final = (0, 10, 20, 30, 40, 60, 80, 120, 160)
WAYS: Final[dict[str, dict[str, Any]]] = {
    "hard cut": {},
    "line boundary": {"grace_tokens": 16, "close_at": "line"},
    "close message": {"close_message": "Time is up."},
    "rising bias": {"close_bias": 8.0},
}
UNLIMITED: Final = "unlimited"
ROOM: Final = 256  # new tokens of the model alone


@dataclass(frozen=True, slots=True)
class Quality:
    """What came of all questions under one way and one budget."""

    way: str
    budget: int | None
    num: int
    right: int
    well_formed: int  # finished, and one block of thinking before an answer
    cut_off: int  # by the limit on new tokens, before they finished
    violating: int  # with a token that the policy does not allow
    mean_thinking_tokens: float
    most_thinking_tokens: int


def policy_of(way: str, budget: int) -> ThinkPolicy:
    """Return the policy of one way to hold a budget."""
    fields = dict(WAYS[way])
    if way == "rising bias":  # which needs room to rise
        fields = {**fields, "soft_thinking_tokens": budget // 2} if budget else {}
    if "grace_tokens" in fields:
        fields["grace_tokens"] = min(fields["grace_tokens"], budget)
    return ThinkPolicy(max_thinking_tokens=budget, **fields)


@one_thread()
def run(num: int, budgets: Sequence[int] = BUDGETS, room: int = ROOM) -> dict[str, Any]:
    """Ask `num` questions under every way and budget, and the model alone, which may write `room` tokens.

    Returns {"num", "answer_tokens", "budgets", "rows": [Quality as a dict]}.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from thinkguard.hf import ThinkLogitsProcessor

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "healthy")
    model = AutoModelForCausalLM.from_pretrained(MODELS / "healthy").float().eval()
    asked = questions(num)
    alone = ThinkLogitsProcessor(tokenizer, format="think")
    rows = []
    for budget in budgets:
        limit = budget + ANSWER_TOKENS
        for way in WAYS:
            guard = ThinkLogitsProcessor(tokenizer, format="think", policy=policy_of(way, budget))
            _, traces = ask(model, tokenizer, guard, asked, guarded=True, max_new_tokens=limit)
            rows.append(_counted(way, budget, asked, traces))
    _, traces = ask(model, tokenizer, alone, asked, guarded=False, max_new_tokens=room)
    rows.append(_counted(UNLIMITED, None, asked, traces))
    return {"num": num, "answer_tokens": ANSWER_TOKENS, "budgets": list(budgets), "rows": [asdict(row) for row in rows]}


def _counted(way: str, budget: int | None, asked: Sequence[Question], traces: Sequence[Any]) -> Quality:
    return Quality(
        way=way,
        budget=budget,
        num=len(traces),
        right=sum(is_right(question, trace.answer) for question, trace in zip(asked, traces, strict=True)),
        well_formed=sum(trace.finished and trace.well_formed and trace.think_blocks == 1 for trace in traces),
        cut_off=sum(not trace.finished for trace in traces),
        violating=sum(bool(trace.violations) for trace in traces),
        mean_thinking_tokens=sum(trace.thinking_tokens for trace in traces) / len(traces),
        most_thinking_tokens=max(trace.thinking_tokens for trace in traces),
    )
