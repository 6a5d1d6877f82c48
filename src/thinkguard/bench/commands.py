"""The command `bench`: this file parses and prints, the work is done beside it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

FINE = 0


def add_command(commands: Any, positive: Callable[[str], int]) -> None:
    """Add the parser to the subparsers of the command line."""
    bench = commands.add_parser("bench", help="tokens a second of a model of yours in generate(), alone and guarded")
    bench.add_argument("--model", required=True, metavar="PATH", help="a model's folder, or a name that transformers finds")
    bench.add_argument("--batch", type=positive, default=1, metavar="N", help="outputs made at once (default: 1)")
    bench.add_argument(
        "--new-tokens", type=positive, default=128, metavar="N", help="of each output; half is the budget (default: 128)"
    )
    bench.add_argument(
        "--pairs", type=positive, default=12, metavar="N", help="two runs alone and two guarded in each (default: 12)"
    )
    bench.add_argument("--device", metavar="NAME", help="as torch names it (default: cuda, mps or cpu, the first there is)")
    bench.add_argument("--format", metavar="NAME", help="the family's name (default: detected)")
    bench.add_argument("--json", action="store_true", help="print JSON, with the seconds of each pair")
    bench.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    from transformers.utils import logging

    from thinkguard.bench.generate import measure
    from thinkguard.bench.result import Plan

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    plan = Plan(
        model=options.model,
        batch=options.batch,
        new_tokens=options.new_tokens,
        pairs=options.pairs,
        device=options.device,
        format=options.format,
    )
    result = measure(plan, lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(result.as_dict(), ensure_ascii=False, indent=2) if options.json else result.as_text())
    return FINE
