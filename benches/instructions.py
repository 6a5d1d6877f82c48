"""Instructions of a step, counted by valgrind: the figure that a busy or another machine does not move.

    valgrind --tool=callgrind --instr-atstart=no --collect-atstart=no python -m benches.instructions LIBRARY ...

Every alternative is set up, started and stepped in one process under callgrind, which counts only where it is told to:
around the steps that `benches/test_counts.py` times beside it. The logits are narrow, so that what is counted is the
decision and not the width of a row.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from benches.alternatives.alternative import Alternative, Cannot, loaded, set_up
from benches.measuring import one_thread
from benches.setting import Setting, make_tokenizer
from benches.stepping import KINDS, NOTHING, Point, Walk, bring

ROWS: Final = 32
VOCAB_SIZE: Final = 2048
LENGTHS: Final = (128, 1024)  # thinking tokens so far
UNKNOWN: Final = {  # to valgrind
    "llguidance grammar": "its mask kernel is compiled for the very processor, with instructions that valgrind does not know"
}
_STEPS: Final = 2  # of each kind and length
Counts = dict[tuple[str, int, str], list[float]]
"""(alternative, length, kind of step) -> instructions a row of each step that was counted."""
_REQUESTS: Final = """\
#include <valgrind/callgrind.h>
void on(void) { CALLGRIND_START_INSTRUMENTATION; }
void begin(void) { CALLGRIND_ZERO_STATS; CALLGRIND_TOGGLE_COLLECT; }
void end(const char *name) { CALLGRIND_TOGGLE_COLLECT; CALLGRIND_DUMP_STATS_AT(name); }
"""


def run(names: Sequence[str]) -> Counts:
    """Count. RuntimeError, where valgrind or a compiler is missing."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        library, out = folder / "requests.so", folder / "windows.json"
        if reason := build(library):
            raise RuntimeError(reason)
        counts = counted(["-m", __name__, str(library), "--json", str(out), "--only", *names], folder)
        steps = json.loads(out.read_text(encoding="utf-8"))
    return {(name, length, kind): [counts[window] / ROWS for window in windows] for name, length, kind, windows in steps}


def build(library: Path) -> str:
    """Compile what a process tells valgrind that runs it. Returns why that cannot be, or nothing."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if shutil.which("valgrind") is None or compiler is None:
        return f"{'a C compiler' if compiler is None else 'valgrind'} is not installed"
    source = library.with_suffix(".c")
    source.write_text(_REQUESTS, encoding="utf-8")
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"valgrind's own header was not compiled: {done.stderr.strip()[:300]}" if done.returncode else ""


def counted(program: Sequence[str], folder: Path) -> dict[str, int]:
    """Run Python under callgrind; returns the instructions of each of its windows, by name."""
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--collect-atstart=no"]
    command += [f"--callgrind-out-file={folder / 'dump'}", sys.executable, *program]
    env = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}: {done.stderr[-2000:]}")
    return dict(map(_count, folder.glob("dump.*")))


def _count(dump: Path) -> tuple[str, int]:
    """(the name that the window was given, instructions in it)"""
    text = dump.read_text(encoding="utf-8")
    named = re.search(r"^desc: Trigger: Client Request: (\S+)$", text, re.M)
    total = re.search(r"^totals: (\d+)$", text, re.M)
    return (named[1] if named else dump.name), int(total[1]) if total else 0


def walked(setting: Setting, made: Mapping[str, Alternative], window: Callable[[Callable[[], None]], str]) -> Iterator[Any]:
    """Bring every alternative through its steps. Yields (alternative, length, kind, names of the windows)."""
    import torch

    logits = torch.randn(ROWS, setting.width, generator=torch.Generator().manual_seed(0))
    for length in LENGTHS:
        for name, alternative in made.items():
            walk = Walk(alternative, name, setting, Point(setting.width, ROWS, length), logits)
            for kind in KINDS[: 2 if name == NOTHING else 3]:
                steps, windows = bring(walk, kind), []
                for _ in range(_STEPS):
                    token = steps.prepare()
                    windows.append(window(partial(steps.step, token)))
                steps.check()
                yield name, length, kind, windows


class Windows:
    """Counts what it is given to run; each window is a dump of valgrind's, whose name is returned."""

    def __init__(self, library: Path) -> None:
        self.requests, self.num = ctypes.CDLL(str(library)), 0
        self.requests.on()  # once: switching it throws away all that valgrind has translated

    def __call__(self, counted: Callable[[], None]) -> str:
        """Run a step under a count of its own."""
        self.num += 1
        self.requests.begin()
        counted()
        self.requests.end(str(self.num).encode())
        return str(self.num)


def main() -> None:
    """Walk all steps, in a process that callgrind runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="*", required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, one_thread():
        setting = Setting.load(make_tokenizer(Path(folder), VOCAB_SIZE, marker_tokens=True))
        found = {name: set_up(cls, setting) for name, cls in loaded(options.only)}
        made = {name: alternative for name, alternative in found.items() if not isinstance(alternative, Cannot)}
        steps = list(walked(setting, made, Windows(options.library)))
    options.json.write_text(json.dumps(steps), encoding="utf-8")


if __name__ == "__main__":
    main()
