"""The matrix as lines, as benches/results/hosts.json, and as the table of docs/hosts.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from benches.report.results import RESULTS
from benches.report.tables import markdown

ROOT: Final = RESULTS.parents[1]
FILE: Final = RESULTS / "hosts.json"
PAGE: Final = ROOT / "docs" / "hosts.md"
BEGIN, END = "<!-- run: begin -->", "<!-- run: end -->"
COLUMNS: Final = {
    "vllm": ("by default", "per request", "off", "misspelt field", "thinking_token_budget", "forced V2"),
    "transformers": ("demo", "modes", "generate_batch"),
}


def line(row: Mapping[str, Any]) -> str:
    """One row as a line of text."""
    name = f"{row['host']} {row['version']}, {row['how']}"
    if "cannot" in row:
        return f"{name:36} not run: {row['cannot']}"
    return f"{name:36} {row['seconds']:4} s  " + "; ".join(f"{check}: {word}" for check, word in row["checks"].items())


def failed(row: Mapping[str, Any]) -> bool:
    """Whether one of its checks did."""
    return any(word.startswith("failed") for word in row.get("checks", {}).values())


def read() -> dict[str, Any]:
    """What `make matrix` wrote last."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def write(about: Mapping[str, Any], kept: Iterable[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the results, the new ones in the place of those of the same release, and the page."""
    by_name = {(row["host"], row["version"], row["how"]): row for row in (*kept, *rows)}
    found = {**about, "rows": list(by_name.values())}
    FILE.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    old = PAGE.read_text(encoding="utf-8")
    begin, end = old.index(BEGIN) + len(BEGIN), old.index(END)
    PAGE.write_text(f"{old[:begin]}\n{text(found)}\n{old[end:]}", encoding="utf-8")


def text(found: Mapping[str, Any]) -> str:
    """The part of the page that is run."""
    where = found["machine"]
    about = (
        f"*{where['cpu']}, {where['cores']} cores, Python {where['python']}, torch {where['torch']}; {found['date']}; "
        f"`{found['command']}`*"
    )
    return "\n\n".join([*(_table(host, found["rows"]) for host in COLUMNS), about])


def _table(host: str, rows: Iterable[Mapping[str, Any]]) -> str:
    names = COLUMNS[host]
    cells = []
    for row in sorted((row for row in rows if row["host"] == host), key=_order):
        words = [row["checks"].get(name, "") for name in names] if "checks" in row else [f"not run: {row['cannot']}"]
        cells.append([row["version"], row["how"], *words])
    return markdown([host, "how", *names], cells)


def _order(row: Mapping[str, Any]) -> tuple[list[int], str]:
    return [int(part) for part in row["version"].split(".")], row["how"]
