"""The commands `doctor` and `audit` as a user types them."""

import json
import time
from pathlib import Path

import pytest
from fake_servers import Healthy, serving
from modes import HEALTHY, checkpoint, good_records, jsonl

from thinkguard.cli import main

DAMAGED = HEALTHY.with_name("damaged")


def told(capsys):
    captured = capsys.readouterr()
    return captured.out, captured.err


def statuses(out):
    return {check["name"]: check["status"] for check in json.loads(out)["checks"]}


def test_the_damaged_model_is_diagnosed_by_name(tmp_path, capsys):
    data = jsonl(tmp_path / "train.jsonl", good_records())
    assert main(["doctor", str(DAMAGED), "--data", str(data)]) == 1
    out, err = told(capsys)
    assert "final-reasoning" in out
    assert "open-r1 #515" in out
    assert "--fix-template" in out
    assert "problem" in err


def test_the_readme_shows_the_real_diagnosis(capsys):
    root = Path(__file__).resolve().parents[1]
    command = "$ thinkguard doctor src/thinkguard/demo/models/damaged\n"
    shown = (root / "README.md").read_text(encoding="utf-8").partition(command)[2]
    lines = shown.partition("\n...\n")[0].splitlines()
    main(["doctor", str(DAMAGED)])
    out, _ = told(capsys)
    assert len(lines) >= 4
    assert [line for line in lines if line not in out.splitlines()] == []


def test_the_fixed_template_is_found_healthy(tmp_path, capsys):
    fixed = tmp_path / "fixed.jinja"
    assert main(["doctor", str(DAMAGED), "--fix-template", str(fixed)]) == 1
    assert str(fixed) in told(capsys)[1]
    data = jsonl(tmp_path / "train.jsonl", good_records())
    assert main(["doctor", str(DAMAGED), "--template", str(fixed), "--data", str(data), "--json"]) == 0
    assert statuses(told(capsys)[0])["final-reasoning"] == "ok"


def test_a_clean_model_takes_less_than_ten_seconds(tmp_path, capsys):
    path = checkpoint(tmp_path)
    begin = time.monotonic()
    assert main(["doctor", str(path), "--json"]) == 0
    assert time.monotonic() - begin < 10
    assert not {"problem", "note", "could not tell"} & set(statuses(told(capsys)[0]).values())


def test_a_folder_and_its_server_make_one_report(tmp_path, capsys):
    path = checkpoint(tmp_path)
    with serving(Healthy()) as url:
        main(["doctor", str(path), "--url", url, "--json"])
    names = statuses(told(capsys)[0])
    assert {"marker-special", "final-reasoning", "opened", "stream"} <= set(names)


def test_shards_are_merged(tmp_path, capsys):
    records = good_records(12)
    records[3]["messages"][1]["content"] = "<think>\nnever closed"
    parts = [jsonl(tmp_path / f"{n}.jsonl", records[n::3]) for n in range(3)]
    saved = []
    for part in parts:
        main(["audit", str(part), "--format", "think", "--json"])
        saved.append(part.with_suffix(".json"))
        saved[-1].write_text(told(capsys)[0], encoding="utf-8")
    assert main(["audit", "--merge", *map(str, saved), "--format", "think", "--json"]) == 1
    merged = json.loads(told(capsys)[0])
    assert main(["audit", *map(str, parts), "--format", "think", "--json"]) == 1
    whole = json.loads(told(capsys)[0])
    assert merged["summary"]["hits"] == whole["summary"]["hits"]
    assert merged["summary"]["facts"] == whole["summary"]["facts"]
    assert {c["name"]: c["status"] for c in merged["checks"]} == {c["name"]: c["status"] for c in whole["checks"]}


def test_a_shard_that_is_given_twice_is_refused(tmp_path, capsys):
    part, saved = jsonl(tmp_path / "part.jsonl", good_records(3)), tmp_path / "0.json"
    main(["audit", str(part), "--format", "think", "--json"])
    saved.write_text(told(capsys)[0], encoding="utf-8")
    for given in (["--merge", str(saved), str(saved)], [str(part), "--merge", str(saved)]):
        assert main(["audit", *given, "--format", "think"]) == 2
        out, err = told(capsys)
        assert out == ""
        assert f"--merge {saved}: {part} would be counted twice" in err


def test_what_cannot_be_mended_is_refused_before_the_audit(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("thinkguard.doctor.audit.run.audit", lambda *_: pytest.fail("it was audited"))
    part = jsonl(tmp_path / "part.jsonl", good_records(3))
    assert main(["audit", str(part), "--fix", str(part)]) == 2
    assert f"{part} exists, and nothing is overwritten" in told(capsys)[1]


def test_what_is_broken_is_named_and_the_rest_goes_on(tmp_path, capsys):
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(record) for record in good_records(4)]
    lines.insert(2, '{"messages": [')
    path.write_text("\n".join(lines), encoding="utf-8")
    assert main(["audit", str(path), "--format", "think"]) == 1
    out, _ = told(capsys)
    assert "train.jsonl:3: " in out
    assert "4 records" in out


def test_the_report_as_a_page(tmp_path, capsys):
    page = tmp_path / "report.html"
    assert main(["doctor", str(DAMAGED), "--html", str(page)]) == 1
    assert str(page) in told(capsys)[1]
    assert "final-reasoning" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["doctor"], "nothing to examine"),
        (["doctor", "nowhere"], "nowhere"),
        (["doctor", "--url", "http://127.0.0.1:9/v1", "--data", "x.jsonl"], "--data needs PATH"),
        (["doctor", str(HEALTHY), "--format", "thnk"], "thnk"),
        (["audit"], "nothing to audit"),
        (["audit", "nowhere.jsonl"], "nowhere.jsonl"),
        (["audit", "--merge", "nowhere.json"], "nowhere.json"),
        (["audit", "--merge", str(HEALTHY / "config.json")], "holds no summary"),
        (["audit", "--merge", str(HEALTHY / "config.json"), "--fix", "out.jsonl"], "needs the records themselves"),
    ],
)
def test_what_cannot_run_says_why(arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = told(capsys)
    assert out == ""
    assert said in err
