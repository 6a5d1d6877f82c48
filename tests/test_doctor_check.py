"""Checks and reports as data, and the catalogue that they are named in."""

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from thinkguard.doctor import catalogue
from thinkguard.doctor.catalogue import PARTS, Entry, entries, unseen
from thinkguard.doctor.check import Check, Plot, Report
from thinkguard.errors import InputError

MODES = [f"F{number}" for number in range(1, 51)]
ROOT = Path(__file__).resolve().parents[1]

PROBLEM = Check("nested", "problem", "2 records", "one block", "drop them", ("a.jsonl:3: ⟦<think>⟧", "b.jsonl:9: ⟦<think>⟧"))
NOTE = Check("final-reasoning", "note", "it is gone")
FINE = Check("round-trip", "ok", "nothing changes")
REPORT = Report(
    "/models/small",
    (PROBLEM, NOTE, FINE, Check("cut-off", "skipped", "no tokenizer")),
    (("records", "12"),),
    (Plot("Tokens", "tokens", "records", (0.0, 1.0), (3.0, 4.0), ((0.5, "p50"),)),),
)


@pytest.fixture
def filled(monkeypatch):
    """A catalogue of one check with every text."""
    entry = Entry(
        name="final-reasoning", part="template", modes=("F17",), looks_at="the text", why="it is learned",
        fix="mend the template", references=("open-r1 #515", "TRL PR #6766"),
    )  # fmt: skip
    monkeypatch.setattr("thinkguard.doctor.check.entries", lambda: {entry.name: entry})
    return entry


def test_every_mode_has_a_check_or_a_reason_why_none_can_see_it():
    shown = {mode for entry in entries().values() for mode in entry.modes}
    assert shown.isdisjoint(unseen())
    assert sorted(shown | set(unseen()), key=MODES.index) == MODES
    assert all(len(reason.split()) > 5 and reason.endswith(".") for reason in unseen().values())


@pytest.mark.parametrize("name", entries())
def test_an_entry_says_everything(name):
    entry = entries()[name]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
    assert entry.part in PARTS
    for text in (entry.looks_at, entry.why, entry.fix):
        assert len(text.split()) >= 3, "a sentence"
        assert "\n" not in text
        assert text.count("`") % 2 == 0, "code without an end"
        assert not re.search(r"TODO|FIXME|\bF\d+\b", text)
    assert len(set(entry.modes)) == len(entry.modes)
    for reference in entry.references:
        assert re.fullmatch(r"\S+( \S+)* #\d+|arXiv \d{4}\.\d{5}", reference), "such as LLaMA-Factory #7080"


def test_names_are_unique_and_parts_stand_together():
    folder = Path(catalogue.__file__).parent
    texts = [(folder / f"{part}.json").read_text(encoding="utf-8") for part in PARTS]
    names = Counter(name for text in texts for name, _ in json.loads(text, object_pairs_hook=list))
    assert [name for name, times in names.items() if times > 1] == []
    assert len(names) == len(entries())
    parts = [entry.part for entry in entries().values()]
    assert parts == sorted(parts, key=PARTS.index)
    assert {path.stem for path in folder.glob("*.json")} == {*PARTS, "unseen"}


def test_the_two_cases_are_found_by_name():
    assert "LLaMA-Factory #7080" in entries()["marker-special"].references
    assert "open-r1 #515" in entries()["final-reasoning"].references


def test_the_docs_list_every_check_and_every_mode():
    text = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert [name for name in entries() if not re.search(rf"^\| `{name}` \|", text, re.M)] == []
    rows = re.findall(r"^\| (F\d+) \| [^|]+ \| ([^|]+) \|$", text, re.M)
    assert [mode for mode, _ in rows] == MODES
    for mode, checks in rows:
        names = [name for name, entry in entries().items() if mode in entry.modes]
        assert re.findall(r"`([a-z-]+)`", checks) == names


