"""Rows of the table: what came of one way on one model, greedy or sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, Final

from benches.quality.judging import Judged

COLUMNS: Final[Mapping[str, str]] = {
    "well_formed": "well-formed",
    "in_answer": "look-alikes in answer",
    "in_thinking": "in thinking",
    "dangling": "dangling",
    "finished": "finished",
    "ends_in_answer": "ends in an answer",
    "right": "right",
    "sentence_end": "closes at a sentence's end",
    "thinking_tokens": "thinking tokens",
    "answer_tokens": "answer tokens",
    "repeated": "repeated",
}
"""Key of a row -> the head of its column. Look-alikes and dangling pieces: how many outputs hold one."""
_MEANS: Final = {"thinking_tokens": 1, "answer_tokens": 1, "repeated": 3}
"""Columns that are means over outputs, and digits behind the point."""
_SHARES: Final = ("well_formed", "finished", "ends_in_answer", "right", "sentence_end")


def counted(outputs: Sequence[Judged]) -> dict[str, Any]:
    """Count one arm's outputs."""
    found: dict[str, Any] = {"num": len(outputs)}
    for key in _SHARES:
        found[key] = sum(getattr(one, key) for one in outputs)
    for key in ("in_answer", "in_thinking", "dangling"):
        found[key] = sum(bool(getattr(one, key)) for one in outputs)
    for key, digits in _MEANS.items():
        found[key] = round(mean(getattr(one, key) for one in outputs), digits)
    found["closed_by"] = dict(Counter(one.closed_by for one in outputs).most_common())
    return found


def summed(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put the rows of one model and way together, whatever the sampling."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["way"]), []).append(row)
    found = []
    for (model, way), group in groups.items():
        total = sum(row["num"] for row in group)
        one: dict[str, Any] = {"model": model, "way": way, "num": total}
        for key in COLUMNS:
            whole = sum(row[key] * (row["num"] if key in _MEANS else 1) for row in group)
            one[key] = round(whole / total, _MEANS[key]) if key in _MEANS else whole
        found.append(one)
    return found


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row's cells, in the order of `COLUMNS`: counts over how many, means with a digit."""
    return [
        f"{row[key]}/{row['num']}" if key in _SHARES
        else f"{100 * row[key]:.0f} %" if key == "repeated"
        else str(row[key])
        for key in COLUMNS
    ]  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned plain text."""
    lines = [("model", "sampling", "policy", *COLUMNS.values())]
    lines += [(row["model"], row["sampling"], row["way"], *cells(row)) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
