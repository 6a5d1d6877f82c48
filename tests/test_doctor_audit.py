"""The audit of training data: its judges, its sums, and the processes that run it."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from doomed import doomed
from hypothesis import given, settings
from hypothesis import strategies as st
from modes import HEALTHY, chat, good_records, jsonl

from thinkguard.doctor.audit import processes
from thinkguard.doctor.audit.data_checks import data_checks, data_facts, data_plots, suggested_policy
from thinkguard.doctor.audit.lengths import LOSES_ANSWER, LOSES_END, Lengths, Limit, TokenCounter, cut, rounded
from thinkguard.doctor.audit.plan import AuditOptions
from thinkguard.doctor.audit.run import audit
from thinkguard.doctor.audit.summary import MAX_EXAMPLES, Summary, bin_of, edge_of
from thinkguard.doctor.judges import structure
from thinkguard.doctor.judges.tags import Markers, judge, look
from thinkguard.doctor.records import record as facts
from thinkguard.doctor.records.record import Hit, Record, Turn
from thinkguard.errors import InputError
from thinkguard.formats import ThinkFormat
from thinkguard.policy import ThinkPolicy

MARKERS = Markers.of(None)
LLAMAFACTORY = Markers.of(None, trainer="llamafactory")


def record(content: str, user: str = "Q?", **turn: Any) -> Record:
    return Record([Turn("user", user), Turn("assistant", content, **turn)])


def named(content: str, markers: Markers = MARKERS, **options: Any) -> list[str]:
    return [hit.check for hit in judge(record(content, **options), markers)]


@pytest.mark.parametrize(
    ("content", "checks"),
    [
        ("<think>\nR\n</think>\n\nA", []),
        ("\n<think>\nR\n</think>\n\nA", []),
        ("<think>\nR", ["half-open"]),
        ("<think>\nR\n</think>\n\nA<think>more", ["half-open"]),
        ("R\n</think>\n\nA", ["orphan-end"]),
        ("<think>\nR\n</think>\n\nA<think>\nR\n</think>\n\nA", ["doubled"]),
        ("<think>\nR\n</think>\n\nA</think>", ["doubled"]),
        ("<think>\nR<think>R</think>A", ["nested"]),
        ("<think><think>R", ["nested"]),
        ("</think>R<think>A", ["reversed"]),
        ("</think>R<think>A</think>", ["reversed"]),
        ("<think>\n\n</think>\n\nA", ["empty-reasoning"]),
        ("A", ["no-reasoning"]),
        ("&lt;think&gt;\nR\n&lt;/think&gt;\n\nA", ["html-escaped"]),
        ("&amp;lt;think&amp;gt;R&amp;lt;/think&amp;gt;A", ["html-escaped"]),
        ("&#60;think&#x3E;R&#60;/think&#x3E;A", ["html-escaped"]),
        ("<think>\nR\n&lt;/think&gt;\n\nA", ["html-escaped"]),
        ("<Think>R</Think>A", ["look-alike"]),
        ("<think>R</THINK>A", ["look-alike"]),
        ("<thinking>R</thinking>A", ["look-alike"]),
        ("<reasoning>R</reasoning>A", ["look-alike"]),
        ("<|begin_of_thought|>R<|end_of_thought|>A", ["look-alike"]),
        ("◁think▷R◁/think▷A", ["look-alike"]),
        ("＜think＞R＜/think＞A", ["look-alike"]),
        ("<ｔｈｉｎｋ>R</think>A", ["look-alike"]),
        ("<th\u200bink>R</think>A", ["look-alike"]),
        ("<\u200bthink>R</\ufeffthink>A", ["look-alike"]),
        ("\\<think\\>R\\</think\\>A", ["look-alike"]),
        ("<think>R<\\think>A", ["look-alike"]),
        ("<\\think>R</think>A", ["look-alike"]),
        ("<think >R</think >A", ["look-alike"]),
        ("< think>R< / think>A", ["look-alike"]),
        ("\\u003cthink\\u003eR\\u003c/think\\u003eA", ["look-alike"]),
        ("<Think>R", ["look-alike", "half-open"]),
        ("In HTML one writes &lt;think&gt; for it", ["no-reasoning"]),
        ("Say `<think>` and `</think>`", ["literal-in-data", "no-reasoning"]),
        ("<think>\nThe tag “</think>” ends it\n</think>\n\nA", ["literal-in-data"]),
        ("<think>\nThe tag `</think>` is", ["half-open", "literal-in-data"]),
        (" <think>\n```\nx\n</think>\n\nA", []),
        ("<think>\nR\n</think>\n\nA ```\nx = '<think>'\n``` B", ["literal-in-data"]),
    ],
)
def test_each_class_is_one_check(content: str, checks: list[str]) -> None:
    assert [check for check in named(content) if check != "white-space"] == checks


def test_the_spot_is_marked() -> None:
    (hit,) = judge(record("<think>\nR\n</think>\n\nA </think> B"), MARKERS)
    assert hit == Hit("doubled", "a second end", "<think>\\nR\\n</think>\\n\\nA ⟦</think>⟧ B")
    (hit,) = judge(record("x" * 500 + "</think>" + "y" * 500), MARKERS)
    assert hit.excerpt == "…" + "x" * 50 + "⟦</think>⟧" + "y" * 50 + "…"


def test_a_prompt_that_opens_the_block_makes_an_end_regular() -> None:
    assert named("R\n</think>\n\nA") == ["orphan-end"]
    assert named("R\n</think>\n\nA", user="Q?\n<think>\n") == []
    opened = Markers.of(None, prompt_opens=True)
    assert named("R\n</think>\n\nA", opened) == []
    assert named("<think>\nR\n</think>\n\nA", opened) == []
    assert named("R\n</think>\n\nA<think>B</think>", opened) == ["doubled"]
    assert look(record("R\n</think>\n\nA"), opened).reasoning == "R\n"


@pytest.mark.parametrize(
    ("turn", "checks", "fact"),
    [
        (dict(reasoning="R", place="reasoning_content"), [], facts.IN_FIELD + "reasoning_content"),
        (dict(reasoning="R", place="reasoning", read=False), ["field-unread"], facts.IN_FIELD + "reasoning"),
        (dict(reasoning=" ", place="reasoning", read=False), ["no-reasoning"], facts.WITHOUT_REASONING),
        (dict(shape="parts"), ["content-type", "no-reasoning"], facts.PARTS),
        (dict(shape="none", calls=1, reasoning="R", place="thinking"), ["content-type"], facts.TOOL_REASONING),
    ],
)
def test_reasoning_beside_the_content(turn: dict[str, Any], checks: list[str], fact: str) -> None:
    judged = look(record("A", **turn), MARKERS)
    assert [hit.check for hit in judged.hits] == checks
    assert fact in judged.facts


def test_reasoning_in_two_places() -> None:
    assert named("<think>\nR\n</think>\n\nA", reasoning="R", place="reasoning") == ["reasoning-twice"]
    assert named("<think>\nR\n</think>\n\nA", reasoning="R", place="reasoning", read=False) == []


def test_tool_calls_replace_what_llamafactory_reads() -> None:
    assert named("<think>\nR\n</think>\n\n", LLAMAFACTORY, calls=1, calls_beside=True) == ["tool-turn-data"]
    assert named("<think>\nR\n</think>\n\n{}", LLAMAFACTORY, calls=1) == []  # its formatter puts the thought before the call
    assert named("<think>\nR\n</think>\n\n", calls=1) == []


@pytest.mark.parametrize(
    ("content", "turn", "checks"),
    [
        ("<think>\nR\n</think>\n\n", {}, ["no-answer"]),
        ("", {}, ["no-answer"]),
        (" \n", {"shape": "parts"}, ["content-type", "no-answer"]),
        ("", {"reasoning": "R", "place": "reasoning"}, ["no-answer"]),
        ("", {"reasoning": "R", "place": "reasoning", "shape": "none"}, ["content-type", "no-answer"]),
        ("", {"shape": "none"}, ["content-type"]),
        ("<think>\nR", {}, ["half-open"]),
        ("<think>\nR\n</think>\n\n", {"calls": 1}, []),
        ("", {"reasoning": "R", "place": "reasoning", "calls": 1}, []),
    ],
)
def test_reasoning_without_an_answer(content: str, turn: dict[str, Any], checks: list[str]) -> None:
    assert [hit.check for hit in judge(record(content, **turn), MARKERS)] == checks


def test_no_answer_is_asked_of_a_pair_or_of_a_turn_that_goes_on() -> None:
    pair = record("<think>\nR\n</think>\n\n")
    pair.raw = {"prompt": "Q?", "chosen": "<think>\nR\n</think>\n\n", "rejected": "A"}
    assert judge(pair, MARKERS) == []
    turns = [*record("<think>\nR\n</think>\n\n").turns, Turn("tool", "3"), Turn("assistant", "<think>\nR\n</think>\n\nA")]
    assert judge(Record(turns), MARKERS) == []


@pytest.mark.parametrize(
    ("content", "format", "hit"),
    [
        ("Sure! <think>\nR\n</think>\n\nA", None, "⟦Sure! ⟧<think>\\nR\\n</think>\\n\\nA"),
        ("\n" + "x" * 90 + "<think>\nR\n</think>\n\nA", None, "\\n⟦" + "x" * 50 + "⟧" + "x" * 40 + "<think>\\nR\\n…"),
        ("Sure! <think>\n\n</think>\n\nA", None, "⟦Sure! ⟧<think>\\n\\n</think>\\n\\nA"),
        (" \n<think>\nR\n</think>\n\nA", None, None),
        ("<think>\nR\n</think>\n\nSure! A", None, None),
        ("Sure! <think>\nR", None, None),  # half-open stands for it
        ("<|start|>assistant<|channel|>analysis<|message|>R<|end|>A", "gpt_oss_harmony", None),
        ("Sure!<|channel|>analysis<|message|>R<|end|>", "gpt_oss_harmony", "⟦Sure!⟧<|channel|>analysis<|message|>R<|end|>"),
    ],
)
def test_text_before_the_block(content: str, format: str | None, hit: str | None) -> None:
    markers = Markers.of(None if format is None else ThinkFormat.from_name(format))
    found = [(one.kind, one.excerpt) for one in judge(record(content), markers) if one.check == "leading-text"]
    assert found == ([] if hit is None else [("text before the block", hit)])


def test_text_before_the_block_is_left_to_pairs_and_calls() -> None:
    speaks = "Let me look. <think>\nR\n</think>\n\nA"
    assert named(speaks) == ["leading-text"]
    assert named(speaks, calls=1) == []
    pair = record(speaks)
    pair.raw = {"prompt": "Q?", "chosen": speaks, "rejected": "A"}
    assert judge(pair, MARKERS) == []
    turns = record(speaks).turns
    assert judge(Record([*turns, Turn("tool", "3"), Turn("assistant", "<think>\nR\n</think>\n\nA")]), MARKERS) == []
    assert [hit.check for hit in judge(Record([*turns, *record("A").turns]), MARKERS)] == ["leading-text"]
    assert judge(Record(turns[1:]), MARKERS) == []  # a text that was not parted into turns: what leads may be its question


def test_markers_in_other_roles() -> None:
    hits = judge(record("<think>\nR\n</think>\n\nA", user="What is <think>?"), MARKERS)
    assert hits == [Hit("literal-in-data", "in a user turn", "What is ⟦<think>⟧?")]
    turns = [Turn("system", "Think in <think></think>."), Turn("user", "Q"), Turn("assistant", "<think>\nR\n</think>\n\nA")]
    judged = look(Record(turns), MARKERS)
    assert [hit.kind for hit in judged.hits] == ["in a system turn"]
    assert facts.LITERAL not in judged.facts


@pytest.mark.parametrize(
    ("thinks", "content", "checks"),
    [
        (False, "<think>\nR\n</think>\n\nA", ["mode-contradicts"]),
        (False, "<think>\n\n</think>\n\nA", []),
        (False, "A", []),
        (True, "A", ["mode-contradicts"]),
        (True, "<think>\nR\n</think>\n\nA", []),
    ],
)
def test_mode_text(thinks: bool, content: str, checks: list[str]) -> None:
    one = record(content)
    one.thinks, one.switch = thinks, "/no_think"
    assert [hit.check for hit in judge(one, MARKERS)] == checks


def test_facts_of_a_conversation() -> None:
    turns = [Turn("user", "Q"), Turn("assistant", "<think>\nR\n</think>\n\nA"), Turn("user", "Q"), Turn("assistant", "A")]
    assert {facts.WITH_REASONING, facts.EARLIER_REASONING, facts.INLINE} == set(look(Record(turns), MARKERS).facts)
    assert [hit.check for hit in judge(Record(turns[:1]), MARKERS)] == ["content-type"]


@pytest.mark.parametrize(
    ("content", "markers", "name"),
    [
        ("<think>R</think>A", MARKERS, "<think>…</think>"),
        ("<think>\nR\n</think>\nA", MARKERS, "<think>\\n…\\n</think>\\n"),
        ("<think>\r\nR\n</think>\n\nA", MARKERS, "<think>\\r\\n…\\n</think>\\n\\n"),
        ("<think> \t R\n</think>\n\nA", MARKERS, "<think>(white space)…\\n</think>\\n\\n"),
        ("<think>R</think>A", LLAMAFACTORY, "<think>…</think>"),
        ("<think>\n\nR\n</think>\n\nA", MARKERS, "<think>\\n\\n…\\n</think>\\n\\n"),
        ("<think>\n\nR\n\n</think>\n\n\nA", LLAMAFACTORY, None),  # its pattern takes the rest as reasoning and answer
        ("<think>R</think>A", Markers.of(ThinkFormat.from_name("glm4_7")), None),
        ("<think>\nR\n</think>", MARKERS, None),
    ],
)
def test_white_space_is_the_familys_or_the_trainers(content: str, markers: Markers, name: str | None) -> None:
    hits = judge(record(content), markers)
    assert [(hit.check, hit.kind) for hit in hits if hit.check != "no-answer"] == ([("white-space", name)] if name else [])


PIECES = ("<think>", "</think>", "a", "\n", "`", "<", "th", "&lt;think&gt;", "<Think>", "\\", " ", "```", "</")


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@settings(max_examples=200, deadline=None)
def test_the_short_way_agrees_with_the_long_one(content: str) -> None:
    quick, slow = structure.read_turn(content, MARKERS), structure._read_slowly(content, MARKERS, False)
    assert (quick.block, quick.broken) == (slow.block, slow.broken)
    judged = look(record(content), MARKERS)
    assert len({hit.check for hit in judged.hits} & {"half-open", "orphan-end", "doubled", "nested", "reversed"}) < 2
    assert all("\n" not in hit.excerpt for hit in judged.hits)


@pytest.mark.parametrize(
    "text",
    [
        "<" * 10**6, "<   " * 10**6, "<\\" * 10**5, "\\" * 10**6, "&amp;" * 10**5, "<\u200b" * 10**5, "<thin" * 10**5,
        "<think>" * 10**6, "</think><think>" * 10**6, "`<think>` " * 10**6, "```" * 10**6, "\ud800" * 10**6 + "<think>",
        "<think>" + "x" * 10**7, " " * 10**7, "&lt;think&gt;" * 10**6,
    ],
    ids=range(15),
)  # fmt: skip
def test_hostile_texts_take_linear_time(text: str) -> None:
    begin = time.process_time()
    judged = look(record(text, user=text), MARKERS)
    assert time.process_time() - begin < 2 + 2e-6 * len(text)
    assert judged.hits
    json.dumps([hit.excerpt for hit in judged.hits]).encode()


def test_markers_are_picklable() -> None:
    for name in ThinkFormat.names():
        markers = Markers.of(ThinkFormat.from_name(name))
        assert pickle.loads(pickle.dumps(markers)) == markers
        content = f"{markers.open_text}R{markers.close_text}A"
        assert "no-reasoning" not in named(content, markers)
        assert look(record(content), markers).reasoning.strip() == "R"


counts = st.dictionaries(st.sampled_from("abc"), st.integers(1, 9), max_size=3)
hits = st.builds(Hit, st.sampled_from(["nested", "doubled"]), st.sampled_from("xyz"), st.text(max_size=3))
adds = st.tuples(st.sampled_from(["f", "g"]), st.integers(1, 30), st.lists(hits, max_size=3), st.integers(0, 10**6))


shards = itertools.count()


@st.composite
def summaries(draw: st.DrawFn) -> Summary:
    summary = Summary({"trainer": "trl"})
    summary.inputs = {f"digest {next(shards)}": "f"}
    for file, line, found, length in draw(st.lists(adds, max_size=8)):
        summary.add(file, kind="training", shape="messages", facts=[facts.INLINE])
        summary.add_hits(file, line, found)
        summary.add_lengths("reasoning", [length])
        if not length % 5:
            summary.add_error(file, line, "broken", "why")
    return summary


def copied(summary: Summary) -> Summary:
    return Summary.from_dict(json.loads(json.dumps(summary.as_dict())))


def merged(*parts: Summary) -> Summary:
    whole = Summary()
    for part in parts:
        whole.merge(part)
    return whole


@given(summaries(), summaries(), summaries())
@settings(max_examples=40, deadline=None)
def test_summaries_add_up_in_any_order(a: Summary, b: Summary, c: Summary) -> None:
    assert copied(a) == a
    assert merged(a, b) == merged(b, a)
    assert merged(merged(a, b), c) == merged(a, merged(b, c)) == merged(copied(c), copied(a), copied(b))
    assert merged(a, b, c).records == a.records + b.records + c.records
    assert merged(a, b, c).inputs == a.inputs | b.inputs | c.inputs
    assert all(len(examples) <= MAX_EXAMPLES for examples in merged(a, b, c).examples.values())


def test_summaries_of_other_audits_are_refused() -> None:
    with pytest.raises(InputError, match="trainer is 'trl' here and 'axolotl' there"):
        Summary({"trainer": "trl"}).merge(Summary({"trainer": "axolotl"}))
    assert merged(Summary({"format": ""}), Summary({"format": "think"})).settings == {"format": "think"}
    with pytest.raises(InputError, match="format is 'gemma4' here and 'think' there"):
        merged(Summary({"format": "gemma4"}), Summary({"format": ""}), Summary({"format": "think"}))
    with pytest.raises(InputError, match="version None"):
        Summary.from_dict({})
    with pytest.raises(InputError, match="KeyError: 'settings'"):
        Summary.from_dict({"version": 1})


def test_a_shard_counts_once(tmp_path: Path) -> None:
    for folder in ("one", "two", "copy"):
        (tmp_path / folder).mkdir()
        jsonl(tmp_path / folder / "part.jsonl", good_records(3 if folder == "two" else 2))
    one, two, copy = (audit([tmp_path / folder / "part.jsonl"], AuditOptions()) for folder in ("one", "two", "copy"))
    whole = merged(copied(one), copied(two))
    assert whole.records == 5
    for twice in (one, copy):
        with pytest.raises(InputError, match=r"part\.jsonl would be counted twice, .*: give each shard once"):
            whole.merge(copied(twice))
    assert whole == merged(two, one)  # what was refused has changed nothing
    (tmp_path / "part.jsonl").touch()
    assert audit([tmp_path / "part.jsonl"], AuditOptions()).inputs == {}  # an empty part adds nothing, however often
    old = one.as_dict()
    del old["inputs"]  # as it was saved before there were digests
    assert merged(Summary.from_dict(old), Summary.from_dict(old)).records == 4


@given(st.integers(0, 2**40))
def test_bins_hold_their_lengths(num: int) -> None:
    assert edge_of(bin_of(num)) <= num < edge_of(bin_of(num) + 1)
    assert (edge_of(bin_of(num) + 1) - 1) * 16 <= num * 17
    assert num <= rounded(num) <= max(16, num * 5 // 4)


def test_a_limit_cuts_the_end_of_the_target() -> None:
    lengths = Lengths(1000, 200, (("user", 90),))  # 95 of the user's turn, 4 of the header, 1,207 of the target
    for tokens, lost in ((1306, None), (1305, LOSES_ANSWER), (1105, LOSES_ANSWER), (1104, LOSES_END), (50, LOSES_END)):
        hit = cut(lengths, Limit(tokens, "max_length", "end"), MARKERS)
        assert (hit and hit.kind) == lost, tokens
    hit = cut(lengths, Limit(1000, "max_length", "drop"), MARKERS)
    assert hit is not None
    assert hit.kind == "the record is left out"


@pytest.mark.parametrize(
    ("lengths", "tokens", "lost"),
    [
        (Lengths(1000, 200, (("user", 3000),)), 2400, LOSES_END),  # prompt and target share: 2400 * 1207 // 4212 = 687
        (Lengths(100, 20, (("user", 3000),)), 2500, None),  # a short target is kept, the prompt pays
        (Lengths(3000, 200, (("user", 50),)), 2048, LOSES_END),
        (Lengths(2000, 200, (("user", 50),)), 2070, LOSES_ANSWER),
        (Lengths(100, 20, (("user", 50), ("assistant", 2000), ("user", 50))), 2048, LOSES_END),  # nothing left of it
    ],
)
def test_llamafactory_shares_the_limit(lengths: Lengths, tokens: int, lost: str | None) -> None:
    hit = cut(lengths, Limit(tokens, "cutoff_len", "both"), LLAMAFACTORY)
    assert (hit and hit.kind) == lost
    assert tokens != 2400 or (hit and "687 of the last turn are kept" in hit.excerpt)


def test_words_count_as_texts_do(tokenizer_dirs: dict[str, Path]) -> None:
    source = Path(structure.__file__).read_text(encoding="utf-8")
    texts = ["好的，我们来看这个问题。\n\n首先" * 30, "", " \n x  \n\n  y"]
    texts += [source[at : at + 900] for at in range(0, len(source), 900)]
    for name in ("qwen3", "mistral-v1-spm"):
        counter = TokenCounter(tokenizer_dirs[name])
        whole = counter._whole(texts)
        assert counter.count(texts) == whole
        counter._tried = 1 << 40
        counted = counter.count(texts)
        assert sum(abs(a - b) for a, b in zip(whole, counted, strict=True)) * 300 <= sum(whole), name
        assert counter._by_words == (name != "mistral-v1-spm")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    bad = [chat("Q?", "<think>\nR"), chat("Q?", "A"), chat("Q?", "<Think>R</Think>A")]
    paths = [jsonl(tmp_path / f"{name}.jsonl", [*good_records(20), *bad]) for name in "abc"]
    paths[1].write_text(paths[1].read_text() + "{broken\n" + json.dumps({"strange": 1}) + "\n")
    return paths


def checks_of(summary: Summary, options: AuditOptions) -> dict[str, str]:
    found = data_checks(summary, options)
    return {check.name: check.status for check in found if check.status not in ("ok", "not applicable")}


def test_an_audit_in_one_process_and_in_two(files: list[Path]) -> None:
    options = AuditOptions(num_processes=1, tokenizer_path=HEALTHY, cutoff_len=64, trainer="trl")
    one = audit(files, options)
    two = audit(files, AuditOptions(num_processes=2, tokenizer_path=HEALTHY, cutoff_len=64, trainer="trl"))
    assert one == two
    assert one.records == 3 * 23
    assert one.records_hit["half-open"] == one.records_hit["look-alike"] == 3
    assert one.records_hit["file"] == 2
    wanted = {"file": "problem", "half-open": "problem", "look-alike": "problem", "no-reasoning": "note"}
    assert checks_of(one, options) == wanted
    (check,) = [check for check in data_checks(one, options) if check.name == "half-open"]
    assert check.found == "3 of 69 records (4.3%): a start without an end"
    assert check.evidence[0].endswith("a.jsonl:21: ⟦<think>⟧\\nR")
    assert ThinkPolicy(**suggested_policy(one)).max_thinking_tokens
    assert dict(data_facts(one, options))["policy"] == json.dumps(suggested_policy(one))
    (plot, _) = data_plots(one, options)
    assert sum(plot.y) == one.facts[facts.WITH_REASONING]
    assert list(plot.x) == sorted(plot.x)


def found_by_file_check(*paths: Path, trainer: str | None = None) -> str:
    options = AuditOptions(num_processes=1, trainer=trainer, format=ThinkFormat.from_name("think"))
    (check,) = [check for check in data_checks(audit(paths, options), options) if check.name == "file"]
    assert check.status == "problem"
    return check.found


def test_what_cannot_be_read_is_counted_as_what_it_is(tmp_path: Path) -> None:
    two = json.dumps(good_records(2)).encode()
    broken = {
        "marked.jsonl": (b"\xef\xbb\xbf" + two[1:-1].replace(b"]}, {", b"]}\n{"), "1 file begins with a byte order mark"),
        "table.csv": (b"a,b\n1,2\n", "1 file cannot be read"),
        "cut.json": (two[:-40], "1 part of a file cannot be read"),
        "line.jsonl": (two[1:-1].replace(b"]}, {", b"]}\n{") + b"\n{broken\n", "1 record cannot be read"),
    }
    for name, (data, told) in broken.items():
        (tmp_path / name).write_bytes(data)
        num = {"table.csv": "0 records in 0 files", "cut.json": "1 record in 1 file"}.get(name, "2 records in 1 file")
        assert found_by_file_check(tmp_path / name) == f"{told}, beside {num}"
    for name in ("empty.jsonl", "blank.json"):
        (tmp_path / name).write_bytes(b"\n" * (name == "blank.json"))
    told = found_by_file_check(*(tmp_path / name for name in (*broken, "empty.jsonl", "blank.json")))
    assert told == (
        "1 file begins with a byte order mark, 1 record cannot be read, 3 files cannot be read, "
        "1 part of a file cannot be read, beside 5 records in 3 files"
    )


def test_good_records_behind_many_broken_ones_count(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", good_records(3))
    file.write_text("{broken\n" * 100 + file.read_text(encoding="utf-8"), encoding="utf-8")
    assert found_by_file_check(file) == "100 records cannot be read, beside 3 records in 1 file"


def test_a_file_of_dataset_info_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    jsonl(data / "a.jsonl", good_records(2))
    entries = {
        "mine": {"file_name": "a.jsonl", "formatting": "openai", "columns": {"messages": "messages"}},
        "gone": {"file_name": "b.jsonl"},
        "hub": {"hf_hub_url": "x/y", "file_name": "c.jsonl"},  # the hub goes first
    }
    (data / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")
    for trainer in (None, "llamafactory"):
        summary = audit([data], AuditOptions(num_processes=1, trainer=trainer))
        assert [key for key in summary.hits if key[0] == "file"] == [("file", "file missing")]
        ((file, line, shown),) = summary.examples["file", "file missing"]
        assert (file, line) == (str(data / "b.jsonl"), 0)
        assert shown.startswith("'gone' of dataset_info.json names it, but it is not there:")
    assert found_by_file_check(data) == "1 file of dataset_info.json is missing, beside 2 records in 1 file"
    for paths, trainer in (([data], "trl"), ([data / "a.jsonl"], None)):  # neither reads, nor asks for, the other file
        assert not audit(paths, AuditOptions(num_processes=1, trainer=trainer)).records_hit["file"]


def test_the_markers_are_found_in_the_data(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [chat("Q?", "<seed:think>R</seed:think>\nA")] * 3)
    summary = audit([file], AuditOptions())
    assert summary.settings["format"] == "seed_oss"
    assert not summary.records_hit
    plain = audit([jsonl(tmp_path / "b.jsonl", [chat("Q?", "A")] * 3)], AuditOptions())
    assert checks_of(plain, AuditOptions()) == {"no-reasoning": "note"}
    options = AuditOptions(format=ThinkFormat.from_name("think"))
    assert checks_of(audit([tmp_path / "b.jsonl"], options), options) == {"no-reasoning": "problem"}


def test_whether_a_template_reads_a_field_is_not_claimed(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*good_records(3), chat("Q?", "A", reasoning_content="R")])
    for trainer, known, status in (("trl", False, "could not tell"), ("trl", True, "ok"), ("ms-swift", False, "problem")):
        options = AuditOptions(num_processes=1, trainer=trainer, template_known=known)
        (check,) = [check for check in data_checks(audit([file], options), options) if check.name == "field-unread"]
        assert check.status == status
        assert ("thinkguard doctor PATH --data FILES" in check.fix) == (status == "could not tell")
    inline = AuditOptions(num_processes=1, trainer="trl")
    summary = audit([jsonl(tmp_path / "b.jsonl", good_records(3))], inline)
    assert "field-unread" not in checks_of(summary, inline)


def test_bad_options_are_refused(files: list[Path]) -> None:
    with pytest.raises(InputError, match="engine='spark'"):
        audit(files, AuditOptions(engine="spark"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="num_processes=0"):
        audit(files, AuditOptions(num_processes=0))
    with pytest.raises(InputError, match=r"tokenizer .* does not exist"):
        audit(files, AuditOptions(tokenizer_path=Path("/nowhere")))


def test_progress_is_told_on_stderr(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    audit(files, AuditOptions(num_processes=1, progress=True))
    out, err = capsys.readouterr()
    assert (out, "69.0 records" in err) == ("", True)
    audit(files, AuditOptions(num_processes=1))
    assert capsys.readouterr().err == ""


def test_a_large_file_is_shared_without_losing_a_line(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [chat("Q?", f"<think>\n{'R ' * 4500}\n</think>\n\nA")] * 1000)
    with open(file, "a", encoding="utf-8") as more:
        more.write("{broken\n" + json.dumps(chat("Q?", "<think>\nR")) + "\n")
    two = audit([file], AuditOptions(num_processes=2))
    assert two == audit([file], AuditOptions(num_processes=1))
    assert (two.records, two.examples["half-open", "a start without an end"][0].line) == (1001, 1002)


def test_a_process_that_dies_costs_its_own_file_only(files: list[Path]) -> None:
    files[0].write_text(files[0].read_text() + json.dumps({**chat("Q?", "A"), "die": True}) + "\n")
    summary = processes.run(doomed(files), 2, False)
    assert summary.records == 2 * 23
    assert summary.examples["file", "part of a file cannot be read"][0].file == str(files[0])


SLEEPER = """
import signal
import sys
from pathlib import Path
from doomed import doomed
from thinkguard.doctor.audit import processes
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for all that it runs behind
    print("started", flush=True)
    processes.run(doomed([Path(path) for path in sys.argv[1:]]), 2, False)
