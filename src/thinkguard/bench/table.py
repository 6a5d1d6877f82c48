"""The figures as tables in Markdown: every number from the JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_SHORT: Final = {
    "nothing": "nothing", "plain torch": "plain torch", "vLLM V1 budget": "vLLM V1", "vLLM V2 budget": "vLLM V2",
    "SGLang processor": "SGLang", "SGLang strict thinking": "SGLang strict", "xgrammar structural tag": "xgrammar",
    "llguidance grammar": "llguidance", "thinkguard": "thinkguard",
}  # fmt: skip

WIDE: Final = 1.5
"""A spread that reaches over so many times its lower end is marked."""


def tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return a table for each part that was measured; vLLM V1 and V2 are its own thinking budgets."""
    return {
        part: f"Failed: {figures[part]['failed']}" if "failed" in figures[part] else make(figures[part])
        for part, make in _TABLES.items() if part in figures
    }  # fmt: skip


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
    places: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in found["rows"]:
        if "median" in row:
            places.setdefault(where(row), {})[row["alternative"]] = row
    present = {name for told in places.values() for name in told}
    names = [name for name in _SHORT if name in present]
    rows = [[place, *_cells([told.get(name) for name in names], names)] for place, told in places.items()]
    table = markdown([head, *(_SHORT[name] for name in names)], rows)
    return "\n\n".join(filter(None, (table, _left_out(found["rows"], where))))


def _cells(figures: Sequence[Mapping[str, Any] | None], names: Sequence[str], scale: float = 1) -> list[str]:
    """Figures side by side: the lowest but nothing's in bold, `~` where the spread is wide, "" where there is none."""
    values = [one["median"] for one, name in zip(figures, names, strict=True) if one and name != "nothing"]
    cells = []
    for one, name in zip(figures, names, strict=True):
        if one is None:
            cells.append("")
            continue
        value = one["median"] / scale
        shown = "~" * (one["high"] > WIDE * one["low"]) + (f"{value:,.1f}" if value < 100 else f"{value:,.0f}")
        cells.append(f"**{shown}**" if one["median"] <= min(values, default=0) and name != "nothing" else shown)
    return cells


def _left_out(rows: Sequence[Mapping[str, Any]], where: Callable[[Mapping[str, Any]], str]) -> str:
    """Which alternatives have no figure, where, and why."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "cannot" in row:
            known = places.setdefault((row["alternative"], row["cannot"]), [])
            known += [where(row).partition(", ")[2]] if "kind" in row else []
    return "\n".join(
        f"- No figure for {_SHORT.get(name, name)}{' at ' * bool(known)}{' and '.join(known)}: {why}."
        for (name, why), known in places.items()
    )


def _columns(
    found: Mapping[str, Any], head: Sequence[str], figures: Callable[[Mapping[str, Any]], list[tuple[Any, float]]]
) -> str:
    """One row per alternative. `figures` of a row: each with what it is divided by."""
    measured = [row for row in found["rows"] if "cannot" not in row]
    names = [row["alternative"] for row in measured]
    columns = [
        _cells([one for one, _ in column], names, column[0][1]) for column in zip(*map(figures, measured), strict=True)
    ]
    rows = [[_SHORT[name], *cells] for name, cells in zip(names, zip(*columns, strict=True), strict=True)]
    return "\n\n".join(filter(None, (markdown(["", *head], rows), _left_out(found["rows"], lambda row: ""))))


def _start(found: Mapping[str, Any]) -> str:
    lengths = next((list(row["admission"]) for row in found["rows"] if "admission" in row), [])
    head = ["set up (ms)", *(f"admit, {int(length):,} tokens (us)" for length in lengths)]
    return _columns(found, head, lambda row: [(one, 1) for one in (row["setup"], *row["admission"].values())])


def _memory(found: Mapping[str, Any]) -> str:
    if "cannot" in found:
        return f"Not measured: {found['cannot']}."
    head = [f"set up, {found['vocab_size']:,} tokens (MB)", "a request (bytes)"]
    return _columns(found, head, lambda row: [(row["setup"], 1e6), (row["request"], 1)])


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
