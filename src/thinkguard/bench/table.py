"""The figures as tables in Markdown: every number from the JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_SHORT: Final = {
    "nothing": "nothing", "plain torch": "plain torch", "vLLM V1 budget": "vLLM V1", "vLLM V2 budget": "vLLM V2",
    "SGLang processor": "SGLang", "SGLang strict thinking": "SGLang strict", "xgrammar structural tag": "xgrammar",
    "llguidance grammar": "llguidance", "thinkguard": "thinkguard",
}  # fmt: skip


def tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return a table for each part that was measured; vLLM V1 and V2 are its own thinking budgets."""
    return {part: make(figures[part]) for part, make in _TABLES.items() if part in figures}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out one table; rows that are too short end in empty cells."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    filled = [[*row, *[""] * (len(head) - len(row))] for row in rows]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in filled)])


def _correctness(found: Mapping[str, Any]) -> str:
    by_case: dict[str, dict[str, str]] = {}
    for row in found["rows"]:
        of = f" {row['right']}/{row['of']}" if row.get("of", 0) > 1 else ""
        shown = f"**right**{of}" if row["verdict"] == "right" else f"{row['verdict']}{of}"
        by_case.setdefault(row["case"], {})[row["alternative"]] = shown
    names = [name for name in _SHORT if name in found["alternatives"]]
    rows = [[case, *(told.get(name, "") for name in names)] for case, told in by_case.items()]
    return markdown(["case", *(_SHORT[name] for name in names)], rows)


def _step(found: Mapping[str, Any]) -> str:
    return _cheapest(
        found, lambda row: f"{row['kind']}, {row['batch']:,} x {row['length']:,}, {row['vocab_size']:,}",
        "step, rows x thinking tokens, vocabulary (us)",
    )  # fmt: skip


def _instructions(found: Mapping[str, Any]) -> str:
    if "cannot" in found:
        return f"Instructions were not counted: {found['cannot']}."
    head = f"instructions per row, {found['batch']} rows x thinking tokens, {found['width']:,} logits wide"
    return _cheapest(found, lambda row: f"{row['kind']}, {row['length']:,}", head)


def _cheapest(found: Mapping[str, Any], where: Callable[[Mapping[str, Any]], str], head: str) -> str:
    """One row per place, a column per alternative: the median, and the lowest but nothing's in bold."""
    places: dict[str, dict[str, float]] = {}
    for row in found["rows"]:
        if "median" in row:
            places.setdefault(where(row), {})[row["alternative"]] = row["median"]
    present = {name for told in places.values() for name in told}
    names = [name for name in _SHORT if name in present]
    rows = []
    for place, told in places.items():
        best = min((value for name, value in told.items() if name != "nothing"), default=0.0)
        rows.append([place, *(_best(told[name], best, name) if name in told else "" for name in names)])
    return markdown([head, *(_SHORT[name] for name in names)], rows)


def _best(value: float, best: float, name: str) -> str:
    shown = f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
    return f"**{shown}**" if value <= best and name != "nothing" else shown


def _start(found: Mapping[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        if "cannot" in row:
            rows.append([_SHORT[row["alternative"]], f"cannot: {row['cannot']}"])
            continue
        admission = [f"{told['median']:,.0f}" for told in row["admission"].values()]
        rows.append([_SHORT[row["alternative"]], f"{row['setup']['median']:,.1f}", *admission])
    lengths = next((list(row["admission"]) for row in found["rows"] if "admission" in row), [])
    return markdown(["", "set up (ms)", *(f"admit, {int(length):,} tokens (us)" for length in lengths)], rows)


def _memory(found: Mapping[str, Any]) -> str:
    if "cannot" in found:
        return f"Not measured: {found['cannot']}."
    rows = []
    for row in found["rows"]:
        if "cannot" in row:
            sizes = [f"cannot: {row['cannot']}"]
        else:
            sizes = [f"{row['setup']['median'] / 1e6:,.1f}", f"{row['request']['median']:,.0f}"]
        rows.append([_SHORT[row["alternative"]], *sizes])
    return markdown(["", f"set up, {found['vocab_size']:,} tokens (MB)", "a request (bytes)"], rows)


def _rates(found: Mapping[str, Any]) -> str:
    if "cannot" in found:
        return f"Not measured: {found['cannot']}."
    rows = []
    for row in found["rows"]:
        ratio = row["ratio"]
        shown = f"{ratio['median']:.3f} ({ratio['low']:.3f} .. {ratio['high']:.3f})"
        rates = [f"{row[name]['median']:,.0f}" for name in ("alone", "guarded")]
        rows.append([row.get("model", "embedded model"), str(row["batch"]), *rates, shown])
    return markdown(["model", "batch", "alone (tokens/s)", "guarded (tokens/s)", "ratio, 95 % interval"], rows)


def _quality(found: Mapping[str, Any]) -> str:
    """Right answers and well-formed outputs by budget and way, and of the model alone."""
    told = {(row["way"], row["budget"]): row for row in found["rows"]}
    ways = list(dict.fromkeys(way for way, budget in told if budget is not None))

    def shown(row: Mapping[str, Any]) -> str:
        return f"{row['right'] / row['num']:.0%}, {row['well_formed'] / row['num']:.0%}"

    rows = [[str(budget), *(shown(told[way, budget]) for way in ways)] for budget in found["budgets"]]
    rows += [["none, alone", shown(row)] for (_, budget), row in told.items() if budget is None]
    return markdown(["budget: right, well-formed", *ways], rows)


_TABLES: Final = {
    "correctness": _correctness,
    "step": _step,
    "instructions": _instructions,
    "start": _start,
    "memory": _memory,
    "generate": _rates,
    "serve": _rates,
    "quality": _quality,
}
