"""Time of the device kernel, against vLLM's own two budget kernels over the same buffers.

Kernels are timed with CUDA events around single launches. The device is kept asleep until all launches of a round are
queued, so that the host's time is in none of them; what the same events measure around nothing stands beside every figure.
"warm" is launch after launch; "cold" writes 256 MB before each, as a model's forward pass would.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_common import NotMeasured, Result, program, row, spread
from gpu_scenes import SETTINGS, Budget, Scene, Sizes

from thinkguard.device import slots as device
from thinkguard.device.tables import DeviceProgram

SHAPED = ("thinking", "all forced", "one long resume", "one long prompt, no chat")  # what other shapes are tried in
RIVALS = [name for name, setting in SETTINGS.items() if setting.budget and setting.kind == "tokens"]
Action = Callable[[], Any]


def times(scene: Scene, actions: dict[str, Action], sizes: Sizes, before: Action) -> dict[str, list[float]]:
    """us of single calls, in turn and in changing order, behind `before`."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    names, on_gpu, cycles = list(actions), scene.host.device.type == "cuda", 20_000_000
    rounds = 0
    while rounds < sizes.rounds:
        marks, asleep = [], True
        if on_gpu:
            torch.cuda._sleep(cycles)
            woken = torch.cuda.Event()
            woken.record()
        for i in range(sizes.launches):
            scene.begin()
            for name in names if i % 2 else names[::-1]:
                before()
                if on_gpu:
                    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                    begin.record()
                    actions[name]()
                    end.record()
                    marks.append((name, begin, end))
                else:
                    start = time.perf_counter()
                    actions[name]()
                    taken[name].append((time.perf_counter() - start) * 1e6)
        if on_gpu:
            asleep = not woken.query()
            torch.cuda.synchronize()
        if asleep:
            rounds += 1
            for name, begin, end in marks:
                taken[name].append(begin.elapsed_time(end) * 1e3)
        elif cycles > 2**31:
            raise NotMeasured("the host needs seconds to queue a few launches, so that its time would be in the kernels'")
        else:  # the device woke before all was queued: once more, with more sleep
            cycles *= 4
    return taken


