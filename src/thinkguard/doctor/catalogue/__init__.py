"""Every check the doctor knows: what it looks at, why that matters, what mends it, and where it was seen.

One JSON file per part, read once. A check that is not in a catalogue raises an error, so the table in the docs is complete.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

PARTS: Final = ("tokenizer", "template", "data", "mask", "outputs", "serving")
"""The parts in the order of a report: from the vocabulary to the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One check."""

    name: str
    part: str
    modes: tuple[str, ...] = ()  # failure modes that it finds, "F17"; none for what is none, such as an unreadable file
    looks_at: str
    wanted: str = ""  # the expected state, where it does not depend on the finding
    why: str = ""
    fix: str = ""  # the usual remedy; a finding may name a more exact one
    references: tuple[str, ...] = ()


@cache
def entries() -> dict[str, Entry]:
    """Return every check by name, part after part."""
    found: dict[str, Entry] = {}
    for part in PARTS:
        for name, values in _read(f"{part}.json").items():
            lists = {key: tuple(values.get(key, ())) for key in ("modes", "references")}
            found[name] = Entry(name=name, part=part, **{**values, **lists})
    return found


@cache
def unseen() -> dict[str, str]:
    """Return the failure modes that leave no trace where the doctor looks, each with the reason."""
    return _read("unseen.json")


def _read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    return values
