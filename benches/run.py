"""Measure everything, write benches/results/<machine>.json, the tables in README.md and docs/benchmarks.md, and the plots.

    python benches/run.py [--machine NAME] [--parts PART ...] [--only-table]

What a user can run without this repository, `thinkguard bench`, is in src/thinkguard/bench; beside it come the parts that
watch this project's own promises. Parts that are not measured keep the figures that the file has.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thinkguard.bench.commands import PARTS as USERS
from thinkguard.bench.machine import PACKAGES, machine
from thinkguard.bench.plots import draw
from thinkguard.bench.run import Plan, measure
from thinkguard.bench.table import markdown, tables

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS, README, PAGE = HERE / "results", ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
BUILD = ROOT.parent / "shared" / "tokenizers" / "build.py"  # real tokenizers, beside the repository
ROUNDS, PAUSE = 5, 4.0  # rounds of the core's measurement, and seconds between them
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
sys.path.insert(0, str(HERE))


def _core() -> dict[str, Any]:
    """Clocks wander: of several rounds the one is kept in which the bare memory accesses were fastest."""
    import core

    rounds = []
    for _ in range(ROUNDS):
        rounds.append(core.run())
        time.sleep(PAUSE)
    best = min(rounds, key=lambda one: one["scalar_writes"]["median"])
    best["rounds"] = {"num": ROUNDS, "scalar_writes_medians": [one["scalar_writes"]["median"] for one in rounds]}
    return best


def _costs() -> dict[str, Any]:
    import costs

    return costs.run()


def _vllm_v1() -> dict[str, Any]:
    import vllm_v1

    return vllm_v1.run(32)


def _audit() -> dict[str, Any]:
    import audit

    return audit.run()


OURS: dict[str, Callable[[], dict[str, Any]]] = {"core": _core, "costs": _costs, "vllm_v1": _vllm_v1, "audit": _audit}


@contextmanager
def real_tokenizers() -> Iterator[Path | None]:
    """The real tokenizers, built in a temporary folder; None where they are not beside the repository."""
    if not BUILD.is_file():
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(BUILD), folder], check=True, stdout=subprocess.DEVNULL)
        yield Path(folder)


def measured(parts: list[str]) -> Iterator[dict[str, Any]]:
    """Measure some parts, and hand each out when it is done; on stderr stands how long they took."""
    begin = time.perf_counter()

    def tell(part: str) -> None:
        print(f"{time.perf_counter() - begin:6.0f} s  {part}", file=sys.stderr, flush=True)

    with real_tokenizers() as tokenizers:
        for part in parts:
            if part in USERS:
                yield measure([part], Plan(tokenizers=tokenizers), tell)
                continue
            tell(part)
            since = time.perf_counter()
            found = OURS[part]()
            yield {"machine": machine(), part: found, "seconds": {part: round(time.perf_counter() - since, 1)}}
    tell("done")


def _about(figures: dict[str, Any]) -> str:
    where = figures["machine"]
    versions = ", ".join(f"{name} {where[name]}" for name in PACKAGES[1:] if name in where)
    return f"*{where['cpu']}, {where['cores']} cores, Python {where['python']}; {versions}; `{figures['command']}`*"


def costs_table(figures: dict[str, Any]) -> str:
    """What the project watches over itself, every number from the JSON."""
    core, costs, audit = figures["core"], figures["costs"], figures["audit"]
    compile_, call = costs["compile"], costs["hf_call"]

    def spread(entry: dict[str, Any], digits: int = 0) -> str:
        return f"{entry['min']:.{digits}f} .. {entry['median']:.{digits}f} {entry['unit']}"

    def ms(entry: dict[str, Any]) -> str:
        return f"{entry['min']:.0f} .. {entry['median']:.0f} ms"

    served = figures["vllm_v1"]["warm"]["1024"]
    longer = figures["vllm_v1"]["long_over_short"]["median"]
    rows = [
        ("empty step (answer, nothing to edit)", spread(core["empty"], 1)),
        ("quiet step (thinking: EOS moved, start banned)", spread(core["quiet"], 1)),
        ("... the scalar memory accesses of it alone", spread(core["scalar_writes"], 1)),
        ("... after 32,768 thinking tokens, against none", f"{core['long_over_short']['median']:.2f} times"),
        ("`ThinkLogitsProcessor`, attached, batch 1", spread(call["guarded"], 1)),
        ("... a processor that returns its scores", spread(call["returns"], 1)),
        ("vLLM V1, a step of 32 requests with 1,024 thinking tokens each", spread(served["thinkguard"], 1)),
        ("... vLLM's own thinking budget, same process", f"{spread(served['vllm'])}: {served['ratio']:.0f} times ours"),
        ("... ours with 32,768 tokens each, against 128", f"{longer:.2f} times"),
        ("vLLM V2 and `generate()` on a GPU", "not measured: no GPU has run it yet"),
        ("compile, 151,936 tokens, markers as tokens", ms(compile_["token markers"])),
        ("... markers as text", ms(compile_["text markers"])),
        ("a new policy with a message", spread(compile_["new policy"])),
        ("a program's tables, 151,936 tokens", f"{compile_['token markers']['program_bytes'] / 1e6:.1f} MB"),
        ("`import thinkguard`", ms(costs["import"]["package"])),
        ("`from thinkguard import *`", ms(costs["import"]["all names"])),
        ("... numpy's own import alone", ms(costs["import"]["numpy alone"])),
        *_audited(audit),
    ]
    return markdown(["what", "cost"], rows)


def _audited(audit: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of `thinkguard audit`: records of 2 KB a second, on two processes, their start included."""
    names = {"plain": "`thinkguard audit`, records of 2 KB", "tokens": "... with their tokens counted"}
    return [(what, f"{audit[key]['by_the_clock']:,.0f} a second on two cores") for key, what in names.items()]


