"""The figures that are kept: benchmarks by their name, each with the day and the commit that it was measured at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parents[1] / "results"
STATS: Final = ("min", "q1", "median", "q3", "max", "mean", "stddev", "rounds", "iterations")
"""Of what pytest-benchmark computes; seconds."""


@dataclass(frozen=True)
class Results:
    """Benchmarks of one machine, in the order in which they were first measured."""

    machine: dict[str, Any]
    benchmarks: list[dict[str, Any]]
    left_out: list[dict[str, Any]]  # {"name", "group", "cannot": why, and what the benchmark is about}

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file that `write` wrote, or one of pytest-benchmark's."""
        found = json.loads(path.read_text(encoding="utf-8"))
        if "machine" in found:
            return cls(found["machine"], found["benchmarks"], found["left_out"])
        measured = {"date": found["datetime"][:10], "commit": found["commit_info"]["id"]}
        if found["commit_info"]["dirty"]:
            measured["commit"] += "+"
        kept = [
            {key: one[key] for key in ("group", "name", "fullname", "extra_info")}
            | {"stats": {key: one["stats"][key] for key in STATS}, "measured": measured}
            for one in found["benchmarks"]
        ]
        return cls(found["machine_info"], kept, found.get("left_out", []))

    def with_new(self, new: Results) -> Results:
        """Put new figures in the place of the old ones of the same names.

        ValueError, if they are another machine's: such figures belong into a file of their own.
        """
        differ = [key for key, value in self.machine.items() if key != "load" and new.machine.get(key) != value]
        if differ:
            raise ValueError(
                f"measured on another machine or with other versions ({', '.join(differ)}): measure all parts again, or "
                "keep them apart with --machine NAME"
            )
        by_name = {one["fullname"]: one for one in (*self.benchmarks, *new.benchmarks)}
        out = {one["name"]: one for one in (*self.left_out, *new.left_out)}
        measured = {one["name"] for one in new.benchmarks}
        left_out = {one["name"] for one in new.left_out}
        return Results(
            new.machine,
            [one for one in by_name.values() if one["name"] not in left_out],
            [one for name, one in out.items() if name not in measured],
        )

    def write(self, path: Path) -> None:
        """Write the figures as JSON."""
        fields = {"command": "make bench", "machine": self.machine, "benchmarks": self.benchmarks, "left_out": self.left_out}
        path.write_text(json.dumps(fields, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def rows(self, test: str) -> list[dict[str, Any]]:
        """What a test function measured, one row per set of parameters.

        Each has what the benchmark is about, and "low", "median" and "high" seconds: the quartiles of its rounds.
        """
        return [
            {**one["extra_info"], "median": one["stats"]["median"], "low": one["stats"]["q1"], "high": one["stats"]["q3"]}
            for one in self.benchmarks
            if one["name"].partition("[")[0] == test
        ]

    def row(self, test: str, **about: Any) -> dict[str, Any]:
        """The one row of a test that is about this. LookupError, if there is not exactly one."""
        found = [row for row in self.rows(test) if about.items() <= row.items()]
        if len(found) != 1:
            raise LookupError(f"{len(found)} figures of {test} are about {about}; measure it: make bench")
        return found[0]

    def missing(self, test: str) -> list[dict[str, Any]]:
        """Why parameters of a test have no figure."""
        return [one for one in self.left_out if one["name"].partition("[")[0] == test]
