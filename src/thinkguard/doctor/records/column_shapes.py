"""Records whose question, reasoning and answer are columns: alpaca, prompt and completion, the public sets' own names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from thinkguard.doctor.records.conversations import turns_of
from thinkguard.doctor.records.record import Turn
from thinkguard.doctor.records.turns import Reads, ShapeError, text_of, turn_of

_PAIRED: Final = (  # (reasoning, answer) that one data set names together
    ("complex_cot", "response"),
    ("deepseek_thinking_trajectory", "deepseek_attempt"),
    ("deepseek_reasoning", "deepseek_solution"),
    ("thinking_trajectories", "attempt"),
    ("gemini_thinking_trajectory", "gemini_attempt"),
    ("model_reasoning", "model_answer"),
    ("reasoning_content", "content"),
    ("analysis", "final"),
)
_QUESTIONS: Final = (
    *("instruction", "question", "problem", "prompt", "query", "input", "user", "human", "task", "request"),
)
_ANSWERS: Final = (
    *("output", "response", "completion", "answer", "content", "solution", "assistant", "model_answer", "attempt"),
    *("final", "final_answer", "target", "reannotated_assistant_content", "deepseek_attempt", "deepseek_solution"),
)
_REASONINGS: Final = (
    *("complex_cot", "reasoning_content", "reasoning", "thinking", "deepseek_reasoning", "deepseek_thinking_trajectory"),
    *("thinking_trajectories", "thinking_trajectory", "gemini_thinking_trajectory", "model_reasoning", "inner_thought"),
    *("think", "cot", "chain_of_thought", "thought", "thoughts", "analysis", "rationale", "think_content"),
    *("reasoning_trace", "reasoning_text", "thinking_content", "reasoning_chain", "thought_process"),
)
_SYSTEMS: Final = ("system", "system_prompt", "developer")
_SEVERAL: Final = ("generations", "responses", "completions", "answers", "outputs")
_ON_OFF: Final = frozenset(("on", "off", "true", "false", "none", "low", "medium", "high"))


class Names(NamedTuple):
    """The columns that a record has for each purpose; "" or () for none."""

    question: str
    extra: str  # alpaca's `input`, which is added to the question
    system: str
    pairs: tuple[tuple[str, str], ...]  # (reasoning, answer), the likeliest first; "" for no reasoning
    several: str  # a list of answers


@lru_cache(maxsize=1024)
def names_of(keys: tuple[str, ...]) -> Names:
    """Find the columns by their names, whatever their letters' case."""
    plain = {key.lower(): key for key in keys if isinstance(key, str)}
    question = next((plain[name] for name in _QUESTIONS if name in plain), "")
    extra = plain.get("input", "") if question and question.lower() == "instruction" else ""
    system = next((plain[name] for name in _SYSTEMS if name in plain), "")
    reasonings = [plain[name] for name in _REASONINGS if name in plain]
    answers = [plain[name] for name in _ANSWERS if name in plain and plain[name] not in (question, system)]
    pairs = [
        (plain[thought], plain[answer]) for thought, answer in _PAIRED if thought in plain and plain.get(answer) in answers
    ]
    pairs += [(thought, answer) for answer in answers for thought in (*reasonings, "") if thought != answer]
    several = next((plain[name] for name in _SEVERAL if name in plain), "")
    return Names(question, extra, system, tuple(pairs), several)


def prompt_turns(value: Mapping[str, Any], names: Names, reads: Reads) -> list[Turn]:
    """Make the turns before the answer: a system text, a history, the question, which may be a list of messages."""
    turns = [turn_of({}, "system", value[names.system], reads)] if names.system and value[names.system] else []
    history = value.get("history")
    if isinstance(history, list) and history:
        turns += turns_of(history, reads)
    question = value.get(names.question)
    extra = value.get(names.extra) if names.extra else None
    if isinstance(question, Sequence) and not isinstance(question, str) and question:
        return turns + turns_of(question, reads)
    text = "\n".join(part for part in (question, extra) if isinstance(part, str) and part)
    return [*turns, Turn("user", text)]


def answer_turn(value: Mapping[str, Any], names: Names, reads: Reads) -> tuple[list[Turn], str] | None:
    """Make the turns of the answer, and say which columns they are from; None if the record has no answer's text.

    A column that holds a switch (`reasoning: on`) is no reasoning.
    """
    for thought, answer in names.pairs:
        text = value[answer]
        messages = isinstance(text, list) and text and isinstance(text[0], Mapping)
        if not isinstance(text, str) and not messages:
            continue
        reasoning = _thought(value[thought]) if thought else ""
        if thought and not reasoning:
            continue
        turns = turns_of(text, reads) if messages else [Turn("assistant", text)]
        last = turns[-1]
        if reasoning and last.reasoning is None and reasoning.strip()[:200] not in last.content:
            last.reasoning, last.place = reasoning, f"column {thought}"
            last.read = reads is None or last.place in reads
        return turns, f"{thought}, {answer}" if thought else answer
    return None


def answers_of(value: Mapping[str, Any], names: Names) -> list[str]:
    """Return the texts of a column with several answers to one question."""
    several = value.get(names.several) if names.several else None
    return [text for text in several if isinstance(text, str)] if isinstance(several, list) else []


def combined(value: Mapping[str, Any], reads: Reads) -> Turn | None:
    """Read an answer that is one object of thought and solution."""
    for key, inner in value.items():
        if isinstance(inner, Mapping) and isinstance(inner.get("solution"), str) and (text := text_of(inner.get("thought"))):
            place = f"column {key}.thought"
            return Turn("assistant", inner["solution"], text, place, reads is None or place in reads)
    return None


def unknown_shape(value: Mapping[str, Any]) -> ShapeError:
    """Return the error of a record of no known shape: the keys it has, and the shapes that are read."""
    keys = ", ".join(map(str, list(value)[:12])) or "no keys"
    more = f" and {len(value) - 12} more" if len(value) > 12 else ""
    return ShapeError(
        f"of no known shape, it has {keys[:200]}{more}: wanted are messages (or conversations), prompt and completion, "
        "instruction and output, a question with an answer, choices, text, or input_ids with labels"
    )


def _thought(value: Any) -> str:
    """Return a column's reasoning, the first of several; "" for a switch such as `on`."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return value[0]  # type: ignore[no-any-return]
    text = text_of(value)
    return "" if text.strip().lower() in _ON_OFF else text
