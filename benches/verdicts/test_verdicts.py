"""What every alternative does in every case, on real vocabularies; with --small a few cases, on made ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from benches.alternatives.alternative import MODULES
from benches.verdicts.expected import WRONG, wrong_cases
from benches.verdicts.judging import REAL
from benches.verdicts.processes import ROOT, judge_all

BUILD = ROOT / "tests" / "tokenizers" / "build.py"  # real tokenizers, out of packages of the registry


@pytest.fixture(scope="module")
def correctness(
    tmp_path_factory: pytest.TempPathFactory, sizes: Any, write: Callable[[str, dict[str, Any]], None]
) -> dict[str, Any]:
    """All verdicts, and what was printed."""
    folder = tmp_path_factory.mktemp("verdicts")
    if not sizes.full:
        return judge_all(folder, quick=True)
    tokenizers = folder / "tokenizers"
    subprocess.run([sys.executable, str(BUILD), str(tokenizers), *REAL], check=True, stdout=subprocess.DEVNULL)
    found = judge_all(folder, tokenizers=tokenizers)
    write("verdicts.json", found)
    return found


def verdicts(found: dict[str, Any], name: str) -> dict[str, str]:
    return {row["case"]: row["verdict"] for row in found["rows"] if row["alternative"] == name}


def test_every_alternative_is_asked_every_case(correctness):
    assert set(WRONG) == set(correctness["alternatives"]) == set(MODULES)
    asked = [(row["case"], row["alternative"]) for row in correctness["rows"]]
    assert asked == [(case, name) for case in correctness["cases"] for name in MODULES]


def test_the_guard_is_right_in_every_case(correctness):
    assert verdicts(correctness, "thinkguard") == dict.fromkeys(correctness["cases"], "right")


def test_a_verdict_follows_from_what_was_printed(correctness):
    for row in correctness["rows"]:
        where = row["case"], row["alternative"]
        wrong = [one["wrong"] for one in row["runs"] if one["wrong"]]
        assert row["verdict"] != "right" or row["runs"], where
        assert row["verdict"] != "right" or not wrong, where
        assert row["verdict"] != "wrong" or wrong, where
        assert row["verdict"] not in ("cannot", "not installed") or row["why"], where
        assert all(one["printed"] for one in row["runs"]), where


@pytest.mark.parametrize("name", MODULES)
def test_an_alternative_is_wrong_where_it_is_written_down(correctness, name):
    about = correctness["alternatives"][name]
    if "cannot" in about:
        reason = f"{name}: {about['cannot']}"
        pytest.skip(reason)
    found = verdicts(correctness, name)
    assert {case for case, verdict in found.items() if verdict == "wrong"} == wrong_cases(name, correctness["cases"])
    assert found["endless thinking, markers as tokens"] == ("cannot" if name == "nothing" else "right")
