"""Explore the whole grid in every world, and write what was counted into docs/proof.md: `make proof`."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict

from proof.explorer import ROOT, Explorer, compiled
from proof.grid import drawn, every, limits_of
from proof.page import RESULTS, write
from proof.worlds import WORLDS

from thinkguard.bench.machine import machine

PARTS = 8  # of each world's grid
DRAWN = 2000  # further policies of the whole product, of each world
_explorer: Explorer


def _load(library: str) -> None:
    global _explorer
    _explorer = Explorer(library)


def _explore(job: tuple[str, int]) -> tuple[str, Counter, list[str]]:
    """One part of a world: (its name, what was counted, what breaks the promise)."""
    name, part = job
    world, counted, wrong = WORLDS[name], Counter(), []
    policies = every(world, part, PARTS) if part < PARTS else drawn(world, DRAWN)
    began = time.perf_counter()
    for policy in policies:
        outcome = _explorer.explore(world, policy, limits_of(world))
        counted["grid" if part < PARTS else "drawn"] += 1
        counted.update({key: value for key, value in asdict(outcome).items() if isinstance(value, int)})
        if outcome.finding is not None:
            wrong.append(str(outcome.finding))
    counted["seconds"] = time.perf_counter() - began
    return name, counted, wrong


def _commit() -> str:
    """The commit that is checked out, with a + where files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "HEAD") + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))


def main() -> int:
    found, wrong = {name: Counter() for name in WORLDS}, []
    jobs = [(name, part) for part in reversed(range(PARTS + 1)) for name in WORLDS]
    began, commit = time.perf_counter(), _commit()  # of what is compiled and loaded now
    library = compiled(ROOT / "build" / "proof")
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), _load, (str(library),)) as pool:
        for done, (name, counted, broken) in enumerate(pool.imap_unordered(_explore, jobs), 1):
            found[name].update(counted)
            wrong += broken
            print(f"{done} of {len(jobs)} parts, {sum(one['pairs'] for one in found.values()):,} pairs", file=sys.stderr)
    for line in sorted(wrong, key=len)[:20]:
        print(line)
    if wrong:
        print(f"{len(wrong)} policies break the promise")
        return 1
    kept = {
        "command": "make proof", "date": datetime.date.today().isoformat(), "commit": commit, "machine": machine(),
        "seconds": round(time.perf_counter() - began),
        "worlds": {name: {key: round(value) for key, value in counted.items()} for name, counted in found.items()},
    }  # fmt: skip
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
