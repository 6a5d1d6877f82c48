"""How the quality benchmark reads outputs: look-alikes, answers, tasks; none of it needs a model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from benches.quality.__main__ import as_json
from benches.quality.counting import cells, counted, summed, table
from benches.quality.judging import ends_in_answer, judge, repeated, sentence_end
from benches.quality.litter import dangling, look_alikes, split
from benches.quality.tasks.draw import shown, tasks
from benches.quality.tasks.task import CAREFUL
from benches.quality.ways import ALONE, FULL, MEANINGS, WAYS, Way

TABLE = "<table>\n<tr>\n  <th>Name</th>\n  <th>Age</th>\n</tr>\n</table>"
LIST = "<ul>\n  <li>tea</li>\n</ul>"


@pytest.mark.parametrize(
    "text",
    [
        *("50 * 6 = 300.\n</think >\n\nIt goes 300 km.", "</ think>", "</Think>", "< /think>", "</think-step-1>"),
        *("<thinking>", "<think-in", "It is 4.\n</th", "It is 4.\n</th\n\nIt is 4.", "<th", "</thi>", "<thin>"),
        *("It is 4. </t", "It is 4.</", "</Wait, let me make sure: 4.", "</answer>", "4</\n\nIt is 4.", "</ ul>"),
        *("</th> is what I say", "a <th of it", "</>"),
    ],
)
def test_what_looks_like_a_marker_is_found_once(text):
    assert len(look_alikes(text)) == 1, look_alikes(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "It is 4.", TABLE, LIST, "<h1>News</h1>", '<a href="https://example.com">News</a>', "I love you </3"),
        *("a < b", "i<t:", "<note><to>Ann</to></note>", "<thead><tr><th scope='col'>A</th></tr></thead>", "x << 2"),
        *("```html\n" + TABLE + "\n```", "<title>Tea</title>", "<br/> and <hr>", "1 <2 and t< 3"),
    ],
)
def test_honest_markup_is_no_look_alike(text):
    assert look_alikes(text) == []


def test_a_tag_that_the_context_opens_may_be_closed():
    assert look_alikes("</ul>") == ["</ul>"]
    assert look_alikes("</ul>", context="It begins with <ul>.") == []
    assert look_alikes("Two: </think > and </Think>") == ["</think > and </Think>", "</Think>"]


@pytest.mark.parametrize("piece", ["<", "</", "</t", "</th", "</thi", "</thin", "</think", "<t", "<think"])
def test_half_a_marker_dangles(piece):
    assert dangling(f"It is 4.\n{piece}") == piece
    assert dangling(f"It is 4.{piece} \n") == piece
    assert dangling(f"{piece} it is 4.") == ""


def test_an_output_is_cut_at_its_markers():
    cut = split("<think>\nTwo.\n</think>\n\nFour.")
    assert (cut.thinking, cut.answer, cut.num_starts, cut.num_ends) == ("\nTwo.\n", "\n\nFour.", 1, 1)
    assert split("Two.\n</think>\n\nFour.", opened=True).thinking == "Two.\n"
    assert split("<think>\nTwo").answer == ""
    assert split("Two", opened=True).thinking == "Two"
    assert split("Four.").answer == "Four."
    assert split("<think>a</think>b</think>c").answer == "c"


def test_a_sentence_ends_where_it_ends():
    assert all(map(sentence_end, ("It is 4.", "It is 4.\n", "Is it?", 'He says "four."', "Now `x`.", "It is (so).")))
    assert not any(map(sentence_end, ("It is", "", "Let me check", "1, 2,", "Then comes 4")))


@pytest.mark.parametrize(
    "text", ["It is 4.", "4", "2 + 2 is 4.\n\nAnswer: 4", "Let me see: 2 + 2.\n\nIt is 4.", LIST, "- tea\n- milk"]
)
def test_an_answer_is_told_from_more_thinking(text):
    assert ends_in_answer(text)


@pytest.mark.parametrize(
    "text",
    ["", "2 + 2 = 4.\nLet me check.", "It is 4.\n\nLet me make sure.\n2 + 2 is 4. Yes.", "Wait, is it?", "It is 4.\n</"],
)
def test_more_thinking_is_no_answer(text):
    assert not ends_in_answer(text)


def test_repetition_is_the_share_of_runs_seen_before():
    assert repeated([1, 2, 3, 4, 5, 6]) == 0
    assert repeated([1, 2, 3]) == 0
    assert repeated([1, 2] * 8) == pytest.approx(11 / 13)


def judged(text, task, **about):
    trace = SimpleNamespace(well_formed=True, finished=True, closed_by="model", thinking_tokens=3, answer_tokens=4)
    trace.__dict__.update(about)
    return judge(task, text, list(range(9)), trace)


def test_an_output_is_judged_by_its_text():
    task = next(task for task in tasks(12) if task.kind == "sum")
    good = judged(f"<think>\nSo it is.\n</think>\n\n{task.answers[0]}", task)
    assert all((good.well_formed, good.finished, good.right, good.ends_in_answer, good.sentence_end))
    assert good.as_dict().keys().isdisjoint({"in_answer", "in_thinking", "dangling"})
    bad = judged(f"<think>\nSo it is</\n</think>\n\nIt is 1.\n</think >\n\nLet me see {task.answers[0]}", task)
    assert bad.in_answer == ["</think >"]
    assert bad.dangling == ["</"]
    assert not bad.ends_in_answer
    assert not bad.sentence_end
    assert not judged("<think>a.</think>b<think>c</think>d", task).well_formed, "whatever the trace says"
    assert not judged("<think>a.</think>\n\n1", task, finished=False).ends_in_answer


def test_counts_add_up_over_samplings_and_are_written_one_output_a_line():
    task = tasks(1)[0]
    good, bad = judged(f"<think>\nIt is.\n</think>\n\n{task.answers[0]}", task), judged("</think >", task, thinking_tokens=9)
    rows = [
        {"model": "m", "way": "hard:8", "sampling": "greedy", **counted([good, good])},
        {"model": "m", "way": "hard:8", "sampling": "seed 1", **counted([bad])},
    ]
    [row] = summed(rows)
    assert (row["num"], row["right"], row["in_answer"], row["thinking_tokens"]) == (3, 2, 1, 5.0)
    assert cells(row)[:3] == ["2/3", "1", "0"]
    assert "hard:8" in table(rows)
    found = {"tasks": [], "rows": rows, "outputs": [{"model": "m", "outputs": [good.as_dict(), bad.as_dict()]}]}
    text = as_json(found)
    assert json.loads(text) == found
    assert len([line for line in text.splitlines() if line.startswith('{"text"')]) == 2


@pytest.mark.parametrize("text", ["", "soft:48", "line", "line:", "line:5", "alone:3", "line:4x"])
def test_a_policy_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="policy"):
        Way.parse(text)


def test_every_way_is_a_policy():
    assert {way.name for way in FULL} == set(MEANINGS) == {ALONE, *WAYS}
    for way in FULL:
        assert Way.parse(str(way)) == way
        assert (way.policy is None) == (way.name == ALONE)
        assert way.policy is None or way.policy.max_thinking_tokens == way.cap


def test_tasks_of_measurements_are_never_taught():
    asked, taught = tasks(96), shown(400)
    plain = {one.question.removesuffix(CAREFUL) for one in asked}
    assert len(plain) == len(asked) == 96
    assert not plain & {one.question.removesuffix(CAREFUL) for one in taught}
    assert [one.question for one in asked] == [one.question for one in tasks(96, 0)]
    assert len({one.kind for one in asked}) == 9
    assert 0.2 < sum(one.question.endswith(CAREFUL) for one in asked) / 96 < 0.6


def test_every_answer_that_is_taught_is_right_and_another_one_is_not():
    found = tasks(60, 3)
    for one in found:
        assert one.answers, one
        assert all(one.right(answer) for answer in one.answers), one
        assert not one.right(""), one
        others = [other for other in found if other.kind == one.kind and not set(other.answers) & set(one.answers)]
        assert not any(one.right(other.answers[0]) for other in others), one
