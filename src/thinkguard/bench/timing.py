"""Measurements taken in turn, so that the machine's drift hits all alike, and what is said about them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np

Spread = dict[str, Any]
"""{"median", "low", "high", "num", "unit"}: the median of all values, and how far the quartiles of the rounds reach.

"paced", where the pace is known: {"low", "high"} of the same values in multiples of what `pace` takes.
"""
Rates = dict[str, dict[str, Any]]
Round = tuple[Sequence[float], float]
"""Values, and the pace of the machine around them."""
T = TypeVar("T")
_MEMORY: Final = np.ones(2**19)  # 4 MB


def pace() -> float:
    """Return the milliseconds that a fixed piece of work takes now, half of it the interpreter's and half the memory's.

    A shared machine may run at half its speed for minutes. Two runs can be told apart from two hours by what each takes
    in multiples of this.
    """
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        sum(number * number for number in range(10_000))
        _MEMORY.copy()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def with_pace(run: Callable[[], T]) -> tuple[T, float]:
    """Run something. Returns what it made, and the pace of the machine around it."""
    before = pace()
    made = run()
    return made, (before + pace()) / 2


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, so that a step's cost is not hidden on another core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spread(values: Sequence[float], unit: str, pace: float | None = None) -> Spread:
    """Sum up repeated measurements of one thing."""
    told = _told([values], unit)
    return told if pace is None else told | {"paced": _reach([[value / pace for value in values]])}


def spread_of_rounds(rounds: Sequence[Round], unit: str) -> Spread:
    """Sum up measurements that were taken in rounds some time apart, between which the machine may have changed."""
    paced = [[value / pace for value in values] for values, pace in rounds]
    return _told([values for values, _ in rounds], unit) | {"paced": _reach(paced)}


def spread_of_rates(rates: Sequence[float], paces: Sequence[float], unit: str) -> Spread:
    """Sum up what was done in a second, each measurement with its pace."""
    return spread(rates, unit) | {"paced": _reach([[rate * pace for rate, pace in zip(rates, paces, strict=True)]])}


def _told(rounds: Sequence[Sequence[float]], unit: str) -> Spread:
    values = [value for one in rounds for value in one]
    return {"median": statistics.median(values), **_reach(rounds), "num": len(values), "unit": unit}


def _reach(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """From the least lower quartile of a round to the greatest upper one."""
    quartiles = [statistics.quantiles(one, n=4) if len(one) > 2 else sorted(one) for one in rounds]
    return {"low": min(one[0] for one in quartiles), "high": max(one[-1] for one in quartiles)}


def ratio(over: Sequence[float], under: Sequence[float], *, draws: int = 2000) -> dict[str, Any]:
    """Sum up paired measurements as the median of their ratios, with its 95 % interval by the bootstrap over pairs."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    low, high = medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]
    return {"median": statistics.median(ratios), "low": low, "high": high, "pairs": len(ratios), "interval": "95 %"}


def in_pairs(runs: Mapping[str, Callable[[int], T]], check: Callable[[str, T], None], pairs: int, num_tokens: int) -> Rates:
    """Time two runs of `num_tokens` tokens in turn, each twice in a pair: a b b a, so that a drift hits both alike.

    A run is given the pair's number, for its seed; what it made is checked behind the clock. A first pair warms up and does
    not count. Returns {name: tokens per second, "ratio": of the second name's over the first's}.
    """
    rates: dict[str, list[float]] = {name: [] for name in runs}
    paces: dict[str, list[float]] = {name: [] for name in runs}

    def timed(name: str, number: int) -> tuple[T, float]:
        begin = time.perf_counter()
        made = runs[name](number)
        return made, time.perf_counter() - begin

    for number in range(pairs + 1):
        names = list(runs)[:: -1 if number % 2 else 1]
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for name in (*names, *reversed(names)):
            (made, seconds), pace = with_pace(partial(timed, name, number))
            check(name, made)
            took[name].append((seconds, pace))
        for name, (one, two) in took.items() if number else ():
            rates[name].append(2 * num_tokens / (one[0] + two[0]))
            paces[name].append((one[1] + two[1]) / 2)
    first, second = rates.values()
    told = {name: spread_of_rates(rates[name], paces[name], "tokens per second") for name in runs}
    return {**told, "ratio": ratio(second, first)}
