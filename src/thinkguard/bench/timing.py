"""Measurements taken in turn, so that the machine's drift hits all alike, and what is said about them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Spread = dict[str, Any]
"""{"median", "low", "high", "num", "unit"}: the median of all values, and how far the quartiles of the rounds reach."""
Rates = dict[str, dict[str, Any]]
T = TypeVar("T")


def spread(values: Sequence[float], unit: str) -> Spread:
    """Sum up repeated measurements of one thing."""
    return spread_of_rounds([values], unit)


def spread_of_rounds(rounds: Sequence[Sequence[float]], unit: str) -> Spread:
    """Sum up measurements that were taken in rounds some time apart, between which the machine may have changed."""
    values = [value for one in rounds for value in one]
    quartiles = [statistics.quantiles(one, n=4) if len(one) > 2 else sorted(one) for one in rounds]
    return {
        "median": statistics.median(values),
        "low": min(one[0] for one in quartiles),
        "high": max(one[-1] for one in quartiles),
        "num": len(values),
        "unit": unit,
    }


def ratio(over: Sequence[float], under: Sequence[float], *, draws: int = 2000) -> dict[str, Any]:
    """Sum up paired measurements as the median of their ratios, with its 95 % interval by the bootstrap over pairs."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    low, high = medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]
    return {"median": statistics.median(ratios), "low": low, "high": high, "pairs": len(ratios), "interval": "95 %"}


def in_pairs(runs: Mapping[str, Callable[[int], T]], check: Callable[[str, T], None], pairs: int, num_tokens: int) -> Rates:
    """Time two runs of `num_tokens` tokens in turn, the first of a pair being the second of the next.

    A run is given the pair's number, for its seed; what it made is checked behind the clock. A first pair warms up and does
    not count. Returns {name: tokens per second, "ratio": of the second name's over the first's}.
    """
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(pairs + 1):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            begin = time.perf_counter()
            made = runs[name](number)
            seconds = time.perf_counter() - begin
            check(name, made)
            if number:
                rates[name].append(num_tokens / seconds)
    first, second = rates.values()
    return {**{name: spread(found, "tokens per second") for name, found in rates.items()}, "ratio": ratio(second, first)}
