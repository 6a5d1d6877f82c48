"""Each failure mode fires exactly its check, and its clean twin fires none."""

from pathlib import Path

import modes_data
import modes_mask
import modes_outputs
import modes_template
import modes_tokenizer
import pytest
from modes import Case

from thinkguard.doctor.catalogue import entries, unseen
from thinkguard.doctor.examine import examine
from thinkguard.doctor.template.sandbox import Renderer

CASES: list[Case] = [
    *modes_tokenizer.CASES, *modes_template.CASES, *modes_data.CASES, *modes_mask.CASES, *modes_outputs.CASES
]  # fmt: skip
SERVED = {name for name, entry in entries().items() if entry.part == "serving"}


@pytest.fixture(scope="module")
def renderer():
    with Renderer(limit_s=60) as renderer:
        yield renderer


def fired(case: Case, folder: Path, broken: bool, renderer: Renderer) -> dict[str, str]:
    folder.mkdir()
    inputs = case.make(folder, broken)
    report = examine(
        inputs.path, data=inputs.data, against=inputs.against, template=inputs.template, trainer=inputs.trainer,
        cutoff_len=inputs.cutoff_len, num_processes=1, renderer=renderer,
    )  # fmt: skip
    return {check.name: check.found for check in report.checks if check.fired}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mode_fires_exactly_its_check(case, tmp_path, renderer):
    assert set(fired(case, tmp_path / "broken", broken=True, renderer=renderer)) == {case.check}
    assert fired(case, tmp_path / "clean", broken=False, renderer=renderer) == {}


def test_every_mode_and_every_check_has_a_case():
    """Those of a live server are in test_doctor_serving.py, with fake servers for fixtures."""
    shown = {case.check for case in CASES}
    assert shown | SERVED == set(entries()), "a check without a fixture"
    modes = {mode for name in shown | SERVED for mode in entries()[name].modes}
    assert modes | set(unseen()) == {f"F{number}" for number in range(1, 51)}
    assert {case.mode for case in CASES if case.mode} == {mode for name in shown for mode in entries()[name].modes}
