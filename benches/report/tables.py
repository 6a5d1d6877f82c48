"""The figures as tables in Markdown: every number from the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Final

from benches.quality import counting
from benches.report.results import Results

Row = Mapping[str, Any]
SHORT: Final = {
    "nothing": "nothing", "plain torch": "plain torch", "vLLM V1 budget": "vLLM V1", "vLLM V2 budget": "vLLM V2",
    "SGLang processor": "SGLang", "SGLang strict thinking": "SGLang strict", "xgrammar structural tag": "xgrammar",
    "llguidance grammar": "llguidance", "thinkguard": "thinkguard",
}  # fmt: skip
"""Alternatives in the order of the tables; vLLM V1 and V2 are its own thinking budgets."""
WIDE: Final = 1.5
"""A spread that reaches over so many times its lower end is marked."""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out one table; rows that are too short end in empty cells."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    filled = [[*row, *[""] * (len(head) - len(row))] for row in rows]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in filled)])


def spread(row: Row, scale: float, unit: str, digits: int = 1) -> str:
    """A figure from its lower to its upper quartile."""
    return f"{row['low'] * scale:,.{digits}f} .. {row['high'] * scale:,.{digits}f} {unit}"


def ratio(row: Row, *, inverse: bool = False) -> str:
    """A ratio with its interval; the inverse of one of seconds is one of rates."""
    low, middle, high = (row["ratio"][key] for key in ("low", "median", "high"))
    if inverse:
        low, middle, high = 1 / high, 1 / middle, 1 / low
    return f"{middle:.3f} ({low:.3f} .. {high:.3f})"


def verdicts(found: Row) -> str:
    """A row per case, a column per alternative."""
    by_case: dict[str, dict[str, str]] = {}
    for row in found["rows"]:
        of = f" {row['right']}/{row['of']}" if row.get("of", 0) > 1 else ""
        shown = f"**right**{of}" if row["verdict"] == "right" else f"{row['verdict']}{of}"
        by_case.setdefault(row["case"], {})[row["alternative"]] = shown
    names = [name for name in SHORT if name in found["alternatives"]]
    rows = [[case, *(cells.get(name, "") for name in names)] for case, cells in by_case.items()]
    return markdown(["case", *(SHORT[name] for name in names)], rows)


def verdict_counts(found: Row) -> str:
    """How many cases each alternative gets right, in one row."""
    right = Counter(row["alternative"] for row in found["rows"] if row["verdict"] == "right")
    names = [name for name in SHORT if name in found["alternatives"]]
    head = [f"of {len(found['cases'])} cases", *(SHORT[name] for name in names)]
    return markdown(head, [["right", *(str(right[name]) for name in names)]])


def step(results: Results) -> str:
    """Microseconds of a step: a row per place and kind, a column per alternative."""
    return _by_place(
        results.rows("test_step"), results.missing("test_step"), "step, rows x thinking tokens, vocabulary (us)",
        lambda row: f"{row['kind']}, {row['batch']:,} x {row['length']:,}, {row['vocab_size']:,}", 1e6,
    )  # fmt: skip


def instructions(results: Results) -> str:
    """Instructions of one row of a step."""
    rows = []
    for row in results.rows("test_narrow_step"):
        counted = row["instructions"]
        rows.append({**row, "low": min(counted), "median": median(counted), "high": max(counted)})
    missing = results.missing("test_narrow_step")
    if not rows:
        return "\n".join(f"Instructions were not counted: {why}." for why in {one["cannot"] for one in missing})
    head = f"instructions per row, {rows[0]['batch']} rows x thinking tokens, {rows[0]['vocab_size']:,} logits wide"
    return _by_place(rows, missing, head, lambda row: f"{row['kind']}, {row['length']:,}", 1)


def beside(results: Results) -> str:
    """Our step over another's in pairs."""
    rows = [[SHORT[row["alternative"]], ratio(row)] for row in results.rows("test_step_beside")]
    return markdown(["a step in the thinking, 32 x 1,024, 151,936", "thinkguard's time over its, 95 % interval"], rows)


