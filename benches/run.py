"""Measure everything, write benches/results/<machine>.json, the tables in README.md and docs/benchmarks.md, and the plots.

    python benches/run.py [--machine NAME] [--parts PART ...] [--only-table]

What a user can run without this repository, `thinkguard bench`, is in src/thinkguard/bench; beside it come the parts that
watch this project's own promises. Parts that are not measured keep the figures that the file has. Every part is held
against the run before it, if that was on a machine like this one: what lies outside both spreads is kept and shown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import date
from pathlib import Path
from typing import Any

from thinkguard.bench.commands import PARTS as USERS
from thinkguard.bench.machine import machine
from thinkguard.bench.plots import draw
from thinkguard.bench.run import Plan, measure

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "tests" / "tokenizers" / "build.py"  # real tokenizers, out of packages of the registry
ROUNDS, PAUSE = 4, 2.0  # rounds of the core's measurement, and seconds between them
sys.path.insert(0, str(HERE))

import report  # noqa: E402
from agreement import compare  # noqa: E402


def _core() -> dict[str, Any]:
    import core

    return core.run(ROUNDS, PAUSE)


def _costs() -> dict[str, Any]:
    import costs

    return costs.run()


def _vllm_v1() -> dict[str, Any]:
    import vllm_v1

    return vllm_v1.run(32)


def _audit() -> dict[str, Any]:
    import audit

    return audit.run()


def _gpu() -> dict[str, Any]:
    """All rows are "not measured", with the reason, where there is no GPU."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "gpu.json"
        subprocess.run([sys.executable, str(HERE / "gpu.py"), "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


OURS: dict[str, Callable[[], dict[str, Any]]] = {
    "core": _core, "costs": _costs, "vllm_v1": _vllm_v1, "audit": _audit, "gpu": _gpu,
}  # fmt: skip


@contextmanager
def real_tokenizers() -> Iterator[Path]:
    """The real tokenizers, built in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(BUILD), folder], check=True, stdout=subprocess.DEVNULL)
        yield Path(folder)


def measured(parts: list[str]) -> Iterator[dict[str, Any]]:
    """Measure some parts, and hand each out when it is done; on stderr stands how long they took."""
    begin = time.perf_counter()

    def tell(part: str) -> None:
        print(f"{time.perf_counter() - begin:6.0f} s  {part}", file=sys.stderr, flush=True)

    with real_tokenizers() if "correctness" in parts else nullcontext() as tokenizers:
        for new in measure([part for part in parts if part in USERS], Plan(tokenizers=tokenizers), tell):
            for part in new["seconds"]:
                if "failed" in new[part]:
                    raise RuntimeError(f"{part}: {new[part]['failed']}")
            yield new
    for part in (part for part in parts if part in OURS):
        tell(part)
        since = time.perf_counter()
        found = OURS[part]()
        yield {"machine": machine(), part: found, "seconds": {part: round(time.perf_counter() - since, 1)}}
    tell("done")


def commit() -> str:
    """The commit that is checked out, with a + where files differ from it."""
    run = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() or "not a checkout"


def added(figures: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Put a part that was measured into the file's figures, and hold it against the run before."""
    part = next(iter(new["seconds"]))
    out = figures | {"command": "make bench"} | new | {"seconds": figures.get("seconds", {}) | new["seconds"]}
    out["measured"] = figures.get("measured", {}) | {part: {"date": date.today().isoformat(), "commit": commit()}}
    out["agreement"] = dict(figures.get("agreement", {}))
    out["agreement"].pop(part, None)
    like = all(figures.get("machine", {}).get(key) == value for key, value in new["machine"].items() if key != "load")
    if part in figures and like:
        out["agreement"][part] = compare(part, figures[part], new[part])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="cpu-2-cores", help="name of the result file")
    parts = [*OURS, *USERS]
    parser.add_argument("--parts", nargs="*", choices=parts, default=parts, help="what to measure (default: everything)")
    parser.add_argument("--only-table", action="store_true", help="rewrite tables and plots from the file that is there")
    options = parser.parse_args()
    file = report.RESULTS / f"{options.machine}.json"
    if not options.only_table:
        figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        file.parent.mkdir(exist_ok=True)
        for new in measured(options.parts):  # written at once: a part that fails takes no other with it
            figures = added(figures, new)
            file.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    figures = json.loads(file.read_text(encoding="utf-8"))
    if missing := [part for part in parts if part not in figures]:
        parser.exit(1, f"{file.name} lacks {', '.join(missing)}: the tables are not rewritten\n")
    report.write(figures)
    for picture in draw(figures, report.PAGE.parent / "plots"):
        print(picture.relative_to(ROOT))


if __name__ == "__main__":
    main()
