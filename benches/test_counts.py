"""What a clock does not tell: the bytes that an alternative takes, and the instructions of its steps.

Both are counted in processes of their own, at the same time; the steps are timed behind that, on logits as narrow as those
whose instructions are counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benches import instructions
from benches.alternatives.alternative import LIGHT, TIMED, Cannot, load
from benches.conftest import ROOT, Sizes
from benches.measuring import CLOCK, by_clock, leave_out, one_thread, rounds_of
from benches.setting import Setting, make_tokenizer
from benches.stepping import KINDS, NOTHING, Point, Walk, bring


@pytest.fixture(scope="module")
def counting(sizes: Sizes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[instructions.Counts] | str]:
    """The instructions, counted while memory is measured; or why there are none."""
    reason = instructions.build(tmp_path_factory.mktemp("valgrind") / "requests.so")
    if reason or not sizes.full:
        yield reason or "left out by --small"
        return
    names = [name for name in TIMED if name not in instructions.UNKNOWN]
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(instructions.run, names)


@by_clock("memory")
@pytest.mark.parametrize("name", TIMED)
def test_memory(
    request: pytest.FixtureRequest, benchmark: Any, counting: Any, setting_of: Any, name: str, sizes: Sizes, tmp_path: Path
) -> None:
    """The clock shows what setting up took; the bytes are medians of processes, whose heaps lie differently."""
    about = {"alternative": name, "vocab_size": sizes.vocab_size}
    if sys.platform != "linux":
        leave_out(request, "memory is read from Linux' /proc", **about)
    if not sizes.full and name != "thinkguard":
        leave_out(request, "left out by --small", **about)
    command = [sys.executable, "-m", "benches.memory", name, str(setting_of(sizes.vocab_size).folder)]
    command += ["--width", str(sizes.vocab_size), "--json", str(tmp_path / "found.json")]
    env = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    runs: list[dict[str, Any]] = []

    def measured() -> None:
        subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
        runs.append(json.loads((tmp_path / "found.json").read_text(encoding="utf-8")))
        CLOCK.now += runs[-1].get("seconds", 0.0)

    measured()
    if "cannot" in runs[0]:
        leave_out(request, runs[0]["cannot"], **about)
    benchmark.pedantic(measured, rounds=2 if sizes.full else 1)
    bytes_ = {what: median(run[what] for run in runs) for what in ("setup", "request")}
    if name == "thinkguard":
        assert bytes_["setup"] >= setting_of(sizes.vocab_size).program.nbytes
        assert bytes_["request"] < 4096
    benchmark.extra_info.update({**about, "bytes": bytes_})


@pytest.fixture(scope="module")
def counts(counting: Any) -> instructions.Counts | str:
    return counting if isinstance(counting, str) else counting.result()


@pytest.fixture(scope="module")
def walk_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Walk]:
    """Return a function from an alternative's name and a length to its walk over narrow logits."""
    torch = pytest.importorskip("torch", reason="the logits are torch's")
    folder = tmp_path_factory.mktemp("narrow")
    setting = Setting.load(make_tokenizer(folder, instructions.VOCAB_SIZE, marker_tokens=True))
    logits = torch.randn(instructions.ROWS, setting.width, generator=torch.Generator().manual_seed(0))

    @cache
    def walk(name: str, length: int) -> Walk:
        return Walk(load(name)(setting), name, setting, Point(setting.width, instructions.ROWS, length), logits)

    return walk


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("length", instructions.LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TIMED)
def test_narrow_step(
    request: pytest.FixtureRequest, benchmark: Any, counts: Any, walk_of: Any, name: str, kind: str, length: int,
    sizes: Sizes,
) -> None:  # fmt: skip
    """A step over narrow logits, with the instructions of one row of it."""
    about = {"alternative": name, "kind": kind, "vocab_size": instructions.VOCAB_SIZE, "batch": instructions.ROWS}
    about["length"] = length
    why = counts if isinstance(counts, str) else instructions.UNKNOWN.get(name, "")
    if not sizes.full and name not in LIGHT:
        why = "left out by --small"
    if (name, kind) == (NOTHING, "forced"):
        pytest.skip("nothing forces nothing")
    try:
        steps = None if why else bring(walk_of(name, length), kind)
    except Cannot as reason:
        why = str(reason)
    if steps is None:
        leave_out(request, why, **about)
    with one_thread():
        rounds = rounds_of(lambda: steps.step(steps.prepare()))
        benchmark.pedantic(steps.step, setup=lambda: ((steps.prepare(),), {}), rounds=rounds)
    steps.check()
    counted = counts[name, length, kind]
    assert min(counted) > 0
    benchmark.extra_info.update({**about, "instructions": counted})
