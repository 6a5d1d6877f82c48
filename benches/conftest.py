"""The benchmarks' common ground: sizes, tokenizers, the pace of the machine, and what the JSON says of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benches.measuring import LEFT_OUT
from benches.setting import Setting, make_tokenizer
from thinkguard.bench.machine import machine
from thinkguard.bench.timing import pace

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    full: bool
    vocab_size: int  # of what is asked at one vocabulary alone
    num_pairs: int
    num_records: int


FULL = Sizes(full=True, vocab_size=151_936, num_pairs=32, num_records=50_000)
SMALL = Sizes(full=False, vocab_size=2_048, num_pairs=2, num_records=400)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--small", action="store_true", help="small sizes and light alternatives: whether the benchmarks run")


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("benchmarks are timed one behind the other: leave out -n")
    config.stash[LEFT_OUT] = []


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """The processor and the versions, without the machine's name."""
    return machine()


def pytest_benchmark_generate_commit_info() -> dict[str, Any]:
    """The commit that is checked out, and whether files differ from it."""
    run = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    commit = run.stdout.strip() or "not a checkout"
    return {"id": commit.rstrip("+"), "dirty": commit.endswith("+")}


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add what was left out."""
    output_json["left_out"] = config.stash[LEFT_OUT]


@pytest.fixture(scope="session")
def sizes(pytestconfig: pytest.Config) -> Sizes:
    return SMALL if pytestconfig.getoption("--small") else FULL


@pytest.fixture(autouse=True)
def paced(request: pytest.FixtureRequest) -> Iterator[None]:
    """Take the pace of the machine before and behind each benchmark."""
    if "benchmark" not in request.fixturenames:
        yield
        return
    benchmark, before = request.getfixturevalue("benchmark"), pace()
    yield
    benchmark.extra_info["pace"] = (before + pace()) / 2


@pytest.fixture(scope="session")
def setting_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Setting]:
    """Return a function from a vocabulary's size to a made tokenizer, with marker tokens, and its program."""

    @cache
    def made(vocab_size: int) -> Setting:
        folder = make_tokenizer(tmp_path_factory.mktemp(f"made-{vocab_size}"), vocab_size, marker_tokens=True)
        return Setting.load(folder, vocab_size)

    return made
