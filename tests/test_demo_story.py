"""The demonstration's story on a real model, where the laboratory is: broken by a template, named, warned of, mended."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch", reason="the model is torch's")
pytest.importorskip("transformers", reason="the model is transformers'")

from benches.quality.lab import place
from thinkguard.cli import COULD_NOT_RUN, main
from thinkguard.demo import lab, story


@pytest.fixture(scope="module")
def told():
    """The story in small, as JSON."""
    if why := place.missing((place.TEXT,)):
        pytest.skip(why)
    return json.loads(story.run(num=4, num_records=16, as_json=True))


def test_the_doctor_and_the_callback_say_it_before_the_training_does(told):
    assert told["problems"], "the doctor names the template"
    assert any(line.startswith("no-end: ") and "drops the reasoning" in line for line in told["warnings"]), told["warnings"]


def test_the_mended_template_has_no_problem(told):
    assert told["problems_mended"] == {}
    assert told["warnings_mended"] == []


def test_the_model_forgets_to_think_and_the_guard_makes_it_think(told):
    came, stripped, guarded, mended = told["rows"]
    assert [row["num"] for row in told["rows"]] == [4] * 4
    assert came["classes"].get("valid", 0) >= 2
    assert stripped["classes"].get("missing", 0) >= 3
    assert guarded["classes"] == {"valid": 4}
    assert mended["classes"].get("missing", 0) == 0
    lines = story.table([story.Told(**row) for row in told["rows"]]).splitlines()
    assert len(lines) == 5
    assert lines[3].split()[-4:] == ["guarded", "4/4", "0/4", "0/4"]


def test_without_the_laboratory_the_remedy_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not lab.has_story()
    assert main(["demo", "--model", "lab"]) == COULD_NOT_RUN
    assert "run `make lab`" in capsys.readouterr().err
    assert place.missing() == (
        f"no base, think-text, think-tokens in {tmp_path / 'thinkguard' / 'lab'}: run `make lab`, which takes some minutes"
    )
    with pytest.raises(FileNotFoundError, match="make lab"):
        place.load(place.TEXT)
