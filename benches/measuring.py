"""What benchmarks do alike: pairs, how many rounds, times that other clocks measured, and why something was left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NoReturn, TypeVar

import pytest

from thinkguard.bench.timing import ratio, timed_pair

T = TypeVar("T")
LEFT_OUT = pytest.StashKey[list[dict[str, Any]]]()
"""What has no figure and why; it goes into the JSON beside the benchmarks."""
PATIENCE, MOST = 0.25, 300
"""Seconds that the rounds of one benchmark may take together, and rounds at most."""


class Clock:
    """A benchmark's timer that a target advances itself, by what it measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


def by_clock(group: str) -> pytest.MarkDecorator:
    """Mark benchmarks whose target advances `CLOCK`: pairs, and what is timed in another process."""
    return pytest.mark.benchmark(group=group, timer=CLOCK)


def leave_out(request: pytest.FixtureRequest, why: str, **about: Any) -> NoReturn:
    """Skip a benchmark that cannot run, and keep the reason for the report."""
    marker = request.node.get_closest_marker("benchmark")
    group = marker.kwargs.get("group") if marker else None
    request.config.stash[LEFT_OUT].append({"name": request.node.name, "group": group, **about, "cannot": why})
    pytest.skip(why)


def rounds_of(once: Callable[[], object]) -> int:
    """How many rounds a benchmark has: as `PATIENCE` allows by the second of two runs, which warm up."""
    seconds = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        once()
        seconds = time.perf_counter() - begin
        if seconds > 10 * PATIENCE:
            return 1
    return max(3, min(MOST, int(PATIENCE / seconds)))


def pairs(
    benchmark: Any, runs: Mapping[str, Callable[[int], T]], check: Callable[[str, T], None], num_pairs: int,
    prepare: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:  # fmt: skip
    """Benchmark the second of two runs beside the first, in pairs; the test is marked by `by_clock`.

    Writes "ratio" (seconds of the second over seconds of the first), and "pairs", their seconds by name, into `extra_info`.
    """
    taken: list[dict[str, float]] = []
    _, shown = runs

    def block() -> None:
        taken.append(timed_pair(runs, check, len(taken), prepare))
        CLOCK.now += taken[-1][shown]

    benchmark.pedantic(block, rounds=num_pairs, warmup_rounds=1)
    counted = taken[1:] or taken  # a run with --benchmark-disable has one round
    seconds = {name: [pair[name] for pair in counted] for name in runs}
    first, second = seconds.values()
    found = {"ratio": asdict(ratio(second, first)), "pairs": seconds}
    benchmark.extra_info.update(found)
    return found


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
