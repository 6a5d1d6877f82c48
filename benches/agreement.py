"""Whether a second run says the same as the first: figure by figure, within the spreads that both state.

Two figures agree where their spreads overlap, each widened by what two runs differ by and one does not see: the clock of a
shared machine, the addresses and the free memory of a process. Times that carry a "paced" spread are compared by it, in
multiples of a fixed piece of work that was timed beside them: such a machine may be twice as fast in one run. Whatever has
no spread (verdicts, counts of right answers) has to be equal. What every figure is called is its path in the JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NAMED = ("case", "alternative", "kind", "vocab_size", "batch", "length", "model", "way", "budget", "what")  # rows of a list
EXACT = ("verdict", "right", "well_formed", "of")
BETWEEN = {"instructions": 0.005, "memory": 0.05}  # share of a figure, by part
CLOCK = 0.1  # of every other part
LEAST = {"setup": 2**19, "request": 16}  # bytes of memory


def compare(part: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two runs of a part. Returns {"figures", "within", "widened": share, "outside": {name: [both]}, "not in both"}

    Ratios have an interval of their own, and are not widened.
    """
    one, two = dict(figures(first)), dict(figures(second))
    both = sorted(one.keys() & two.keys())
    outside = {name: [one[name], two[name]] for name in both if not agree(one[name], two[name], *_between(part, name))}
    return {
        "figures": len(both),
        "within": len(both) - len(outside),
        "widened": BETWEEN.get(part, CLOCK),
        "outside": outside,
        "not in both": sorted(one.keys() ^ two.keys()),
    }


def _between(part: str, name: str) -> tuple[float, float]:
    """(share of the figure, least) by which two runs may differ"""
    what = name.rpartition("/")[2]
    share = 0.0 if what == "ratio" else BETWEEN.get(part, CLOCK)
    return share, LEAST.get(what, 0) if part == "memory" else 0


def agree(one: Any, two: Any, share: float, least: float) -> bool:
    """Whether two figures say the same: [low, high] overlap once they are widened, anything else is equal."""
    if not isinstance(one, list) or not isinstance(two, list):
        return bool(one == two)
    (low, high), (other_low, other_high) = (_widened(*figure, share, least) for figure in (one, two))
    return bool(low <= other_high and other_low <= high)


def _widened(low: float, high: float, share: float, least: float) -> tuple[float, float]:
    more = max(share * (low + high) / 2, least)
    return max(low - more, 0), high + more


def figures(part: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every figure of a part: its path, and [low, high] or the value that has to be equal."""
    if isinstance(part, Mapping):
        if "low" in part and "high" in part:
            reach = part.get("paced", part)
            yield name + " (paced)" * ("paced" in part), [reach["low"], reach["high"]]
            return
        for key, value in part.items():
            if key in EXACT:
                yield f"{name}/{key}", value
            elif isinstance(value, Mapping | list):
                yield from figures(value, f"{name}/{key}" if name else key)
    elif isinstance(part, list):
        for value in part:
            if isinstance(value, Mapping):
                told = [str(value[key]) for key in NAMED if key in value]
                yield from figures(value, f"{name}: {', '.join(told)}")
