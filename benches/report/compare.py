"""Whether two runs say the same: ratios, instructions, bytes, and times in multiples of the machine's pace.

    python -m benches.report.compare OLD.json NEW.json

A shared machine may run at half its speed for minutes, so times are divided by what a fixed piece of work took beside them,
and a tenth is allowed for what that does not see. Two figures agree where their spreads overlap: the quartiles of times, the
intervals of ratios. Instructions and bytes depend a little on addresses and free memory. Exit status 1: some do not agree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

from benches.report.results import Results

TIME, INSTRUCTIONS, BYTES = 0.1, 0.005, 0.05
"""Share of a figure by which two runs may differ unseen."""
LEAST: Final = {"setup": 2**19, "request": 16}
"""Bytes by which they may, whatever the share."""
Spread = tuple[float, float]


def figures(benchmark: Mapping[str, Any]) -> Iterator[tuple[str, Spread, float, float]]:
    """Each figure of a benchmark: its name, from where to where it reaches, and (share, least) by which it is widened."""
    about, stats = benchmark["extra_info"], benchmark["stats"]
    if "pace" in about:
        pace = about["pace"] / 1e3
        yield "time in paces", (stats["q1"] / pace, stats["q3"] / pace), TIME, 0
    if "ratio" in about:
        yield "ratio", (about["ratio"]["low"], about["ratio"]["high"]), 0, 0
    if "instructions" in about:
        yield "instructions", (median(about["instructions"]),) * 2, INSTRUCTIONS, 0
    for what, number in about.get("bytes", {}).items():
        yield f"bytes, {what}", (number, number), BYTES, LEAST.get(what, 0)


def agree(one: Spread, two: Spread, share: float, least: float) -> bool:
    """Whether two spreads overlap once they are widened."""
    (low, high), (other_low, other_high) = (_widened(*spread, share, least) for spread in (one, two))
    return low <= other_high and other_low <= high


def _widened(low: float, high: float, share: float, least: float) -> Spread:
    more = max(share * (low + high) / 2, least)
    return max(low - more, 0), high + more


def compare(old: Results, new: Results) -> tuple[int, list[tuple[str, Spread, Spread]]]:
    """Return (how many figures both runs have, those that do not agree: name, old, new)."""
    before = {one["fullname"]: {name: rest for name, *rest in figures(one)} for one in old.benchmarks}
    num, differ = 0, []
    for benchmark in new.benchmarks:
        known = before.get(benchmark["fullname"], {})
        for name, spread, share, least in figures(benchmark):
            if name in known:
                num += 1
                if not agree(known[name][0], spread, share, least):
                    differ.append((f"{benchmark['name']}: {name}", known[name][0], spread))
    return num, differ


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args()
    num, differ = compare(Results.read(options.old), Results.read(options.new))
    for name, old, new in differ:
        print(f"{name}: {_shown(old)} before, {_shown(new)} now")
    print(f"{num - len(differ)} of {num} figures agree")
    return int(bool(differ))


def _shown(spread: Spread) -> str:
    low, high = (f"{value:.4g}" for value in spread)
    return low if low == high else f"{low} .. {high}"


if __name__ == "__main__":
    sys.exit(main())
