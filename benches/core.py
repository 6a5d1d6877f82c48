"""Cost of a step on the host: ns per row of advance + decide + edit, by kind of step and by length of the thinking."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from thinkguard import ThinkFormat, ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.bench.timing import Round, Spread, spread_of_rounds, with_pace
from thinkguard.core._core import StateBatch

ROWS, WIDTH, REPEATS, STEPS = 256, 151_936, 30, 50


def vocabulary(marker_tokens: bool) -> Vocabulary:
    """151,936 tokens: all bytes, pieces of the markers, words of eight letters; markers as text or as added tokens."""
    pieces = [bytes([b]) for b in range(256)]
    pieces += [b"</", b"think", b">\n", b">\n\n", b"<th", b"ink>", b" the", b"\n\n"]
    names = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"] + (["<think>", "</think>"] if marker_tokens else [])
    rng = np.random.default_rng(0)
    words = rng.integers(97, 123, (WIDTH - len(pieces) - len(names), 8), np.uint8)
    pieces += [word.tobytes() for word in words]
    added = {name: len(pieces) + i for i, name in enumerate(names)}
    return Vocabulary.from_parts(pieces, added=added, special=list(added.values())[:3], eos_ids=[added["<|im_end|>"]])


class Walk:
    """256 rows that all stand at the same place; `step` advances and edits them all."""

    def __init__(self, marker_tokens: bool, opened: str, thinking: int = 0) -> None:
        self.program = ThinkProgram(ThinkFormat.from_name("think"), vocabulary(marker_tokens))
        encode = self.program.vocabulary.encode
        policy = ThinkPolicy(max_thinking_tokens=2**29)
        row = self.program.start(encode("<|im_start|>assistant\n" + opened), policy)
        token = encode(" the")[0]
        row.advance_all(np.full(thinking, token, np.int64))
        self.rows = StateBatch([row.copy() for _ in range(ROWS)])
        self.tokens = np.full(ROWS, token, np.int64)
        self.logits = np.random.default_rng(1).standard_normal((ROWS, WIDTH), np.float32)
        self.address = self.logits.__array_interface__["data"][0]

    def step(self) -> None:
        self.rows.advance(self.tokens)
        self.rows.apply(self.address, 0, WIDTH, 1, WIDTH)


def scalar_writes(walk: Walk) -> Any:
    """A compiled loop over the same scalars that a quiet step of the marker-token vocabulary touches."""
    source = Path(__file__).with_name("scalar_writes.c")
    folder = tempfile.mkdtemp()
    library = f"{folder}/touch.so"
    subprocess.run(["cc", "-O3", "-shared", "-fPIC", "-o", library, str(source)], check=True)
    touch = ctypes.CDLL(library).touch
    added = walk.program.vocabulary.added
    eos, start, plan = added["<|im_end|>"], added["<think>"], added["</think>"]
    reads, writes = np.array([plan, eos], np.int32), np.array([plan, eos, start], np.int32)
    arguments = (
        ctypes.c_void_p(walk.address), ctypes.c_int64(ROWS), ctypes.c_int64(WIDTH),
        ctypes.c_void_p(reads.ctypes.data), ctypes.c_int32(2), ctypes.c_void_p(writes.ctypes.data), ctypes.c_int32(3),
    )  # fmt: skip
    keep = (reads, writes)
    return lambda: (touch(*arguments), keep)


def measure(num_rounds: int, pause: float, **steps: Any) -> dict[str, Spread]:
    """ns per row of several steps, taken in turn so that the machine's drift hits all alike; seconds between the rounds."""
    rounds: dict[str, list[Round]] = {name: [] for name in steps}
    for number in range(num_rounds):
        time.sleep(pause if number else 0)
        for name, one in _round(steps).items():
            rounds[name].append(one)
    return {name: spread_of_rounds(rounds[name], "ns per row") | {"rows": ROWS, "rounds": num_rounds} for name in steps}


def _round(steps: Mapping[str, Any]) -> dict[str, Round]:
    times: dict[str, list[float]] = {name: [] for name in steps}

    def step_all() -> None:
        for repeat in range(REPEATS + 3):
            for name, step in steps.items():
                begin = time.perf_counter()
                for _ in range(STEPS):
                    step()
                if repeat >= 3:
                    times[name].append((time.perf_counter() - begin) / STEPS / ROWS * 1e9)

    _, pace = with_pace(step_all)
    return {name: (values, pace) for name, values in times.items()}


def run(num_rounds: int = 1, pause: float = 0.0) -> dict[str, Any]:
    """Measure; the answers of the walks are asserted behind it."""
    quiet, long = Walk(True, "<think>\n"), Walk(True, "<think>\n", 32_768)
    empty = Walk(False, "<think>\n\n</think>\n\nYes")
    text = Walk(False, "<think>\n")
    out = measure(
        num_rounds, pause, empty=empty.step, quiet=quiet.step, quiet_after_32768=long.step, quiet_text_markers=text.step,
        scalar_writes=scalar_writes(quiet),
    )  # fmt: skip
    seen = num_rounds * (REPEATS + 3) * STEPS
    assert quiet.rows.states[0].thinking_tokens == seen
    assert long.rows.states[0].thinking_tokens == seen + 32_768
    added = quiet.program.vocabulary.added
    assert quiet.logits[0, added["<|im_end|>"]] == quiet.logits[7, added["<think>"]] == -np.inf
    assert np.isfinite(empty.logits).all()
    out["quiet_over_scalar_writes"] = {
        "median": out["quiet"]["median"] - out["scalar_writes"]["median"], "unit": "ns per row",
    }  # fmt: skip
    out["long_over_short"] = {"median": out["quiet_after_32768"]["median"] / out["quiet"]["median"], "unit": "ratio"}
    return out


if __name__ == "__main__":
    import json

    print(json.dumps(run(), indent=2))
