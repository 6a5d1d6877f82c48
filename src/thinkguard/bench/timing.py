"""Times taken in turn, so that the machine's drift hits all alike, and what is said about them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Spread = dict[str, Any]
"""{"median", "low", "high", "num", "unit"}: the median of all rounds, and the quartiles around it."""


def spread(values: Sequence[float], unit: str) -> Spread:
    """Sum up repeated measurements of one thing."""
    ordered = sorted(values)
    low, median, high = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else ordered * 3
    return {"median": median, "low": low, "high": high, "num": len(ordered), "unit": unit}


def in_turn(
    steps: Mapping[str, Callable[[], object]], *, rounds: int, seconds: float, warm_up: int = 1, most: int = 200
) -> dict[str, list[float]]:
    """Return seconds per call of each step, one figure per round.

    A round calls each step as often as fits into `seconds`, at least once and at most `most` times; the steps take turns.
    """
    calls: dict[str, int] = {}
    for name, step in steps.items():
        for _ in range(warm_up):
            step()
        begin = time.perf_counter()
        step()
        calls[name] = max(1, min(most, int(seconds / max(time.perf_counter() - begin, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            for _ in range(calls[name]):
                step()
            times[name].append((time.perf_counter() - begin) / calls[name])
    return times


def ratio(over: Sequence[float], under: Sequence[float], *, draws: int = 2000) -> dict[str, Any]:
    """Sum up paired measurements as the median of their ratios, with its 95 % interval by the bootstrap over pairs."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    low, high = medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]
    return {"median": statistics.median(ratios), "low": low, "high": high, "pairs": len(ratios), "interval": "95 %"}
