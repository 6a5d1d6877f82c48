"""The command `bench`: parses and prints, the work is done beside this file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from thinkguard.errors import InputError, ThinkGuardError

PARTS = ("correctness", "step", "instructions", "start", "memory", "generate", "serve", "quality")


def add_command(commands: Any) -> None:
    """Add the parser to the subparsers of the command line."""
    bench = commands.add_parser("bench", help="what the guard costs and does, beside every alternative here")
    bench.add_argument("--quick", action="store_true", help="the short form, under two minutes: fewer parts, less of each")
    bench.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    bench.add_argument(
        "--tokenizers", type=Path, metavar="DIR", help="real ones for the cases: qwen3, qwen2.5-instruct, phi-4, olmo3-think"
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="write all figures and what every case printed")
    bench.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    from thinkguard.bench import run
    from thinkguard.bench.table import tables

    if options.tokenizers is not None and not (options.tokenizers / "qwen3").is_dir():
        raise InputError(f"--tokenizers {options.tokenizers}: holds no folder qwen3; leave it out for made tokenizers")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise InputError(f"--json {options.json}: there is no folder {options.json.parent}; make it first")
    plan = run.Plan(quick=options.quick, tokenizers=options.tokenizers)
    parts = options.parts or (run.QUICK if options.quick else PARTS)
    if options.tokenizers is not None and "correctness" not in parts:
        raise InputError(f"--tokenizers is for the part correctness, which --parts {' '.join(parts)} leaves out")
    if options.quick and (whole := [part for part in parts if part not in run.SHORTER]):
        print(f"no short form: {', '.join(whole)}", file=sys.stderr)
    begin = time.perf_counter()

    def tell(part: str) -> None:
        print(f"{time.perf_counter() - begin:6.0f} s  {part}", file=sys.stderr, flush=True)

    figures: dict[str, Any] = {"seconds": {}}
    failed = []
    for found in run.measure(parts, plan, tell):
        figures |= found | {"seconds": figures["seconds"] | found["seconds"]}
        failed += [part for part in found["seconds"] if "failed" in found[part]]
        for part, table in tables(found).items():
            print(f"\n{part}\n\n{table}", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    tell("done")
    if options.json is not None:
        print(f"{options.json}: all figures", file=sys.stderr)
    if failed:
        raise ThinkGuardError(f"{', '.join(failed)} failed, as said above; everything else was measured")
    return 0
