"""What is counted of an output: by text alone, but for whether it is well-formed, which the guard's own trace says too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from benches.quality.litter import dangling, look_alikes, split
from benches.quality.tasks.task import Task

_THOUGHT: Final = re.compile(
    r"(let me|wait\b|hmm|is there a mistake|i (should|need|have to|count|will)\b|so (i|it is)\b|yes[.,]|good\.|that is right"
    r"|it stays so|i see no mistake|then comes|the (smallest|largest) of|this is a short question|i close every"
    r"|every tag is closed)",
    re.IGNORECASE,
)
"""How lines of thinking begin in these tasks, and how they go on where the model thinks on behind its end."""
_CHECKED: Final = re.compile(r"(Yes|That is right|It stays so|Good|I see no mistake)\.$")


@dataclass(frozen=True, slots=True)
class Judged:
    """One output: its text, and what is counted of it."""

    text: str
    well_formed: bool
    finished: bool
    ends_in_answer: bool
    right: bool
    sentence_end: bool
    closed_by: str
    thinking_tokens: int
    answer_tokens: int
    in_thinking: list[str]  # look-alikes
    in_answer: list[str]
    dangling: list[str]  # pieces of markers that thinking or answer ends in
    repeated: float

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types, without lists that are empty."""
        return {key: value for key, value in asdict(self).items() if value != []}


def judge(task: Task, text: str, ids: Sequence[int], trace: Any, *, opened: bool = False, message: str = "") -> Judged:
    """Judge one output; `trace` is thinkguard's, of which the counts are taken and whether the output is well-formed.

    text: without EOS. message: what the guard says before it closes, which is not the model's thinking.
    """
    cut = split(text, opened)
    thinking = cut.thinking.rstrip()
    said = message.strip()
    own = thinking.removesuffix(said).rstrip() if said else thinking
    pieces = [piece for piece in (dangling(own) if cut.num_ends else dangling(thinking), dangling(cut.answer)) if piece]
    alike = look_alikes(cut.thinking, task.question)
    more = look_alikes(cut.answer, f"{task.question}\n{cut.thinking}")
    return Judged(
        text=text,
        well_formed=trace.well_formed and cut.num_ends == 1 and cut.num_starts == (0 if opened else 1),
        finished=trace.finished,
        ends_in_answer=trace.finished and ends_in_answer(cut.answer),
        right=task.right(cut.answer),
        sentence_end=sentence_end(own),
        closed_by=trace.closed_by,
        thinking_tokens=trace.thinking_tokens,
        answer_tokens=trace.answer_tokens,
        in_thinking=alike,
        in_answer=more,
        dangling=pieces,
        repeated=round(repeated(ids), 3),
    )


def ends_in_answer(answer: str) -> bool:
    """Whether an answer's last paragraph is one, and not one more paragraph of thinking."""
    paragraphs = [part for part in re.split(r"\n\s*\n", answer.strip()) if part.strip()]
    if not paragraphs or dangling(answer):
        return False
    lines = [line.strip() for line in paragraphs[-1].splitlines()]
    return not any(_THOUGHT.match(line) for line in lines) and not _CHECKED.search(lines[-1])


def sentence_end(thinking: str) -> bool:
    """Whether a stretch of thinking ends where a sentence does."""
    return bool(re.search(r"[.!?:][\"'`)\]*]*$", thinking.rstrip()))


def repeated(ids: Sequence[int], length: int = 4) -> float:
    """Share of the runs of four tokens that stood there before."""
    runs = [tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
