"""All parts of the benchmark: those that count side by side, those that watch the clock alone, one behind the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from thinkguard.bench import memory
from thinkguard.bench.alternatives.alternative import MODULES, Alternative, Cannot, loaded
from thinkguard.bench.correctness import INTERPRETED, merged
from thinkguard.bench.machine import machine
from thinkguard.bench.setting import Setting, make_tokenizer
from thinkguard.errors import ThinkGuardError

BIG: Final = 151_936


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, and with what."""

    quick: bool = False
    tokenizers: Path | None = None  # a folder of real tokenizers, for the correctness cases


def measure(parts: Sequence[str], plan: Plan, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Measure some of PARTS, and hand each out when it is done: {"machine", "seconds": {part: how long}, part: figures}.

    `tell` is called as parts begin. Those of COUNTED come first and share the processor, two at a time. A part that fails
    takes no other with it: its figures are {"failed": why}.
    """
    with tempfile.TemporaryDirectory() as made, ThreadPoolExecutor(2) as pool:
        folder = Path(made)
        begun: dict[str, Future[dict[str, Any]]] = {}
        for part in (part for part in COUNTED if part in parts):
            tell(part)
            begun[part] = pool.submit(_measured, part, plan, folder)
        try:
            for waited in begun.values():
                yield waited.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        for part in (part for part in parts if part not in begun):
            tell(part)
            yield _measured(part, plan, folder)


def _measured(part: str, plan: Plan, folder: Path) -> dict[str, Any]:
    begin = time.perf_counter()
    try:
        figures = PARTS[part](plan, folder)
    except Exception as error:
        figures = {"failed": f"{type(error).__name__}: {error}"}
    return {"machine": machine(), part: figures, "seconds": {part: round(time.perf_counter() - begin, 1)}}


def _classes(rows: list[dict[str, Any]]) -> dict[str, type[Alternative]]:
    """All alternatives that can be timed here; why others cannot goes into `rows`."""
    found = {}
    for name, cls in loaded(name for name in MODULES if name != INTERPRETED):
        if isinstance(cls, Cannot):
            rows.append({"alternative": name, "cannot": str(cls)})
        else:
            found[name] = cls
    return found


def _tokenizer(folder: Path, vocab_size: int) -> Path:
    """A made tokenizer of that size with marker tokens, in `folder`: made once for all parts."""
    place = folder / str(vocab_size)
    return place if place.exists() else make_tokenizer(place, vocab_size, marker_tokens=True)


def _setting(folder: Path, vocab_size: int) -> Setting:
    return Setting.load(_tokenizer(folder, vocab_size), vocab_size)


def _own_process(module: str, arguments: Sequence[str], out: Path, **environment: str) -> dict[str, Any]:
    """Return what a module beside this file, run by itself, writes to its `--json`."""
    command = [sys.executable, "-m", f"{__package__}.{module}", "--json", str(out), *arguments]
    env = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ThinkGuardError(f"{' '.join(command[1:])} exited with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def _correctness(plan: Plan, folder: Path) -> dict[str, Any]:
    """In two processes: whether vLLM V2's kernels are interpreted is settled before Triton is imported."""
    others = [name for name in MODULES if name != INTERPRETED]
    # Interpreted kernels take half of the time, which the short form does not have.
    eager = {"TORCHDYNAMO_DISABLE": "1"}  # llguidance compiles its mask, for speed alone
    groups: list[tuple[list[str], dict[str, str]]] = [(others, eager)]
    groups += [] if plan.quick else [([INTERPRETED], {"TRITON_INTERPRET": "1"})]
    arguments = ["--quick"] * plan.quick
    arguments += [] if plan.tokenizers is None else ["--tokenizers", str(plan.tokenizers)]

    def found(names: list[str], environment: dict[str, str]) -> dict[str, Any]:
        out = folder / f"correctness-{len(names)}.json"
        return _own_process("correctness", [*arguments, "--only", *names], out, **environment)

    with ThreadPoolExecutor() as pool:
        return merged([waited.result() for waited in [pool.submit(found, *group) for group in groups]])


def _memory(plan: Plan, folder: Path) -> dict[str, Any]:
    """In processes of their own, from which others are forked: no threads run in them."""
    names = [name for name in MODULES if name != INTERPRETED]
    arguments = [str(_tokenizer(folder, BIG)), "--width", str(BIG), "--only", *names]
    return memory.merged([_own_process("memory", arguments, folder / f"memory-{number}.json") for number in range(3)])


def _instructions(plan: Plan, folder: Path) -> dict[str, Any]:
    from thinkguard.bench import instructions

    return instructions.run([name for name in MODULES if name != INTERPRETED])


def _step(plan: Plan, folder: Path) -> dict[str, Any]:
    from thinkguard.bench import step

    rows: list[dict[str, Any]] = []
    classes, where = _classes(rows), step.points(quick=plan.quick)
    settings = {point.vocab_size: _setting(folder, point.vocab_size) for point in where}
    return {"rows": rows + step.run(settings, classes, where, *((0.1, 1) if plan.quick else (0.25, 2)))}


def _start(plan: Plan, folder: Path) -> dict[str, Any]:
    from thinkguard.bench import start

    rows: list[dict[str, Any]] = []
    classes = _classes(rows)
    return {"vocab_size": BIG, "rows": rows + start.run(_setting(folder, BIG), classes, repeats=1 if plan.quick else 3)}


def _generate(plan: Plan, folder: Path) -> dict[str, Any]:
    from thinkguard.bench import generating

    small = generating.run([generating.embedded(1), generating.embedded(8)], pairs=4 if plan.quick else 32)
    if plan.quick:
        return {"rows": small}
    return {"rows": [*small, *generating.run([generating.random_weights(_setting(folder, BIG), 8)], pairs=10)]}


def _serve(plan: Plan, folder: Path) -> dict[str, Any]:
    return _own_process("serving", ["--batch", "8", "--pairs", "32"], folder / "serve.json")


def _quality(plan: Plan, folder: Path) -> dict[str, Any]:
    from thinkguard.bench import quality

    return quality.run(32, (20, 80)) if plan.quick else quality.run(128)


PARTS: Final[dict[str, Callable[[Plan, Path], dict[str, Any]]]] = {
    "correctness": _correctness,
    "step": _step,
    "instructions": _instructions,
    "start": _start,
    "memory": _memory,
    "generate": _generate,
    "serve": _serve,
    "quality": _quality,
}
"""In the order in which a reader wants them."""
COUNTED: Final = ("instructions", "correctness", "memory", "quality")
"""Parts that watch no clock, the longest first."""
QUICK: Final = ("correctness", "step", "generate", "quality")
"""Parts of the short form."""
SHORTER: Final = (*QUICK, "start")
"""Parts that `Plan.quick` makes shorter."""
