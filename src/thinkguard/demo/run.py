"""The demonstration: a small think-then-answer model is asked a batch of questions, first alone, then guarded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thinkguard.core.trace import ThinkTrace
from thinkguard.demo.arithmetic import Question, is_right, questions
from thinkguard.policy import ThinkPolicy

MODELS = Path(__file__).with_name("models")
MAX_NEW_TOKENS = 256
SEED = 7


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of one batch of questions: a row of the table."""

    model: str
    guarded: bool
    num: int
    well_formed: int  # outputs with exactly one well-formed think block
    answered: int  # with a non-empty answer
    right: int
    mean_thinking_tokens: float
    closed_by: dict[str, int]


def ask(
    model: Any,
    tokenizer: Any,
    guard: Any,
    batch: Sequence[Question],
    *,
    guarded: bool,
    max_new_tokens: int = MAX_NEW_TOKENS,
    **arguments: Any,
) -> tuple[list[Any], list[ThinkTrace]]:
    """Answer every question, by sampling unless `arguments` of `generate` say otherwise.

    Returns (output ids of each, trace of each).
    """
    import torch
    from transformers import set_seed

    chats = [[{"role": "user", "content": question.text}] for question in batch]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    arguments = arguments or dict(do_sample=True, temperature=0.8, top_k=0, top_p=1.0)
    set_seed(SEED)
    with torch.no_grad(), guard.attach(model) if guarded else nullcontext():
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, **arguments)
    width = inputs["input_ids"].shape[1]
    prompts, outputs = inputs["input_ids"].tolist(), out[:, width:].tolist()
    if guarded:
        return outputs, [guard.explain(p, o, max_new_tokens) for p, o in zip(prompts, outputs, strict=True)]
    # Alone, no budget was asked for and no opening was due: only the structure is judged.
    free = ThinkPolicy(opening="allow")
    return outputs, [guard.program.explain(p, o, free) for p, o in zip(prompts, outputs, strict=True)]


def summarize(model: str, guarded: bool, batch: Sequence[Question], traces: Sequence[ThinkTrace]) -> Asked:
    """Count what the table shows of one batch."""
    return Asked(
        model=model,
        guarded=guarded,
        num=len(batch),
        well_formed=sum(trace.well_formed and trace.think_blocks == 1 for trace in traces),
        answered=sum(bool(trace.answer) for trace in traces),
        right=sum(is_right(question, trace.answer) for question, trace in zip(batch, traces, strict=True)),
        mean_thinking_tokens=sum(trace.thinking_tokens for trace in traces) / len(traces),
        closed_by=dict(Counter(trace.closed_by for trace in traces).most_common()),
    )


def text_with_brackets(guard: Any, output: Sequence[int], trace: ThinkTrace) -> str:
    """Return an output's text with its forced tokens in brackets; neighbours share a pair of brackets."""
    vocabulary, forced = guard.program.vocabulary, set(trace.forced)
    pieces: list[str] = []
    for position, token_id in enumerate(output):
        if position in forced and position - 1 not in forced:
            pieces.append("[")
        pieces.append(vocabulary.token_bytes(token_id).decode("utf-8", "replace"))
        if position in forced and position + 1 not in forced:
            pieces.append("]")
        if token_id in guard.program.eos_token_ids:
            break
    return "".join(pieces)


def table(results: Sequence[Asked]) -> str:
    """Return the results as a table of aligned plain text."""
    head = ("model", "", "one think block", "an answer", "right", "thinking tokens", "closed by")
    lines: list[tuple[str, ...]] = [head]
    for result in results:
        closed = ", ".join(f"{name} {count}" for name, count in result.closed_by.items())
        counts = [f"{count}/{result.num}" for count in (result.well_formed, result.answered, result.right)]
        lines.append(
            (result.model, "guarded" if result.guarded else "alone", *counts, f"{result.mean_thinking_tokens:.1f}", closed)
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def run(num: int = 64, budget: int = 160, as_json: bool = False) -> str:
    """Ask both models `num` held-out questions, alone and guarded; returns the table and an example, or JSON."""
    import json

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from thinkguard.hf import ThinkLogitsProcessor

    logging.disable_progress_bar()
    batch, results, example = questions(num), [], ""
    for name in ("healthy", "damaged"):
        tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
        model = AutoModelForCausalLM.from_pretrained(MODELS / name).float().eval()
        guard = ThinkLogitsProcessor(tokenizer, format="think", max_thinking_tokens=budget, grace_tokens=16)
        for guarded in (False, True):
            outputs, traces = ask(model, tokenizer, guard, batch, guarded=guarded)
            results.append(summarize(name, guarded, batch, traces))
            if guarded and name == "healthy":
                example = _example(guard, batch, outputs, traces)
    if as_json:
        return json.dumps([asdict(result) for result in results], indent=2)
    return f"{table(results)}\n\n{example}"


def _example(guard: Any, batch: Sequence[Question], outputs: Sequence[Any], traces: Sequence[ThinkTrace]) -> str:
    """Return one guarded output in full: a right one, if possible one whose thinking the guard had to close."""

    def interest(i: int) -> tuple[bool, bool]:
        return is_right(batch[i], traces[i].answer), traces[i].closed_by in ("budget", "boundary")

    best = max(range(len(batch)), key=interest)
    trace = traces[best]
    return "\n".join(
        [
            f"One guarded output of the healthy model, forced tokens in [brackets]. Asked: {batch[best].text}",
            "",
            text_with_brackets(guard, outputs[best], trace),
            "",
            f"reasoning: {trace.thinking_tokens} tokens, closed by {trace.closed_by}",
            f"answer:    {trace.answer!r} ({'right' if is_right(batch[best], trace.answer) else 'wrong'})",
        ]
    )
