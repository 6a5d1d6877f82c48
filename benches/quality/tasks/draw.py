"""Tasks drawn by a seed, those of training apart from those of measurements, and how training shows them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Final

from benches.quality.tasks import markup, numbers, words
from benches.quality.tasks.task import CAREFUL, Maker, Task

MAKERS: Final[tuple[Maker, ...]] = (
    *(numbers.sums, numbers.sums, numbers.word_problems, numbers.word_problems, numbers.orders),
    *(words.dates, words.dates, words.facts, words.word_orders, markup.html, markup.code, markup.json_objects),
)
"""Drawn from in turn: kinds that stand here twice come twice as often."""
_AGAIN: Final = (
    "Let me check that again.", "Let me check.", "Wait, is that right?", "Let me make sure.",
    "Let me go through it once more.", "Is there a mistake?", "I should look at it again.",
)  # fmt: skip
_SURE: Final = ("Yes.", "That is right.", "It stays so.", "Good.", "I see no mistake.")
_TRIES: Final = 100  # of a kind that may have no other question left
_CUT_AT: Final = 10  # lines that a careful thinking has at least, where it is cut off


@dataclass(frozen=True, slots=True)
class Shown:
    """A task as training shows it: what is thought and answered; a thinking without answer is cut off, and never ends."""

    question: str
    reasoning: str
    answer: str | None


def tasks(num: int, seed: int = 0, *, held_out: bool = True, careful: float = 0.4) -> list[Task]:
    """Return different tasks, all kinds in turn, always the same ones for a seed; by default none that training shows.

    careful: share of the tasks whose question asks for care.
    """
    rng = random.Random(f"tasks {seed}")
    found: dict[str, Task] = {}
    for maker in cycle(MAKERS):
        if len(found) == num:
            break
        for task in (maker(rng) for _ in range(_TRIES)):
            if task.held_out is held_out and task.question not in found:
                asked = task.question + (CAREFUL if rng.random() < careful else "")
                found[task.question] = replace(task, question=asked)
                break
    return list(found.values())


def shown(num: int, seed: int = 0) -> list[Shown]:
    """Return tasks for training, each with one way to think and to answer."""
    rng = random.Random(f"shown {seed}")
    return [_show(rng, task) for task in tasks(num, seed, held_out=False, careful=0.3)]


def _show(rng: random.Random, task: Task) -> Shown:
    lines = list(task.steps)
    if not task.question.endswith(CAREFUL):
        lines += _looked_at(rng, task) if rng.random() < 0.35 else []
        return Shown(task.question, "\n".join(lines), rng.choice(task.answers))
    ends = rng.random() < 0.4
    most = rng.randrange(4, 8) if ends else _CUT_AT
    while len(lines) < most:
        lines += _looked_at(rng, task)
    return Shown(task.question, "\n".join(lines), rng.choice(task.answers) if ends else None)


def _looked_at(rng: random.Random, task: Task) -> list[str]:
    return [rng.choice(_AGAIN), f"{task.check} {rng.choice(_SURE)}"]