def profiled(actions: dict[str, Action], num: int = 20) -> dict[str, Any]:
    """Kernels that each action launches, by name, and us of each, as the profiler has them."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    found: dict[str, Any] = {}
    for name, action in actions.items():
        try:
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                for _ in range(num):
                    action()
                torch.cuda.synchronize()
            events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
        except Exception as error:  # a profiler that this machine does not let run takes no timings with it
            return {"not measured": f"{type(error).__name__}: {error}"}
        if not events:
            return {"not measured": "the profiler saw no kernels"}
        counts: Counter[str] = Counter(event.name for event in events)
        spent: Counter[str] = Counter()
        for event in events:
            spent[event.name] += event.time_range.elapsed_us()
        found[name] = {
            "per call": {kernel: count / num for kernel, count in counts.items()},
            "us": {kernel: round(spent[kernel] / counts[kernel], 3) for kernel in counts},
        }
    return found


def host_times(action: Action, num: int = 300) -> Result:
    """us of the host's time for one call; nothing waits for the device between calls."""
    taken = []
    for _ in range(num):
        begin = time.perf_counter()
        action()
        taken.append((time.perf_counter() - begin) * 1e6)
    return spread(taken[num // 10 :], "us")


def measure(scene: Scene, sizes: Sizes, *, rivals: bool = False, more: bool = False) -> Result:
    """Time one scene and check its answer; against vLLM's budget too, and with launches and the host's time, if asked."""
    on_gpu = scene.host.device.type == "cuda"
    found: Result = {"rows": len(scene.logits), "width": scene.logits.shape[1], "action": scene.setting.action}
    actions: dict[str, Action] = {"thinkguard": scene.apply}
    budget = None
    if rivals:
        try:
            budget = Budget(scene)
        except NotMeasured as reason:
            found["vllm"] = {"not measured": str(reason)}
        else:
            actions["vllm"] = budget.apply
    scene.apply()  # compiles
    scene.check()
    if budget:
        budget.apply()
        budget.check()
    actions["nothing"] = lambda: None
    scratch = torch.zeros(2**28 if on_gpu else 1, dtype=torch.uint8, device=scene.host.device)
    befores: dict[str, Action] = {"warm": lambda: None, "cold": scratch.zero_}
    for state, before in befores.items():

        def prepare(before: Action = before) -> None:
            if budget:
                budget.begin()
            if scene.anew:
                scene.begin()
            before()

        taken = {name: spread(values, "us") for name, values in times(scene, actions, sizes, prepare).items()}
        found[state] = taken
        if budget:
            ours, others = (taken[name]["median"] - taken["nothing"]["median"] for name in ("thinkguard", "vllm"))
            found[state]["thinkguard over vllm"] = round(ours / others, 3) if others > 0 else None
    if more and on_gpu:
        guards = {name: action for name, action in actions.items() if name != "nothing"}
        found["profiled"] = profiled(guards)
        launched = found["profiled"].get("thinkguard", {}).get("per call", {})
        assert set(launched) <= {"guard_slots"}, f"one apply() launched {launched}"
        assert sum(launched.values()) <= 1, f"one apply() launched {launched}"
        found["host"] = {name: host_times(action) for name, action in guards.items()}
    scene.check()
    if budget:
        budget.check()
    return found


@contextmanager
def tuned(num_warps: int, block: int) -> Iterator[None]:
    """Another shape of the kernel."""
    before = device.NUM_WARPS, device.BLOCK
    device.NUM_WARPS, device.BLOCK = num_warps, block
    try:
        yield
    finally:
        device.NUM_WARPS, device.BLOCK = before


# --- rows ---


def kernels(quick: bool, sizes: Sizes | None = None, names: Iterable[str] = tuple(SETTINGS)) -> Iterator[Result]:
    """Every scene, those that vLLM's budget can be compared in with tokens in the host's memory too; then every shape."""
    sizes = sizes or Sizes(rounds=4 if quick else 8)
    tables = {kind: DeviceProgram(program(kind, sizes.width), sizes.device) for kind in ("tokens", "text")}

    def timed(name: str, pinned: bool) -> Result:
        setting = SETTINGS[name]
        scene = Scene(tables[setting.kind], setting, sizes, pinned)
        return measure(scene, sizes, rivals=name in RIVALS, more=not setting.is_one)

    for name in names:
        for pinned in (False, True) if name in RIVALS else (False,):
            what = f"kernel: {name}, tokens in {'the host' if pinned else 'the device'}'s memory"
            yield row(what, partial(timed, name, pinned))
    yield row("kernel: shapes", partial(shapes, tables["tokens"], sizes, quick))


def shapes(tables: DeviceProgram, sizes: Sizes, quick: bool) -> Result:
    """Median us, warm, of each shape of the kernel in some scenes, and the best of each."""
    found: dict[str, dict[str, float]] = {}
    tried = ((1, 128),) if quick else tuple((num_warps, block) for num_warps in (1, 2, 4) for block in (128, 256))
    few = replace(sizes, rounds=max(sizes.rounds // 4, 1))
    for name in SHAPED:
        scene, found[name] = Scene(tables, SETTINGS[name], sizes), {}
        before = scene.begin if scene.anew else lambda: None
        for num_warps, block in tried:
            with tuned(num_warps, block):
                scene.apply()
                taken = times(scene, {"thinkguard": scene.apply, "nothing": lambda: None}, few, before)
                scene.check()
            figure = float(np.median(taken["thinkguard"]) - np.median(taken["nothing"]))
            found[name][f"{num_warps} warps, blocks of {block}"] = round(figure, 3)
    best = {name: min(figures, key=figures.__getitem__) for name, figures in found.items()}
    return {**found, "best": best, "now": f"{device.NUM_WARPS} warps, blocks of {device.BLOCK}", "unit": "us"}
