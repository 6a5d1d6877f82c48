"""Which policies are explored: the product of small values of every field, or a part of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice, product

from proof.worlds import World

from thinkguard import ThinkPolicy
from thinkguard.errors import PolicyError


def limits_of(world: World) -> tuple[int | None, ...]:
    """The max_tokens that are explored; headers take more of it."""
    return (None, *range(19 if world.channel else 13))


VALUES: dict[str, tuple] = {
    "opening": ("force", "allow", "forbid"),
    "max_thinking_tokens": (None, 0, 1, 2, 3),
    "min_thinking_tokens": (0, 1, 2, 3),
    "grace_tokens": (0, 1, 2),
    "close_at": ("line", "sentence"),
    "close_message": (False, True),  # the world has its text
    "answer_prefix": (False, True),  # the same one
    "max_extensions": (0, 1, 2),
    "max_think_blocks": (1, 2, 3),
    "min_answer_tokens": (0, 1, 2),
    "max_answer_tokens": (None, 1, 2, 3),
    "reserve_answer_tokens": (0, 2),
    "on_eos": ("close", "ban"),
    "markers_in_answer": ("ban", "allow"),
    "soft_thinking_tokens": (None, 1),
    "loop_tokens": (0, 4, 8),
}
GRID: dict[str, tuple] = {
    "max_extensions": (0, 1),
    "max_think_blocks": (1, 2),
    "max_answer_tokens": (None, 1, 3),
    "soft_thinking_tokens": (None,),
    "loop_tokens": (0,),
    "answer_prefix": (False,),
}
"""The fields that have fewer values in the grid, of which every combination is explored."""
FEWER: dict[str, tuple] = {"min_thinking_tokens": (0, 2), "grace_tokens": (0, 2)}
LARGE = ("wide", "channels")
"""Worlds with so many states to a policy that the grid has still FEWER values there."""


def policy(world: World, values: dict) -> ThinkPolicy | None:
    """A policy of these values, None where they contradict each other."""
    fields = dict(values)
    fields["close_message"] = world.message if fields["close_message"] else ""
    fields["answer_prefix"] = world.message if fields["answer_prefix"] else ""
    fields["extend_message"] = world.wait if fields["max_extensions"] else None
    fields["close_bias"] = 3.0 if fields["soft_thinking_tokens"] is not None else 0.0
    try:
        return ThinkPolicy(**fields)
    except PolicyError:
        return None


def drawn(world: World, number: int) -> Iterator[ThinkPolicy]:
    """So many policies of the whole product, always the same ones."""
    rng, left = random.Random(world.name), number
    while left:
        found = policy(world, {name: rng.choice(values) for name, values in VALUES.items()})
        if found is not None:
            left -= 1
            yield found


def every(world: World, part: int = 0, parts: int = 1) -> Iterator[ThinkPolicy]:
    """All policies of the grid, or one of several equal parts of them."""
    values = VALUES | GRID | (FEWER if world.name in LARGE else {})
    for chosen in islice(product(*values.values()), part, None, parts):
        found = policy(world, dict(zip(values, chosen, strict=True)))
        if found is not None and (found.grace_tokens or found.close_at == "line"):  # without grace both are one
            yield found
