"""Time of the guard's kernel, beside vLLM's own two budget kernels over the same buffers.

Single launches are timed with CUDA events. The device is kept asleep until all launches of a round are queued, so that the
host's time is in none of them; what the same events measure around nothing stands beside every figure. "warm" is launch
after launch; "cold" writes 256 MB before each, as a model's forward pass would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from statistics import median
from typing import Any

import pytest
import torch

from benches.gpu.common import Sizes
from benches.gpu.scenes import GUARD, PLACES, RIVAL, RIVALS, Budget, Scene, guards
from benches.measuring import CLOCK, by_clock
from thinkguard.bench.timing import ratio
from thinkguard.device.tables import DeviceProgram

pytestmark = by_clock("gpu")
NOTHING = "nothing"
ASKED = 0.5
"""The guard's time over that of vLLM's kernels, at most: what the project set out for."""
CASES = [(name, NOTHING, "device") for name in PLACES]
CASES += [(name, RIVAL, tokens) for name in RIVALS for tokens in ("device", "host")]


@pytest.mark.parametrize("caches", ["warm", "cold"])
@pytest.mark.parametrize(("scene", "beside", "tokens"), CASES)
def test_kernel(
    request: pytest.FixtureRequest, benchmark: Any, tables_of: Callable[[str], DeviceProgram], sizes: Sizes, scene: str,
    beside: str, tokens: str, caches: str,
) -> None:  # fmt: skip
    """`tokens` lie in the memory of the device, or of the host, as vLLM has them."""
    about = {"scene": scene, "beside": beside, "tokens": tokens, "caches": caches}
    tables, rival = tables_of(PLACES[scene].kind), beside == RIVAL
    compare(benchmark, guards(request, tables, scene, sizes, rival=rival, pinned=tokens == "host", **about), sizes, caches)
    benchmark.extra_info.update(about)


def compare(benchmark: Any, found: Mapping[str, Scene | Budget], sizes: Sizes, caches: str) -> None:
    """Benchmark launches of the guard, in turn with a rival's, if there is one, and with nothing.

    Writes "pairs", the seconds by name and round, and "ratio", guard over rival, both less the seconds of nothing.
    """
    scene = found[GUARD]
    assert isinstance(scene, Scene)
    cold = torch.zeros(2**28 if caches == "cold" else 0, dtype=torch.uint8, device=sizes.device)
    calls: dict[str, Callable[[], Any]] = {name: one.apply for name, one in found.items()} | {NOTHING: lambda: None}
    stopwatch = Stopwatch()
    taken: list[dict[str, float]] = []

    def before() -> None:
        for one in found.values():
            one.renew()
        cold.zero_()

    def turn() -> None:
        taken.append(stopwatch.round(calls, sizes.launches, scene.begin, before))
        CLOCK.now += taken[-1][GUARD]

    benchmark.pedantic(turn, rounds=sizes.rounds, warmup_rounds=1)
    for one in found.values():
        one.check()
    counted = taken[1:] or taken
    benchmark.extra_info["pairs"] = {name: [seconds[name] for seconds in counted] for name in calls}
    if RIVAL in found:
        ours, theirs = ([seconds[name] - seconds[NOTHING] for seconds in counted] for name in (GUARD, RIVAL))
        benchmark.extra_info |= {"ratio": asdict(ratio(ours, theirs)), "asked": ASKED}
    benchmark.extra_info |= {"rows": len(scene.logits), "width": scene.logits.shape[1], "action": scene.place.action}


class Stopwatch:
    """Times calls on the device, which sleeps until they are queued."""

    def __init__(self) -> None:
        self.cycles = 20_000_000  # of sleep

    def round(
        self, calls: Mapping[str, Callable[[], Any]], num: int, begin: Callable[[], None], before: Callable[[], None]
    ) -> dict[str, float]:
        """Return the median seconds of `num` calls of each, `begin` before each turn and `before` before each call."""
        while self.cycles < 2**33:
            torch.cuda._sleep(self.cycles)
            woken = torch.cuda.Event()
            woken.record()
            marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in calls}
            for i in range(num):
                begin()
                for name in list(calls)[:: 1 if i % 2 else -1]:
                    before()
                    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                    start.record()
                    calls[name]()
                    end.record()
                    marks[name].append((start, end))
            slept = not woken.query()
            torch.cuda.synchronize()
            if slept:
                return {name: median(start.elapsed_time(end) for start, end in marks[name]) / 1e3 for name in calls}
            self.cycles *= 4  # the device woke before all was queued
        raise RuntimeError("the host takes seconds to queue a few launches, so that its time would be in the kernels'")
