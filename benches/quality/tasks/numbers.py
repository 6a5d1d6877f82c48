"""Sums, word problems, and numbers put in order."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from benches.quality.tasks.task import Task, in_order, last_number

NAMES: Final = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry")
_PRODUCTS: Final = (
    ("A train goes {a}0 km in an hour. How far does it go in {b} hours?", "It goes {c} km.", 10),
    ("A box holds {a} eggs. How many eggs are in {b} boxes?", "There are {c} eggs.", 1),
    ("One ticket costs {a} dollars. What do {b} tickets cost?", "They cost {c} dollars.", 1),
    ("A book has {a}0 pages. How many pages do {b} such books have?", "They have {c} pages.", 10),
)
_CHANGES: Final = (
    ("{who} has {a} apples and buys {b} more. How many apples are there now?", "+", "There are {c} apples now."),
    ("{who} had {a} coins and spent {b}. How many coins are left?", "-", "{c} coins are left."),
    ("There are {a} birds on a roof and {b} fly away. How many birds stay?", "-", "{c} birds stay."),
    ("{who} read {a} pages on Monday and {b} on Tuesday. How many pages is that?", "+", "That is {c} pages."),
)


def sums(rng: random.Random) -> Task:
    """A sum or a difference of small numbers: what a model of this size may know."""
    a, b, sign = rng.randrange(9, 21), rng.randrange(2, 10), rng.choice("+-")
    c = a + b if sign == "+" else a - b
    question = rng.choice((f"What is {a} {sign} {b}?", f"Compute {a} {sign} {b}.", f"{a} {sign} {b} = ?"))
    return Task(
        "sum",
        question,
        (f"I need {a} {sign} {b}.", f"{a} {sign} {b} = {c}.", f"So it is {c}."),
        f"{a} {sign} {b} is {c}.",
        (f"{a} {sign} {b} = {c}.", f"The answer is {c}.", f"Answer: {c}"),
        last_number(c),
    )


def word_problems(rng: random.Random) -> Task:
    """A product or a change that a sentence tells of."""
    if rng.random() < 0.5:
        text, said, scale = rng.choice(_PRODUCTS)
        a, b = rng.randrange(2, 10), rng.randrange(2, 6)
        c = a * b * scale
        question, work = text.format(a=a, b=b), f"{a * scale} * {b} = {c}"
        first = f"I have to multiply {a * scale} and {b}."
    else:
        text, sign, said = rng.choice(_CHANGES)
        a, b = rng.randrange(9, 21), rng.randrange(2, 10)
        c = a + b if sign == "+" else a - b
        question, work = text.format(who=rng.choice(NAMES), a=a, b=b), f"{a} {sign} {b} = {c}"
        first = f"I have to {'add' if sign == '+' else 'take'} {b} {'to' if sign == '+' else 'from'} {a}."
    said = said.format(c=c)
    return Task(
        "word problem",
        question,
        (first, f"{work}.", f"So it is {c}."),
        f"{work.replace(' =', ' is')}.",
        (said, f"{work}.\n\n{said}", f"Answer: {c}"),
        last_number(c),
    )


def orders(rng: random.Random) -> Task:
    """Three numbers to be put in order."""
    numbers = rng.sample(range(1, 30), 3)
    down = rng.random() < 0.3
    found = sorted(numbers, reverse=down)
    listed, result = ", ".join(map(str, numbers)), ", ".join(map(str, found))
    how = "from largest to smallest" if down else "from smallest to largest"
    edge = "largest" if down else "smallest"
    steps = [f"The {edge} of {listed} is {found[0]}."]
    steps += [*(f"Then comes {number}." for number in found[1:]), f"So it is {result}."]
    return Task(
        "order",
        f"Sort {how}: {listed}.",
        tuple(steps),
        f"The order is {result}.",
        (result, f"The order is {result}.", "\n".join(f"{i}. {n}" for i, n in enumerate(found, 1)) if not down else result),
        _sorted_as([str(number) for number in found]),
    )


def _sorted_as(wanted: list[str]) -> Callable[[str], bool]:
    """Return a check: the numbers stand in this order; those that number the lines of a list are not among them."""
    plain = in_order(wanted)

    def right(answer: str) -> bool:
        lines = [line.partition(". ")[2] for line in answer.splitlines() if line[:1].isdigit() and ". " in line]
        return plain("\n".join(lines)) if len(lines) >= len(wanted) else plain(answer)

    return right
