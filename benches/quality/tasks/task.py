"""What a task is: a question, how one may think about it, answers in several forms, and a check of any answer."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

HELD_OUT_SHARE: Final = 4
"""One question in so many is kept away from training."""
CAREFUL: Final = " Be very careful."
"""Behind a question: thinking that looks at its result again and again, and often does not end."""


@dataclass(frozen=True, slots=True)
class Task:
    """One question with what training shows of it; whether an answer is right can be asked of any text."""

    kind: str
    question: str
    steps: tuple[str, ...]  # lines of a thinking that gets there
    check: str  # a line that looks at the result again
    answers: tuple[str, ...]  # right ones, in several forms
    right: Callable[[str], bool]

    @property
    def held_out(self) -> bool:
        """Whether the question is asked in measurements and never shown in training."""
        return zlib.crc32(self.question.removesuffix(CAREFUL).encode()) % HELD_OUT_SHARE == 0


def last_number(wanted: int) -> Callable[[str], bool]:
    """Return a check: the last whole number of an answer is the wanted one."""

    def right(answer: str) -> bool:
        found = re.findall(r"\d+", answer.replace(",", ""))
        return bool(found) and int(found[-1]) == wanted

    return right


def last_name(wanted: str, names: Sequence[str]) -> Callable[[str], bool]:
    """Return a check: of all `names` the wanted one is named last in an answer."""

    def right(answer: str) -> bool:
        found: list[str] = re.findall("|".join(map(re.escape, names)), answer)
        return bool(found) and found[-1] == wanted

    return right


def in_order(wanted: Sequence[str]) -> Callable[[str], bool]:
    """Return a check: an answer names all the things wanted, its last mention of them in this order."""

    def right(answer: str) -> bool:
        pattern = "|".join(rf"\b{re.escape(name)}\b" for name in wanted)
        return re.findall(pattern, answer)[-len(wanted) :] == list(wanted)

    return right


def holds(*patterns: str) -> Callable[[str], bool]:
    """Return a check: every pattern is found in an answer, one behind the other, whatever stands between."""
    whole = re.compile(r"[\s\S]*?".join(patterns))
    return lambda answer: bool(whole.search(answer))


def fenced(language: str, code: str) -> str:
    """Return code in a Markdown fence."""
    return f"```{language}\n{code}\n```"


Maker = Callable[[random.Random], Task]
"""Draws one task of a kind."""
