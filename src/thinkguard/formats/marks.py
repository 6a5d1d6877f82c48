"""Markers of all families: which ones a text holds, and which of them can mean nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

from thinkguard.formats.format import ThinkFormat

_BRACKETS: Final = ("<", "[", "◁")


@dataclass(frozen=True, slots=True)
class Marks:
    """The markers that a server's model was seen to use."""

    starts: tuple[str, ...]
    ends: tuple[str, ...]


@cache
def _known() -> tuple[Marks, ...]:
    formats = [ThinkFormat.from_name(name) for name in ThinkFormat.names()]
    return tuple(dict.fromkeys(Marks(format.starts, format.ends) for format in formats))


@cache
def telling() -> frozenset[str]:
    """Markers that mean reasoning wherever they stand: not plain words, nor what also ends an answer or a turn.

    Left out is, for instance, `<|end|>`, which ends the turn of families that do not think at all.
    """
    formats = [ThinkFormat.from_name(name) for name in ThinkFormat.names()]
    other = {text for f in formats for text in f.answer_starts + f.answer_ends + f.turn_ends + f.implicit_ends}
    marks = {text for f in formats for text in f.starts + f.ends}
    return frozenset(text for text in marks - other if text.startswith(_BRACKETS))


def marks_in(text: str, prompt: str) -> Marks | None:
    """Find which markers a model's text holds, or its prompt ends with. A start weighs more than an end."""
    tail = prompt.rstrip()

    def weight(marks: Marks) -> int:
        ends = [end for end in marks.ends if end in text]
        if any(start in text for start in marks.starts):
            return 4 + bool(ends)
        if any(tail.endswith(mark) for mark in marks.starts + marks.ends if mark in telling()):
            return 2 + bool(ends)
        return int(any(end in telling() for end in ends))

    best = max(_known(), key=weight)
    return best if weight(best) else None


def found_in(text: str, marks: Marks | None) -> tuple[str, ...]:
    """Markers in a text: the model's own, whatever they are, and any other that can mean nothing else."""
    own = marks.starts + marks.ends if marks else ()
    return tuple(mark for mark in dict.fromkeys((*own, *sorted(telling()))) if mark in text)
