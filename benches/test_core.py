"""Cost of the C core: advance, decide and edit of one of 256 rows, by kind of step and by length of the thinking."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benches.conftest import Sizes
from benches.measuring import by_clock, pairs
from benches.setting import made_vocabulary
from thinkguard import ThinkPolicy, ThinkProgram
from thinkguard.core._core import StateBatch

pytestmark = pytest.mark.benchmark(group="core")

ROWS, STEPS = 256, 50
WALKS = {  # markers as tokens?, how the assistant's turn begins, thinking tokens so far
    "empty": (False, "<think>\n\n</think>\n\n`Yes`", 0),
    "quiet": (True, "<think>\n", 0),
    "quiet, 32,768 tokens": (True, "<think>\n", 32_768),
    "quiet, text markers": (False, "<think>\n", 0),
}


class Walk:
    """256 rows that all stand at the same place; `step` advances and edits them all."""

    def __init__(self, width: int, marker_tokens: bool, opened: str, thinking: int) -> None:
        self.program = ThinkProgram("think", made_vocabulary(width, marker_tokens=marker_tokens))
        encode = self.program.vocabulary.encode
        state = self.program.start(encode("<|im_start|>assistant\n" + opened), ThinkPolicy(max_thinking_tokens=2**29))
        token = encode(" the")[0]
        state.advance_all(np.full(thinking, token, np.int64))
        self.states, self.width, self.steps = StateBatch([state.copy() for _ in range(ROWS)]), width, 0
        self.tokens = np.full(ROWS, token, np.int64)
        self.logits = np.random.default_rng(1).standard_normal((ROWS, width), np.float32)
        self.address = self.logits.__array_interface__["data"][0]

    def step(self) -> None:
        self.states.advance(self.tokens)
        self.states.apply(self.address, 0, self.width, 1, self.width)
        self.steps += 1

    def many(self, number: int = 0) -> None:
        for _ in range(STEPS):
            self.step()

    def check(self, empty: bool, thinking: int) -> None:
        """Every step was counted, and the logits carry what a step of this kind edits."""
        added = self.program.vocabulary.added
        banned = np.isneginf(self.logits).sum()
        if empty:
            assert banned == 0
            return
        assert self.states.states[0].thinking_tokens == self.steps + thinking
        assert banned == ROWS * (3 if "<think>" in added else 2)  # EOS, what begins a turn, and a start that is a token
        assert np.isneginf(self.logits[:, added["<|im_end|>"]]).all()


@pytest.fixture(scope="module")
def walk_of(sizes: Sizes) -> Callable[[str], Walk]:
    return cache(lambda name: Walk(sizes.vocab_size, *WALKS[name]))


@pytest.mark.parametrize("name", WALKS)
def test_core_step(benchmark: Any, walk_of: Callable[[str], Walk], name: str) -> None:
    """Step after step: all that is touched lies in the caches."""
    walk = walk_of(name)
    benchmark.pedantic(walk.step, rounds=60, iterations=STEPS, warmup_rounds=3)
    walk.check(name == "empty", WALKS[name][2])
    benchmark.extra_info.update({"walk": name, "rows": ROWS})


@by_clock("core")
def test_core_step_long(benchmark: Any, walk_of: Callable[[str], Walk]) -> None:
    """A step behind 32,768 thinking tokens over one behind none."""
    walks = {name: walk_of(name) for name in ("quiet", "quiet, 32,768 tokens")}
    pairs(benchmark, {name: walk.many for name, walk in walks.items()}, lambda name, nothing: None, 60)
    for name, walk in walks.items():
        walk.check(False, WALKS[name][2])


@by_clock("core")
def test_core_step_scalars(benchmark: Any, walk_of: Callable[[str], Walk], tmp_path: Path) -> None:
    """A quiet step over a compiled loop that reads and writes the same scalars of its rows, and decides nothing."""
    walk = walk_of("quiet")
    touch = scalar_writes(walk, tmp_path)
    pairs(benchmark, {"scalars": touch, "quiet": walk.many}, lambda name, nothing: None, 60)
    walk.check(False, 0)


@pytest.mark.parametrize("what", ["launch", "step of 64 slots"])
def test_launch(benchmark: Any, sizes: Sizes, what: str) -> None:
    """What the host pays to start a kernel: the real launcher on a driver that does nothing. 5 us at most for a launch."""
    torch = pytest.importorskip("torch", reason="the slots are torch's")
    from tests.standin import standin
    from thinkguard.device.slots import DeviceSlots
    from thinkguard.device.tables import DeviceProgram

    driver, num = standin(), 64
    program = ThinkProgram("think", made_vocabulary(2048, marker_tokens=True))
    slots = DeviceSlots(DeviceProgram(program, "cpu", driver.kernels()), num)
    for slot in range(num):
        slots.stage(slot, program.bind(ThinkPolicy()))
    slots.flush()
    where, tokens = torch.arange(num, dtype=torch.int32), torch.zeros(num, 100, dtype=torch.int32)
    zero, total, logits = torch.zeros_like(where), torch.full((num,), 50, dtype=torch.int32), torch.zeros(num, 2048)
    runs = {
        "launch": lambda: slots._launch(num, 0),
        "step of 64 slots": lambda: slots.apply(logits, where, zero, zero, tokens, total, total),
    }
    with driver.doing_nothing():
        benchmark.pedantic(runs[what], rounds=60, iterations=STEPS, warmup_rounds=3)
    assert driver.launch.num_blocks == num
    benchmark.extra_info["what"] = what
    assert benchmark.disabled or what != "launch" or not sizes.full or benchmark.stats.stats.median < 5e-6


def scalar_writes(walk: Walk, folder: Path) -> Callable[[int], None]:
    """The scalars that a quiet step of the marker-token vocabulary touches, as often as `Walk.many` does."""
    source, library = Path(__file__).with_name("scalar_writes.c"), folder / "touch.so"
    subprocess.run(["cc", "-O3", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    touch = ctypes.CDLL(str(library)).touch
    added = walk.program.vocabulary.added
    eos, turn, start, end = (added[name] for name in ("<|im_end|>", "<|im_start|>", "<think>", "</think>"))
    reads, writes = np.array([end, eos], np.int32), np.array([end, eos, turn, start], np.int32)
    arguments = (
        ctypes.c_void_p(walk.address), ctypes.c_int64(ROWS), ctypes.c_int64(walk.width),
        ctypes.c_void_p(reads.ctypes.data), ctypes.c_int32(2), ctypes.c_void_p(writes.ctypes.data), ctypes.c_int32(4),
    )  # fmt: skip

    def many(number: int) -> None:
        for _ in range(STEPS):
            touch(*arguments)

    many.keep = (reads, writes)  # type: ignore[attr-defined]  # the addresses above are theirs
    return many
