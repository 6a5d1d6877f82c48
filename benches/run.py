"""Measure everything, write benches/results/<machine>.json, and rewrite the table in the README from it.

    python benches/run.py [--machine NAME] [--parts step costs vllm_v1 audit] [--only-table]

Parts that are not measured keep the figures that the file has.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
README = HERE.parent / "README.md"
ROUNDS, PAUSE = 5, 4.0  # rounds of the step's measurement, and seconds between them
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def machine() -> dict[str, Any]:
    """What the figures were measured on, in words that name no host."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    model = found[1] if found else model
    import numpy
    import torch
    import transformers

    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load": os.getloadavg()[0],
    }


def _step() -> dict[str, Any]:
    """Clocks wander: of several rounds the one is kept in which the bare memory accesses were fastest."""
    import step

    rounds = []
    for _ in range(ROUNDS):
        rounds.append(step.run())
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


MEASURE = {"step": _step, "costs": _costs, "vllm_v1": _vllm_v1, "audit": _audit}
PARTS = list(MEASURE)


def table(figures: dict[str, Any]) -> str:
    """The README's table, every number from the JSON."""
    step, costs = figures["step"], figures["costs"]
    compile_, call = costs["compile"], costs["hf_call"]

    def spread(entry: dict[str, Any], digits: int = 0) -> str:
        return f"{entry['min']:.{digits}f} .. {entry['median']:.{digits}f} {entry['unit']}"

    def ms(entry: dict[str, Any]) -> str:
        return f"{entry['min']:.0f} .. {entry['median']:.0f} ms"

    served = figures["vllm_v1"]["warm"]["1024"]
    longer = figures["vllm_v1"]["long_over_short"]["median"]
    rows = [
        ("empty step (answer, nothing to edit)", spread(step["empty"], 1)),
        ("quiet step (thinking: EOS moved, start banned)", spread(step["quiet"], 1)),
        ("... the scalar memory accesses of it alone", spread(step["scalar_writes"], 1)),
        ("... after 32,768 thinking tokens, against none", f"{step['long_over_short']['median']:.2f} times"),
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
    ]
    where = figures["machine"]
    versions = f"Python {where['python']}, torch {where['torch']}"
    about = f"{where['cpu']}, {where['cores']} cores, {versions}; best .. median of `make bench`, which asserts its answers"
    lines = ["| what | cost |", "|---|---|", *(f"| {what} | {cost} |" for what, cost in rows), "", f"*{about}.*"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="cpu-2-cores", help="name of the result file")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="what to measure (default: everything)")
    parser.add_argument("--only-table", action="store_true", help="rewrite the README's table from the file that is there")
    options = parser.parse_args()
    file = HERE / "results" / f"{options.machine}.json"
    if not options.only_table:
        figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        figures |= {"command": "make bench", "machine": machine()} | {part: MEASURE[part]() for part in options.parts}
        figures = json.loads(json.dumps(figures))
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    written = table(json.loads(file.read_text(encoding="utf-8")))
    README.write_text(f"{text[:begin]}\n{written}\n{text[end:]}", encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
