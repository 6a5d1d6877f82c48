"""All parts of the benchmark, in the order in which a reader wants them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from thinkguard.bench.alternatives.alternative import MODULES, Alternative, Cannot, loaded
from thinkguard.bench.machine import machine
from thinkguard.bench.setting import Setting, make_tokenizer
from thinkguard.errors import ThinkGuardError

BIG: Final = 151_936
_INTERPRETED: Final = "vLLM V2 budget"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, and with what."""

    quick: bool = False
    tokenizers: Path | None = None  # a folder of real tokenizers, for the correctness cases


def measure(parts: Sequence[str], plan: Plan, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure some of PARTS. Returns {"machine", "seconds" by part, part: its figures}.

    `tell` is called as each part begins.
    """
    figures: dict[str, Any] = {"machine": machine(), "seconds": {}}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            tell(part)
            begin = time.perf_counter()
            figures[part] = PARTS[part](plan, Path(folder))
            figures["seconds"][part] = round(time.perf_counter() - begin, 1)
    return figures


def _classes(rows: list[dict[str, Any]]) -> dict[str, type[Alternative]]:
    """All alternatives that can be timed here; why others cannot goes into `rows`."""
    found = {}
    for name, cls in loaded(name for name in MODULES if name != _INTERPRETED):
        if isinstance(cls, Cannot):
            rows.append({"alternative": name, "cannot": str(cls)})
        else:
            found[name] = cls
    return found


def _setting(folder: Path, vocab_size: int) -> Setting:
    """A made tokenizer of that size with marker tokens, in `folder`."""
    place = folder / str(vocab_size)
    if not place.exists():
        make_tokenizer(place, vocab_size, marker_tokens=True)
    return Setting.load(place, vocab_size)


def _own_process(module: str, arguments: Sequence[str], folder: Path, **environment: str) -> dict[str, Any]:
    """Return what a module beside this file, run by itself, writes to its `--json`."""
    out = folder / f"{module}.json"
    command = [sys.executable, "-m", f"{__package__}.{module}", "--json", str(out), *arguments]
    env = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ThinkGuardError(f"{' '.join(command[1:])} exited with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def _correctness(plan: Plan, folder: Path) -> dict[str, Any]:
    """vLLM V2's kernels are interpreted, which is settled before Triton is imported."""
    # Interpreted kernels take half of the time, which the short form does not have.
    arguments = ["--quick", "--only", *(name for name in MODULES if name != _INTERPRETED)] if plan.quick else []
    arguments += [] if plan.tokenizers is None else ["--tokenizers", str(plan.tokenizers)]
    return _own_process("correctness", arguments, folder, TRITON_INTERPRET="1")


def _step(plan: Plan, folder: Path) -> dict[str, Any]:
    from thinkguard.bench import step

    rows: list[dict[str, Any]] = []
    classes, where = _classes(rows), step.points(quick=plan.quick)
    settings = {point.vocab_size: _setting(folder, point.vocab_size) for point in where}
    return {"rows": rows + step.run(settings, classes, where, 0.1 if plan.quick else 0.25)}


def _start(plan: Plan, folder: Path) -> dict[str, Any]:
    from thinkguard.bench import start

    rows: list[dict[str, Any]] = []
    classes = _classes(rows)
    return {"vocab_size": BIG, "rows": rows + start.run(_setting(folder, BIG), classes, repeats=1 if plan.quick else 3)}


def _instructions(plan: Plan, folder: Path) -> dict[str, Any]:
    from thinkguard.bench import instructions

    return instructions.run()


def _generate(plan: Plan, folder: Path) -> dict[str, Any]:
    from thinkguard.bench import generating

    small = generating.run([generating.embedded(1), generating.embedded(8)], pairs=4 if plan.quick else 12)
    if plan.quick:
        return {"rows": small}
    return {"rows": [*small, *generating.run([generating.random_weights(_setting(folder, BIG), 8)], pairs=6)]}


def _serve(plan: Plan, folder: Path) -> dict[str, Any]:
    return _own_process("serving", ["--batch", "8", "--pairs", "12"], folder)


def _quality(plan: Plan, folder: Path) -> dict[str, Any]:
    from thinkguard.bench import quality

    return quality.run(48, (20, 60, 120)) if plan.quick else quality.run(128)


PARTS: Final[dict[str, Callable[[Plan, Path], dict[str, Any]]]] = {
    "correctness": _correctness,
    "step": _step,
    "start": _start,
    "instructions": _instructions,
    "generate": _generate,
    "serve": _serve,
    "quality": _quality,
}
QUICK: Final = ("correctness", "step", "generate", "quality")
"""Parts of the short form."""
