"""`pytest benches/verdicts --write` writes what was found to benches/results, with the machine, the date and the commit."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from thinkguard.bench.machine import machine

RESULTS = Path(__file__).resolve().parents[1] / "results"
Write = Callable[[str, dict[str, Any]], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    about = "write benches/results/verdicts.json, whatever the tests say of them"
    parser.addoption("--write", action="store_true", help=about)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write") and config.getoption("--small"):
        raise pytest.UsageError("--small is no result to keep: leave out --write")


@pytest.fixture(scope="session")
def write(pytestconfig: pytest.Config) -> Write:
    """Return a function that writes figures to a file of that name, if --write asks for it."""
    # Settled before the first file is written, so that results do not count as changes to the commit they are of.
    about = {
        "machine": machine(),
        "date": date.today().isoformat(),
        "commit": pytestconfig.hook.pytest_benchmark_generate_commit_info(config=pytestconfig),
    }

    def written(name: str, figures: dict[str, Any]) -> None:
        if pytestconfig.getoption("--write"):
            text = json.dumps(about | figures, ensure_ascii=False, indent=1) + "\n"
            (RESULTS / name).write_text(text, encoding="utf-8")

    return written
