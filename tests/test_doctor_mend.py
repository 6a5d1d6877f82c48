"""`audit --fix`: what is safe is made regular, the rest is set aside, and nothing is lost in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modes import HEALTHY, chat, good_records, jsonl

from thinkguard.doctor.audit.data_checks import data_checks
from thinkguard.doctor.audit.mend import MendSummary, mend
from thinkguard.doctor.audit.plan import AuditOptions
from thinkguard.doctor.audit.run import audit
from thinkguard.doctor.judges.structure import read_turn
from thinkguard.doctor.judges.tags import Markers
from thinkguard.errors import InputError

ONE = AuditOptions(num_processes=1)
GOOD = "<think>\nR\n</think>\n\nA"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mended(folder: Path, records: list[dict[str, Any]], options: AuditOptions = ONE, **more: Any) -> MendSummary:
    return mend([jsonl(folder / "in.jsonl", records)], folder / "out.jsonl", options, **more)


def only(folder: Path, record: dict[str, Any], options: AuditOptions = ONE, **more: Any) -> dict[str, Any]:
    summary = mended(folder, [*good_records(3), record], options, **more)
    assert summary.reasons.total() == 0, summary.as_text()
    return lines(folder / "out.jsonl")[-1]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (GOOD, GOOD),
        ("A", "A"),
        ("<think>R</think>A", GOOD),
        ("<think>\r\n R \n\n</think>\nA\n", GOOD + "\n"),
        ("R\n</think>\nA", GOOD),
        ("<Think>\nR\n</Think>A", GOOD),
        ("&lt;think&gt;R&lt;/think&gt;A &lt;b&gt;", GOOD + " &lt;b&gt;"),
        ("\\<think\\>\nR\n\\</think\\>\n\nA", GOOD),
        ("<think>\nR\n<\\think>A", GOOD),
        ("＜think＞R＜/think＞A", GOOD),
        ("<th\u200bink>R</think>A", GOOD),
        ("<thinking>R</thinking>A", GOOD),
        ("<|begin_of_thought|>\n\nR\n\n<|end_of_thought|>\n\nA", GOOD),
        ("<think>\n\n</think>\n\nA", "<think>\n\n</think>\n\nA"),
        ("<think></think>A", "<think></think>A"),
        ("<think>R\ud800</think>A", "<think>\nR\ud800\n</think>\n\nA"),
    ],
)
def test_what_is_safe_is_made_regular(tmp_path: Path, content: str, wanted: str) -> None:
    record = {**chat("Q?", content), "id": 7, "meta": {"score": 0.5, "tags": ["x", None]}}
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in [*good_records(3), record]), encoding="utf-8")
    summary = mend([file], tmp_path / "out.jsonl", ONE)
    if "\ud800" in content:  # half a character is no text: refused by the reader
        assert dict(summary.reasons) == {"cannot be read": 1}
        return
    told = lines(tmp_path / "out.jsonl")
    assert told[:3] == good_records(3)
    assert told[3] == {**chat("Q?", wanted), "id": 7, "meta": {"score": 0.5, "tags": ["x", None]}}
    assert summary.mended == (content != wanted)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (chat("Q?", "<think>\nR"), "half-open: a start without an end"),
        (chat("Q?", "<Think>\nR"), "half-open: a start without an end"),
        (chat("Q?", GOOD + GOOD), "doubled: several blocks in one turn"),
        (chat("Q?", GOOD + "</think>"), "doubled: a second end"),
        (chat("Q?", "<think>R<think>R</think>A"), "nested: a start inside a block"),
        (chat("Q?", "</think>R<think>A"), "reversed: an end before the first start"),
        (chat("Q? /no_think", GOOD), "mode-contradicts: off, and there is reasoning"),
        (chat("Q?", GOOD + " `</think>`"), "literal-in-data: in an answer"),
        (chat("Q?", GOOD, reasoning_content="R"), "reasoning-twice: inline and in reasoning_content"),
        (chat("Q?", None), "content-type: null, and no tool call"),
        (chat("Q?", "<think>R</think>"), "no-answer: nothing behind the reasoning"),
        (chat("Q?", ""), "no-answer: no text at all"),
        (chat("Q?", "Sure. " + GOOD), "leading-text: text before the block"),
    ],
)
def test_what_is_not_safe_is_set_aside(tmp_path: Path, record: dict[str, Any], reason: str) -> None:
    summary = mended(tmp_path, [*good_records(3), record])
    assert dict(summary.reasons) == {reason: 1}
    assert lines(tmp_path / "out.jsonl") == good_records(3)
    (told,) = lines(tmp_path / "out.rejected.jsonl")
    assert told["record"] == record
    assert (told["reason"], told["file"], told["line"]) == (reason, str(tmp_path / "in.jsonl"), 4)
    assert f"1: {reason}" in summary.as_text()


def test_reasoning_moves_to_where_the_trainer_reads_it(tmp_path: Path) -> None:
    swift = AuditOptions(num_processes=1, trainer="ms-swift")
    record = {**chat("Q?", "A", reasoning_content="\nR\n", weight=1), "id": 7}
    assert only(tmp_path, record, swift) == {**chat("Q?", GOOD, weight=1), "id": 7}


def test_reasoning_beside_a_tool_call_moves_too(tmp_path: Path) -> None:
    swift = AuditOptions(num_processes=1, trainer="ms-swift")
    calls = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    asked = chat("Q?", None, reasoning_content="R", tool_calls=calls)
    rest = [{"role": "tool", "content": "3"}, {"role": "assistant", "content": GOOD}]
    told = only(tmp_path, {"messages": [*asked["messages"], *rest]}, swift)
    assert told["messages"][1] == {"role": "assistant", "content": "<think>\nR\n</think>\n\n", "tool_calls": calls}
    assert told["messages"][2:] == rest


def test_reasoning_moves_into_a_field_if_asked(tmp_path: Path) -> None:
    told = only(tmp_path, chat("Q?", "<think>R</think>A"), place="reasoning_content")
    assert told == chat("Q?", "A", reasoning_content="R")
    (tmp_path / "back").mkdir()
    summary = mend([tmp_path / "out.jsonl"], tmp_path / "back" / "out.jsonl", ONE, place="inline")
    assert summary.mended == 4
    assert lines(tmp_path / "back" / "out.jsonl") == [*good_records(3), chat("Q?", GOOD)]


def test_columns_keep_their_names(tmp_path: Path) -> None:
    swift = AuditOptions(num_processes=1, trainer="ms-swift")
    records = [{"Question": "Q?", "Complex_CoT": f"R{n}", "Response": "A", "note": "A", "n": n} for n in range(3)]
    summary = mended(tmp_path, records, swift)
    assert summary.mended == 3
    for told, was in zip(lines(tmp_path / "out.jsonl"), records, strict=True):
        assert told == {**was, "Complex_CoT": "", "Response": f"<think>\n{was['Complex_CoT']}\n</think>\n\nA"}


def test_a_block_that_the_prompt_opens_stays_open(tmp_path: Path) -> None:
    options = AuditOptions(num_processes=1, prompt_opens=True)
    assert only(tmp_path, chat("Q?", "R</think>A"), options) == chat("Q?", "R\n</think>\n\nA")


def test_records_beyond_a_limit_that_was_named_are_set_aside(tmp_path: Path) -> None:
    long = chat("Q?", GOOD.replace("R", "R " * 300))
    options = AuditOptions(num_processes=1, tokenizer_path=HEALTHY, trainer="trl")
    assert mended(tmp_path, [chat("Q?", GOOD), long], options).reasons.total() == 0
    (tmp_path / "again").mkdir()
    limited = AuditOptions(num_processes=1, tokenizer_path=HEALTHY, trainer="trl", cutoff_len=100)
    summary = mended(tmp_path / "again", [chat("Q?", GOOD), long], limited)
    assert dict(summary.reasons) == {"cut-off: the end marker is cut off": 1}


def test_records_beyond_the_trainers_own_limit_are_set_aside(tmp_path: Path) -> None:
    long = chat("Q?", GOOD.replace("R", "R " * 3000))
    options = AuditOptions(num_processes=1, tokenizer_path=HEALTHY, trainer="llamafactory")
    summary = mended(tmp_path, [chat("Q?", GOOD), long], options)
    assert dict(summary.reasons) == {"cut-off: the end marker is cut off": 1}
    found = {check.name: check.status for check in data_checks(audit([tmp_path / "out.jsonl"], options), options)}
    assert found["cut-off"] == "ok"


def test_a_summary_says_when_nothing_could_be_kept(tmp_path: Path) -> None:
    summary = mended(tmp_path, [chat("Q?", "<think>\nR")] * 2)
    assert summary.as_text().startswith("nothing could be kept: each of the 2 records was set aside")
    (tmp_path / "again").mkdir()
    assert "nothing could be kept" not in mended(tmp_path / "again", good_records(2)).as_text()


def test_what_is_no_record_is_not_counted_as_one(tmp_path: Path) -> None:
    (tmp_path / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(good_records(1)[0]).encode())
    (tmp_path / "empty.jsonl").touch()
    summary = mend([tmp_path / "marked.jsonl", tmp_path / "empty.jsonl"], tmp_path / "out.jsonl", ONE)
    assert lines(tmp_path / "out.jsonl") == good_records(1)
    assert [(one["file"], one["error"]) for one in lines(tmp_path / "out.rejected.jsonl")] == [
        (str(tmp_path / "empty.jsonl"), "is empty")
    ]
    assert "0 records set aside\n  and 1 where a file, or a part of one, cannot be read" in summary.as_text()


def info(folder: Path, **entries: Any) -> None:
    (folder / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")


OPENAI = {"formatting": "openai", "columns": {"messages": "messages", "tools": "tools"}}
TOOLS: dict[str, Any] = {"tools": [{"type": "function"}]}  # without any, LLaMA-Factory's converter switches thinking off


def test_the_entry_that_the_output_needs_is_told(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in "ab":
        jsonl(data / f"{name}.jsonl", [record | TOOLS for record in good_records(2)])
    info(data, a={"file_name": "a.jsonl", **OPENAI}, b={"file_name": "b.jsonl", **OPENAI})
    summary = mend([data], data / "mended.jsonl", AuditOptions(num_processes=1, trainer="llamafactory"))
    assert (summary.unchanged, summary.reasons.total()) == (4, 0)
    said = f"dataset_info.json needs: {json.dumps({'mended': {'file_name': 'mended.jsonl', **OPENAI}})}"
    assert summary.as_text().splitlines()[-1] == said
    (tmp_path / "again").mkdir()
    assert "dataset_info" not in mended(tmp_path / "again", good_records(2)).as_text()


def test_files_of_different_entries_do_not_make_one(tmp_path: Path) -> None:
    data, alpaca = tmp_path / "data", {"columns": {"prompt": "q", "response": "a"}}
    data.mkdir()
    jsonl(data / "a.jsonl", [record | TOOLS for record in good_records(2)])
    jsonl(data / "b.jsonl", [{"q": "Q?", "a": GOOD}])
    out, options = tmp_path / "out.jsonl", AuditOptions(num_processes=1, trainer="llamafactory")
    info(data, mine={"file_name": "a.jsonl", **OPENAI}, other={"file_name": "b.jsonl", **alpaca})
    with pytest.raises(InputError, match=r"a\.jsonl \('mine'\), .*b\.jsonl \('other'\); mend each of them alone"):
        mend([data], out, options)
    assert not out.exists()
    for name in "ab":
        assert mend([data / f"{name}.jsonl"], tmp_path / f"{name}.jsonl", options).unchanged
    jsonl(data / "c.jsonl", good_records(1))
    with pytest.raises(InputError, match=r"c\.jsonl \(no entry\)"):
        mend([data / "a.jsonl", data / "c.jsonl"], out, options)
    trl = AuditOptions(num_processes=1, trainer="trl")  # reads no dataset_info.json
    jsonl(data / "b.jsonl", [{"prompt": "Q?", "completion": GOOD}])
    said = "  of several shapes, as its files were: messages, prompt/completion; trainers want one in a file"
    assert said in mend([data], out, trl).as_text().splitlines()


def test_what_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "in.jsonl", good_records(2))
    file.write_text(file.read_text() + '{"messages": [\n' + '{"strange": 1}\n')
    summary = mend([file], tmp_path / "out.jsonl", ONE)
    told = lines(tmp_path / "out.rejected.jsonl")
    assert [one["line"] for one in told] == [3, 4]
    assert told[0]["error"]
    assert told[1]["record"] == {"strange": 1}
    assert summary.unchanged == 2


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "in.jsonl", good_records(2))
    for taken in ("out.jsonl", "out.rejected.jsonl"):
        (tmp_path / taken).write_text("mine")
        with pytest.raises(InputError, match=f"{taken} exists, and nothing is overwritten"):
            mend([file], tmp_path / "out.jsonl", ONE)
        assert (tmp_path / taken).read_text() == "mine"
        (tmp_path / taken).unlink()
    with pytest.raises(InputError, match="cannot be written"):
        mend([file], tmp_path / "nowhere" / "out.jsonl", ONE)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_interrupt_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("thinkguard.doctor.audit.mend.repair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mended(tmp_path, good_records(2))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


PIECES = ("<think>", "</think>", "&lt;think&gt;", "&lt;/think&gt;", "<Think>", "</THINK>", "a", "\n", " ", "`", "\\", "<")
contents = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)


@given(st.lists(contents, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_what_is_mended_audits_clean(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("mend")
    records = [*good_records(3), *(chat("Q?", text) for text in texts)]
    options = AuditOptions(num_processes=1, format=Markers.of(None).format)
    summary = mended(folder, records, options)
    written, aside = lines(folder / "out.jsonl"), lines(folder / "out.rejected.jsonl")
    assert len(written) + len(aside) == len(records) == summary.unchanged + summary.mended + summary.reasons.total()
    assert all(told["record"] in records for told in aside)
    found = data_checks(audit([folder / "out.jsonl"], options), options)
    bad = [check.name for check in found if check.status == "problem"]
    assert set(bad) <= {"no-reasoning", "empty-reasoning"}
    (folder / "again").mkdir()
    again = mend([folder / "out.jsonl"], folder / "again" / "out.jsonl", options)
    assert again.mended == 0, again.as_text()
    for record in written[3:]:
        assert not read_turn(record["messages"][1]["content"], Markers.of(None)).foreign