"""


def test_an_interrupt_ends_every_process(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil", reason="which processes are left is psutil's to say")
    paths = [jsonl(tmp_path / f"{n}.jsonl", [{**chat("Q?", "A"), "sleep": True}]) for n in range(3)]
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, script, *paths], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        deadline = time.monotonic() + 30
        while len(workers := psutil.Process(child.pid).children(recursive=True)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.0)
        child.send_signal(signal.SIGINT)
        try:
            _, errors = child.communicate(timeout=30)
        finally:
            child.kill()
    assert "KeyboardInterrupt" in errors
    assert not psutil.wait_procs(workers, timeout=10)[1]


RAY = """
import json, sys
from pathlib import Path
from thinkguard.doctor.audit.plan import AuditOptions
from thinkguard.doctor.audit.run import audit
summary = audit([Path(path) for path in sys.argv[1:]], AuditOptions(engine="ray", num_processes=2))
print("summary:" + json.dumps(summary.as_dict()))
"""


def test_ray_data_gives_the_same_summary(files: list[Path]) -> None:
    pytest.importorskip("ray", reason="--engine ray needs ray, which is not installed")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", RAY, *files], capture_output=True, text=True, timeout=180, env=environment, check=False
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("summary:")]
    assert told, done.stderr[-2000:]
    assert Summary.from_dict(json.loads(told[0].removeprefix("summary:"))) == audit(files, AuditOptions(num_processes=1))