def test_the_docs_are_up_to_date():
    spec = importlib.util.spec_from_file_location("write_checks_doc", ROOT / "tools" / "write_checks_doc.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.DOC.read_text(encoding="utf-8")
    assert module.document(text) == text, "run tools/write_checks_doc.py"
    assert list(module.MODES) == MODES
    with pytest.raises(SystemExit, match="wanted the lines <!-- trainers: begin --> and <!-- trainers: end -->"):
        module.document("no marks")
    assert module.cell("a|b `<c>` <think> x_y") == "a&#124;b <code>&lt;c&gt;</code> &lt;think&gt; x\\_y"


def test_a_check_is_in_the_catalogue():
    with pytest.raises(InputError, match=r"check 'tags' is not in the catalogue: add it to doctor/catalogue/\*\.json"):
        Check("tags", "ok", "")
    with pytest.raises(InputError, match="check 'nested': status='fine' is none of ok, note, problem, skipped"):
        Check("nested", "fine", "")


def test_a_problem_says_what_was_wanted_and_how_to_fix_it(filled):
    with pytest.raises(InputError, match="'final-reasoning': a problem has to say what was wanted and how to fix it"):
        Check("final-reasoning", "problem", "gone")
    assert Check("final-reasoning", "problem", "gone", "kept").fix == "mend the template", "the catalogue's"
    assert Check("final-reasoning", "problem", "gone", "kept", "nearer").fix == "nearer"
    assert Check("final-reasoning", "note", "gone").fix == "mend the template"
    assert Check("final-reasoning", "ok", "there").fix == ""


def test_a_problem_without_any_fix_is_refused(filled, monkeypatch):
    bare = Entry(name="bare", part="data", looks_at="nothing")
    monkeypatch.setattr("thinkguard.doctor.check.entries", lambda: {"bare": bare})
    with pytest.raises(InputError, match="how to fix it"):
        Check("bare", "problem", "found", "wanted")


def test_only_problems_and_notes_fire():
    assert [check.fired for check in REPORT.checks] == [True, True, False, False]
    assert REPORT.problems == (PROBLEM,)
    assert REPORT.summary() == "4 checks: 1 ok, 1 note, 1 problem, 1 skipped"
    assert REPORT.as_dict()["ok"] is False
    assert Report("a note is no problem", (NOTE, FINE)).as_dict()["ok"] is True


def test_a_report_for_a_terminal(filled):
    told = Report("/models/small", (Check("final-reasoning", "problem", "it is gone", "it is kept", evidence=("Q⟦R⟧A",)),))
    assert told.as_text().splitlines() == [
        "/models/small",
        "problem         final-reasoning  it is gone",
        "                wanted:          it is kept",
        "                why:             it is learned",
        "                fix:             mend the template",
        "                seen:            Q⟦R⟧A",
        "                see:             open-r1 #515, TRL PR #6766",
    ]


def test_what_is_fine_takes_one_line(filled):
    fine = Check("final-reasoning", "ok", "kept", "kept", "never said")
    told = Report("/models/small", (fine,), (("records", "12"),))
    assert told.as_text().splitlines() == [
        "/models/small", "records: 12", "ok              final-reasoning  kept"
    ]  # fmt: skip


def test_a_report_as_json(filled):
    check = Check("final-reasoning", "problem", "gone", "kept", evidence=("Q⟦R⟧A",))
    plot = Plot("Tokens", "tokens", "records", (0.0, 1.0), (3.0, 4.0), ((0.5, "p50"),))
    report = Report("/models/small", (check, Check("final-reasoning", "ok", "kept")), (("records", "12"),), (plot,))
    told = json.loads(json.dumps(report.as_dict()))
    assert (told["subject"], told["ok"], told["facts"]) == ("/models/small", False, {"records": "12"})
    assert told["checks"] == [
        {
            "name": "final-reasoning", "part": "template", "status": "problem", "found": "gone", "wanted": "kept",
            "fix": "mend the template", "evidence": ["Q⟦R⟧A"], "why": "it is learned",
            "references": ["open-r1 #515", "TRL PR #6766"],
        },
        {
            "name": "final-reasoning", "part": "template", "status": "ok", "found": "kept", "wanted": "", "fix": "",
            "evidence": [],
        },
    ]  # fmt: skip
    assert told["plots"] == [
        {
            "title": "Tokens", "x_label": "tokens", "y_label": "records", "x": [0.0, 1.0], "y": [3.0, 4.0],
            "marks": [[0.5, "p50"]],
        }
    ]  # fmt: skip
