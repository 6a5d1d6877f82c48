"""Ask the laboratory's models a batch of held-out questions under one policy after the other, and count what came of it.

    python -m benches.quality [--models base,think-text] [--policies alone,hard:48,line:48] [--prompts 32] [--seeds 1]
                              [--out FILE] [--write] [--show 4]

The table goes to stdout, what is under way to stderr. Everything is asked greedily and, for each seed, sampled at T = 0.7
with noise that all policies share. Needs `make lab`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benches.quality.counting import counted, table
from benches.quality.lab import place
from benches.quality.tasks.draw import tasks
from benches.quality.ways import CAP, FULL, MEANINGS, Way

ROOT: Final = Path(__file__).resolve().parents[2]
RESULT: Final = ROOT / "benches" / "results" / "quality.json"
GREEDY: Final = "greedy"


def run(models: Sequence[str], ways: Sequence[Way], num: int, seeds: Sequence[int], task_seed: int = 0) -> dict[str, Any]:
    """Ask every model under every way, greedily and by each seed; returns rows and outputs as plain JSON types."""
    from benches.quality.asking import Model, ask

    asked, rows, outputs = tasks(num, task_seed), [], []
    for name in models:
        one = Model.load(name)
        for way in ways:
            begin, every = time.monotonic(), (None, *seeds)
            for seed, judged in zip(every, ask(one, asked, way, every), strict=True):
                where = {"model": name, "way": str(way), "sampling": GREEDY if seed is None else f"seed {seed}"}
                rows.append({**where, **counted(judged)})
                outputs.append({**where, "outputs": [output.as_dict() for output in judged]})
            print(f"{name} {way}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return {"tasks": [{"kind": task.kind, "question": task.question} for task in asked], "rows": rows, "outputs": outputs}


def as_json(found: Mapping[str, Any]) -> str:
    """Write what `run` returns, one output a line."""
    rest = json.dumps({key: value for key, value in found.items() if key != "outputs"}, ensure_ascii=False, indent=1)
    arms = []
    for arm in found["outputs"]:
        where = json.dumps({key: value for key, value in arm.items() if key != "outputs"}, ensure_ascii=False)
        lines = ",\n".join(json.dumps(output, ensure_ascii=False) for output in arm["outputs"])
        arms.append(f'{where[:-1]}, "outputs": [\n{lines}\n]}}')
    return rest.removesuffix("\n}") + ',\n "outputs": [\n' + ",\n".join(arms) + "\n]}\n"


def about(options: argparse.Namespace) -> dict[str, Any]:
    """The command, as far as it decides what is found, the machine and the commit."""
    from thinkguard.bench.machine import machine

    git = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    asked = [f"--models {','.join(options.models)}", f"--policies {','.join(map(str, options.policies))}"]
    command = " ".join(["python -m benches.quality", *asked, f"--prompts {options.prompts} --seeds {options.seeds}"])
    return {"command": command, "machine": machine(), "commit": git.stdout.strip() or "not a checkout"}


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in place.MODELS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: the models are {', '.join(place.MODELS)}")
    return names


def _ways(text: str) -> list[Way]:
    try:
        return [Way.parse(part) for part in text.split(",")]
    except ValueError as why:
        raise argparse.ArgumentTypeError(str(why)) from None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="policies:\n" + "\n".join(f"  {name:9} {what}" for name, what in MEANINGS.items()),
    )
    parser.add_argument("--models", type=_names, default=[place.TEXT, place.TOKENS], metavar="NAMES")
    parser.add_argument("--policies", type=_ways, default=list(FULL), metavar="WAYS", help=f"such as alone,line:{CAP}")
    parser.add_argument("--prompts", type=int, default=32, metavar="N", help="questions (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="samples of each question (default %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep rows and outputs as JSON")
    parser.add_argument(
        "--write", action="store_true", help="keep them as benches/results/quality.json, for docs/benchmarks.md"
    )
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first outputs of each arm")
    options = parser.parse_args()
    if why := place.missing(options.models):
        parser.error(why)
    found = about(options) | run(options.models, options.policies, options.prompts, range(1, options.seeds + 1))
    for file in ([options.out] if options.out else []) + ([RESULT] if options.write else []):
        file.write_text(as_json(found), encoding="utf-8")
    print(table(found["rows"]))
    for arm in found["outputs"] if options.show else ():
        print(f"\n## {arm['model']}, {arm['way']}, {arm['sampling']}")
        for task, output in list(zip(found["tasks"], arm["outputs"], strict=True))[: options.show]:
            print(f"\n[{task['question']}] {'right' if output['right'] else 'wrong'}\n{output['text']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