def start(results: Results) -> str:
    """Setting up and admission: a row per alternative."""
    lengths = sorted({row["length"] for row in results.rows("test_admission")})
    columns = {"set up (ms)": ({row["alternative"]: row for row in results.rows("test_set_up")}, 1e3)}
    for length in lengths:
        found = {row["alternative"]: row for row in results.rows("test_admission") if row["length"] == length}
        columns[f"admit, {length:,} tokens (us)"] = (found, 1e6)
    return _by_alternative(columns, results.missing("test_set_up"))


def memory(results: Results) -> str:
    """Bytes: a row per alternative."""
    found = {row["alternative"]: row for row in results.rows("test_memory")}
    vocab_size = max((row["vocab_size"] for row in found.values()), default=0)

    def of(what: str) -> dict[str, Row]:
        return {name: dict.fromkeys(("low", "median", "high"), row["bytes"][what]) for name, row in found.items()}

    columns = {f"set up, {vocab_size:,} tokens (MB)": (of("setup"), 1e-6), "a request (bytes)": (of("request"), 1)}
    return _by_alternative(columns, results.missing("test_memory"))


def rates(results: Results, test: str) -> str:
    """Tokens a second of a model, alone and guarded."""
    rows = []
    for row in results.rows(test):
        seconds = [f"{row['tokens'] / median(row['pairs'][name]):,.0f}" for name in ("alone", "guarded")]
        rows.append([row["model"], str(row["batch"]), *seconds, ratio(row, inverse=True)])
    return markdown(["model", "batch", "alone (tokens/s)", "guarded (tokens/s)", "ratio, 95 % interval"], rows)


def quality(found: Row) -> str:
    """What came of each policy on each model: a row each, greedy and sampled outputs together."""
    rows = [[row["model"], row["way"], *counting.cells(row)] for row in counting.summed(found["rows"])]
    return markdown(["model", "policy:cap", *counting.COLUMNS.values()], rows)


def _by_place(rows: Sequence[Row], missing: Sequence[Row], head: str, place: Callable[[Row], str], scale: float) -> str:
    places: dict[str, dict[str, Row]] = {}
    for row in rows:
        places.setdefault(place(row), {})[row["alternative"]] = row
    names = [name for name in SHORT if any(name in found for found in places.values())]
    cells = [[where, *_cells([found.get(name) for name in names], names, scale)] for where, found in places.items()]
    return _with_missing(markdown([head, *(SHORT[name] for name in names)], cells), missing, place)


def _by_alternative(columns: Mapping[str, tuple[Mapping[str, Row], float]], missing: Sequence[Row]) -> str:
    names = [name for name in SHORT if any(name in found for found, _ in columns.values())]
    cells = [_cells([found.get(name) for name in names], names, scale) for found, scale in columns.values()]
    rows = [[SHORT[name], *one] for name, one in zip(names, zip(*cells, strict=True), strict=True)]
    return _with_missing(markdown(["", *columns], rows), missing, lambda row: "")


def _cells(figures: Sequence[Row | None], names: Sequence[str], scale: float) -> list[str]:
    """Figures side by side: the lowest but nothing's in bold, `~` where the spread is wide, "" where there is none."""
    values = [one["median"] for one, name in zip(figures, names, strict=True) if one and name != "nothing"]
    cells = []
    for one, name in zip(figures, names, strict=True):
        if one is None:
            cells.append("")
            continue
        value = one["median"] * scale
        shown = "~" * (one["high"] > WIDE * one["low"]) + (f"{value:,.1f}" if value < 100 else f"{value:,.0f}")
        cells.append(f"**{shown}**" if one["median"] <= min(values, default=0) and name != "nothing" else shown)
    return cells


def _with_missing(table: str, missing: Sequence[Row], place: Callable[[Row], str]) -> str:
    """The table, and behind it which alternatives have no figure, where, and why."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in missing:
        where = place(row).partition(", ")[2]
        known = places.setdefault((row["alternative"], row["cannot"]), [])
        known += [where] if where and where not in known else []
    lines = [
        f"- No figure for {SHORT.get(name, name)}{' at ' * bool(where)}{' and '.join(where)}: {why}."
        for (name, why), where in places.items()
    ]
    return "\n\n".join(filter(None, (table, "\n".join(lines))))
