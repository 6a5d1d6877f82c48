"""Two ways to do one thing, timed in turn so that a machine's drift hits both alike, and what their ratio is."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

T = TypeVar("T")
_MEMORY: Final = np.ones(2**19)  # 4 MB


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the ratios of pairs, with its 95 % interval by the bootstrap over the pairs."""

    median: float
    low: float
    high: float
    pairs: int


def pace() -> float:
    """Return the milliseconds that a fixed piece of work takes now, half of it the interpreter's and half the memory's.

    A shared machine may run at half its speed for minutes. Times that were measured hours apart can be compared in
    multiples of this.
    """
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        sum(number * number for number in range(10_000))
        _MEMORY.copy()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def timed_pair(
    runs: Mapping[str, Callable[[int], T]], check: Callable[[str, T], None], number: int,
    prepare: Callable[[str], None] = lambda name: None,
) -> dict[str, float]:  # fmt: skip
    """Time two runs in the order a b b a, in odd-numbered pairs b a a b. Returns the mean seconds of each, by name.

    A run is called with the pair's number, for its seed. `prepare` is called before the clock starts, and `check`, with
    what the run returned, behind it.
    """
    names = list(runs)[:: -1 if number % 2 else 1]
    seconds = dict.fromkeys(runs, 0.0)
    for name in (*names, *reversed(names)):
        prepare(name)
        begin = time.perf_counter()
        result = runs[name](number)
        seconds[name] += (time.perf_counter() - begin) / 2
        check(name, result)
    return seconds


def in_pairs(
    runs: Mapping[str, Callable[[int], T]], check: Callable[[str, T], None], num_pairs: int
) -> dict[str, list[float]]:
    """Time two runs in `num_pairs` pairs behind one that warms up and does not count. Returns seconds by name and pair."""
    pairs = [timed_pair(runs, check, number) for number in range(num_pairs + 1)][1:]
    return {name: [pair[name] for pair in pairs] for name in runs}


def ratio(over: Sequence[float], under: Sequence[float], *, draws: int = 2000) -> Ratio:
    """Sum up paired measurements of one quantity: `over` divided by `under`, pair by pair.

    ValueError, if there are no pairs or the lengths differ.
    """
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    if not ratios:
        raise ValueError("over and under are empty; a ratio needs at least one pair")
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    low, high = medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]
    return Ratio(statistics.median(ratios), low, high, len(ratios))
