"""The figures as tables in Markdown: every number from the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Lay out one table."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


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
    """One row per point and kind: the median, and the fastest but nothing in bold."""
    points: dict[tuple[int, int, int, str], dict[str, float]] = {}
    for row in found["rows"]:
        if "median" in row:
            key = (row["vocab_size"], row["batch"], row["length"], row["kind"])
            points.setdefault(key, {})[row["alternative"]] = row["median"]
    present = {name for told in points.values() for name in told}
    names = [name for name in _SHORT if name in present]
    rows = []
    for (vocab_size, batch, length, kind), told in points.items():
        best = min((value for name, value in told.items() if name != "nothing"), default=0.0)
        cells = [_best(told[name], best, name) if name in told else "" for name in names]
        rows.append([f"{kind}, {batch:,} x {length:,}, {vocab_size:,}", *cells])
    return markdown(["step, rows x thinking tokens, vocabulary (us)", *(_SHORT[name] for name in names)], rows)


def _best(value: float, best: float, name: str) -> str:
    shown = f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
    return f"**{shown}**" if value <= best and name != "nothing" else shown


def _start(found: Mapping[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        if "cannot" in row:
            rows.append([_SHORT[row["alternative"]], f"cannot: {row['cannot']}", *[""] * 5])
            continue
        admission = [f"{told['median']:,.0f}" for told in row["admission"].values()]
        held = row["setup_bytes"]
        sizes = ["" if held is None else f"{held['median'] / 1e6:,.1f}"]
        sizes.append("" if row["request_bytes"] is None else f"{row['request_bytes']:,.0f}")
        rows.append([_SHORT[row["alternative"]], f"{row['setup']['median']:,.1f}", *admission, *sizes])
    lengths = next((list(row["admission"]) for row in found["rows"] if "admission" in row), [])
    head = ["", "set up (ms)", *(f"admit, {int(length):,} tokens (us)" for length in lengths)]
    return markdown([*head, "set up (MB)", "a request (bytes)"], rows)


def _instructions(found: Mapping[str, Any]) -> str:
    if "cannot" in found:
        return f"Instructions were not counted: {found['cannot']}."
    rows = [[kind, f"{found[kind]:,.0f}"] for kind in ("answer", "thinking", "forced")]
    return markdown(["step", f"instructions per row, {found['width']:,} logits wide"], rows)


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
    rows += [["none, alone", shown(row), *[""] * (len(ways) - 1)] for (_, budget), row in told.items() if budget is None]
    return markdown(["budget: right, well-formed", *ways], rows)


_TABLES: Final = {
    "correctness": _correctness,
    "step": _step,
    "start": _start,
    "instructions": _instructions,
    "generate": _rates,
    "serve": _rates,
    "quality": _quality,
}
