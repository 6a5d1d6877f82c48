"""Instructions of a step, counted by valgrind: the figure that a busy or another machine does not move.

    python -m thinkguard.bench.instructions KIND NUM_STEPS    # what is counted

The same program is run with few and with many steps; the difference is that of the steps alone. numpy carries the logits,
so that no torch is loaded under valgrind.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from thinkguard import ThinkFormat, ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard._core import RowBatch

KINDS: Final = ("answer", "thinking", "forced")
ROWS: Final = 64
WIDTH: Final = 1024
_STEPS: Final = (20, 120)
_BUDGET: Final = 2**29


def run() -> dict[str, Any]:
    """Count. Returns {"unit", "rows", "width", kind: instructions per row and step}, or {"cannot": why}."""
    if shutil.which("valgrind") is None:
        return {"cannot": "valgrind is not installed"}
    found: dict[str, Any] = {"unit": "instructions per row and step", "rows": ROWS, "width": WIDTH}
    for kind in KINDS:
        few, many = (_counted(kind, steps) for steps in _STEPS)
        found[kind] = (many - few) / (_STEPS[1] - _STEPS[0]) / ROWS
    return found


def _counted(kind: str, num_steps: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={Path(folder) / 'out'}", sys.executable]
        command += ["-m", __name__, kind, str(num_steps)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    told = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or told is None:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}: {done.stderr[-800:]}")
    return int(told[1])


def vocabulary() -> Vocabulary:
    """Bytes, the two markers and the controls of a chat as one token each."""
    pieces = [bytes([byte]) for byte in range(256)]
    names = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    added = {name: len(pieces) + number for number, name in enumerate(names)}
    return Vocabulary.from_parts(pieces, added=added, special=[256, 257], eos_ids=[257])


def walk(kind: str, num_steps: int) -> RowBatch:
    """Step 64 rows that stand in the thinking, in the answer, or behind their budget, `num_steps` times."""
    program = ThinkProgram(ThinkFormat.from_name("think"), vocabulary())
    encode, added = program.vocabulary.encode, program.vocabulary.added
    close = "</think>" if kind == "answer" else ""
    message = "x" * (max(_STEPS) + 2) if kind == "forced" else ""  # each of its tokens is forced
    budget = 0 if kind == "forced" else _BUDGET
    policy = ThinkPolicy(max_thinking_tokens=budget, close_message=message)
    row = program.start(encode(f"<|im_start|>assistant\n<think>\n{close}{'Yes' if close else ''}"), policy)
    rows = RowBatch([row.copy() for _ in range(ROWS)])
    logits = np.zeros((ROWS, WIDTH), np.float32)
    tokens = np.full(ROWS, ord("x"), np.int64)
    for _ in range(num_steps):
        rows.advance(tokens)
        program.apply(rows, logits)
    eos = added["<|im_end|>"]
    if kind == "forced":
        assert np.isfinite(logits).sum() == ROWS, "one token is left in each row"
    else:
        assert (logits[:, eos] == -np.inf).all() == (kind == "thinking")
    return rows


if __name__ == "__main__":
    walk(sys.argv[1], int(sys.argv[2]))
