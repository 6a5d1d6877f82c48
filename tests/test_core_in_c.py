"""The C core on its own: the fuzz target over inputs drawn from a seed, with asserts and, where there are, sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*(ROOT / "tests" / "fuzz").glob("*.c"), *(ROOT / "csrc").glob("*.c")]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def test_drawn_inputs_break_no_invariant(tmp_path: Path) -> None:
    """Among them sequences whose counters stand at their ends: they stop there, and the loop block is not left."""
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    target = tmp_path / "fixed_inputs"
    command = [compiler, "-std=c11", "-g", "-O1", f"-I{ROOT / 'csrc'}", *map(str, SOURCES), "-lm", "-o", str(target)]
    if subprocess.run([*command, *SANITIZE], capture_output=True).returncode:  # a compiler without the sanitizers' runtime
        subprocess.run(command, check=True)
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # hosts set it
    run = subprocess.run([str(target), "20000"], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout == "20000 inputs\n"
