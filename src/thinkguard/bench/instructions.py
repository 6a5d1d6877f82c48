"""Instructions of a step, counted by valgrind: the figure that a busy or another machine does not move.

    valgrind --tool=callgrind --instr-atstart=no --collect-atstart=no python -m thinkguard.bench.instructions LIBRARY ...

Every alternative is set up, started and stepped in one process under callgrind, which counts only where it is told to:
around the steps that `thinkguard.bench.step` times elsewhere. The logits are narrow, so that what is counted is the
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
from pathlib import Path
from typing import Any, Final

from thinkguard.bench import step
from thinkguard.bench.alternatives.alternative import Alternative, Cannot, loaded, set_up
from thinkguard.bench.setting import Setting, make_tokenizer
from thinkguard.bench.timing import one_thread, spread

ROWS: Final = 32
LENGTHS: Final = (128, 1024)  # thinking tokens so far
_VOCAB_SIZE: Final = 2048
_STEPS: Final = 2  # of each kind and length
_UNKNOWN: Final = {  # to valgrind
    "llguidance grammar": "its mask kernel is compiled for the very processor, with instructions that valgrind does not know"
}
_UNIT: Final = "instructions per row and step"
_REQUESTS: Final = """\
#include <valgrind/callgrind.h>
void on(void) { CALLGRIND_START_INSTRUMENTATION; }
void begin(void) { CALLGRIND_ZERO_STATS; CALLGRIND_TOGGLE_COLLECT; }
void end(const char *name) { CALLGRIND_TOGGLE_COLLECT; CALLGRIND_DUMP_STATS_AT(name); }
"""


def run(names: Sequence[str]) -> dict[str, Any]:
    """Count. Returns {"rows": [{"alternative", "length", "kind", spread}], "width", "batch"}, or {"cannot": why}."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        library, out = folder / "requests.so", folder / "windows.json"
        if reason := build(library):
            return {"cannot": reason}
        known = [name for name in names if name not in _UNKNOWN]
        counts = counted(["-m", __name__, str(library), "--json", str(out), "--only", *known], folder)
        rows = [_row(told, counts) for told in json.loads(out.read_text(encoding="utf-8"))]
        rows += [{"alternative": name, "cannot": why} for name, why in _UNKNOWN.items() if name in names]
    return {"rows": rows, "width": _VOCAB_SIZE, "batch": ROWS}


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


def _row(told: dict[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """What a window counted takes the window's place."""
    windows = told.pop("windows", None)
    return told if windows is None else {**told, **spread([counts[f"{number:.0f}"] / ROWS for number in windows], _UNIT)}


def walked(
    setting: Setting, made: Mapping[str, Alternative], meter: step.Meter, lengths: Sequence[int] = LENGTHS
) -> Iterator[dict[str, Any]]:
    """Bring every alternative through its steps. Each row's "windows" are the meter's values."""
    import torch

    logits = torch.randn(ROWS, setting.width, generator=torch.Generator().manual_seed(0))
    said = step.words(setting, max(lengths) + step.MORE)
    for length in lengths:
        for name, alternative in made.items():
            point = step.Point(setting.width, ROWS, length)
            found = step.walk(alternative, name, setting, point, said, logits, meter, _enough)
            for kind, windows in found.items():
                yield {"alternative": name, "length": length, "kind": kind, "windows": windows}


def _enough(costs: Sequence[float], taken: float) -> bool:
    return len(costs) == _STEPS


class Windows:
    """A meter whose values are the numbers of valgrind's dumps."""

    def __init__(self, library: Path) -> None:
        self.requests, self.num = ctypes.CDLL(str(library)), 0
        self.requests.on()  # once: switching it throws away all that valgrind has translated

    def __call__(self, counted: Callable[[], None]) -> float:
        """Run a step under a count of its own."""
        self.num += 1
        self.requests.begin()
        counted()
        self.requests.end(str(self.num).encode())
        return self.num


def main() -> None:
    """Walk all steps, in a process that callgrind runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="*", required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    made: dict[str, Alternative] = {}
    with tempfile.TemporaryDirectory() as folder, one_thread():
        setting = Setting.load(make_tokenizer(Path(folder), _VOCAB_SIZE, marker_tokens=True))
        for name, cls in loaded(options.only):
            alternative = set_up(cls, setting)
            if isinstance(alternative, Cannot):
                rows.append({"alternative": name, "cannot": str(alternative)})
            else:
                made[name] = alternative
        rows += walked(setting, made, Windows(options.library))
    options.json.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