def readme(figures: dict[str, Any]) -> str:
    """The README's part: what the guard does beside the alternatives, and what it costs."""
    made = tables(figures)
    return "\n\n".join(
        [
            "What comes of each case (`right`, `wrong`, or `cannot` be asked of it; n/m runs), all run by `make bench`:",
            made["correctness"],
            "What it costs, best .. median; the whole of it, also where an alternative is cheaper, is in "
            "[docs/benchmarks.md](docs/benchmarks.md):",
            costs_table(figures),
            _about(figures),
        ]
    )


def page(figures: dict[str, Any]) -> str:
    """The part of docs/benchmarks.md that is measured."""
    made = tables(figures)
    cases = "\n".join(f"- **{name}**: {wanted}" for name, wanted in figures["correctness"]["cases"].items())
    paths = [
        [name, told.get("version", ""), f"`{told['path']}`" if "path" in told else f"cannot: {told['cannot']}"]
        for name, told in figures["correctness"]["alternatives"].items()
    ]
    sections = {
        "The alternatives, and where their hosts call them": markdown(["", "version", "called as in"], paths),
        "Correctness": f"{made['correctness']}\n\n{cases}",
        "Cost of a step": f"{made['step']}\n\n![Time of a step against the length of the thinking](plots/step.svg)",
        "Instructions of a step": made["instructions"],
        "Cost of starting": made["start"],
        "Tokens a second of `generate()`": made["generate"],
        "Tokens a second of vLLM's V1 engine on the CPU": made["serve"],
        "Quality under a budget": f"{made['quality']}\n\n![Right answers and well-formed outputs](plots/quality.svg)",
        "On a GPU": "Not measured: no GPU has run it yet. `make bench-gpu` measures there.",
    }
    return "\n\n".join([_about(figures), *(f"## {title}\n\n{text}" for title, text in sections.items())])


def write_between(path: Path, text: str) -> None:
    """Replace what stands between the marks of a file."""
    old = path.read_text(encoding="utf-8")
    begin, end = old.index(BEGIN) + len(BEGIN), old.index(END)
    path.write_text(f"{old[:begin]}\n{text}\n{old[end:]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="cpu-2-cores", help="name of the result file")
    parts = [*OURS, *USERS]
    parser.add_argument("--parts", nargs="*", choices=parts, default=parts, help="what to measure (default: everything)")
    parser.add_argument("--only-table", action="store_true", help="rewrite tables and plots from the file that is there")
    options = parser.parse_args()
    file = RESULTS / f"{options.machine}.json"
    if not options.only_table:
        figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        file.parent.mkdir(exist_ok=True)
        for new in measured(options.parts):  # written at once: a part that fails takes no other with it
            seconds = figures.get("seconds", {}) | new["seconds"]
            figures |= {"command": "make bench"} | new | {"seconds": seconds}
            file.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    figures = json.loads(file.read_text(encoding="utf-8"))
    if missing := [part for part in parts if part not in figures]:
        parser.exit(1, f"{file.name} lacks {', '.join(missing)}: the tables are not rewritten\n")
    write_between(README, readme(figures))
    write_between(PAGE, page(figures))
    for picture in draw(figures, PAGE.parent / "plots"):
        print(picture.relative_to(ROOT))


if __name__ == "__main__":
    main()
