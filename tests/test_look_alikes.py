"""What reads like a marker and is none, and honest text that is let be."""

from __future__ import annotations

import pytest

from thinkguard import ThinkFormat, ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.formats.look_alikes import look_alikes_in

THINK, MISTRAL = ThinkFormat.from_name("think"), ThinkFormat.from_name("mistral_think_tokens")


@pytest.mark.parametrize(
    "text",
    [
        "It is 300.\n</think >\n\nIt goes 300 km.", "So </ think>", "so </Think>", "</think-step-1>",
        "a </Wait, let me see:",
        "one more <thinking> of it", "< think>", "and </thin", "x </", "and so </ b>", "No.</answer>",
    ],
)  # fmt: skip
def test_these_read_like_a_marker(text):
    assert len(look_alikes_in(text, THINK)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nA.\n</think>\n\nB.", "<b>bold</b> and <th>head</th>", "I love you </3", "a < b / c", "`</Think>`, say",
        'the tag "</thinking>"', "```html\n</p>\n```", "i</ 2", "5 <6 and 7 /8", "<ul>\n<li>one</li>\n</ul>",
    ],
)  # fmt: skip
def test_these_are_honest(text):
    assert look_alikes_in(text, THINK) == ()


def test_brackets_of_other_families_count_too():
    assert look_alikes_in("so [/Think] it", MISTRAL) == ("[/Think] it",)
    assert look_alikes_in("[THINK]a[/THINK]b [1] [/x", MISTRAL) == ("[/x",)
    assert look_alikes_in("</think >", MISTRAL) == ()
    words = ThinkFormat(name="w", starts=("Think:",), ends=("Here:",), open_text="Think:\n", close_text="\nHere:\n")
    assert look_alikes_in("here: Think", words) == (), "words are no marks"


def test_a_trace_names_them_and_what_was_skipped():
    pieces = [bytes([byte]) for byte in range(256)]
    vocabulary = Vocabulary.from_parts(pieces, added={"<eos>": 256, "<think>": 257, "</think>": 258}, eos_ids=[256])
    program = ThinkProgram("think", vocabulary)
    policy = ThinkPolicy(max_thinking_tokens=1, close_message="Enough.")
    output = vocabulary.encode("<think>\naEn</think>\n\nb </Think>") + [256]
    trace = program.explain([], output, policy)
    assert trace.look_alikes == ("</Think>",)
    assert trace.skipped == (5,), "the message was cut where the end marker came"
    assert (trace.closed_by, trace.violations, trace.well_formed) == ("budget", (), True)
    spelled = program.explain([], vocabulary.encode("<think>\na</think>\n\n`b` </think >") + [256], ThinkPolicy())
    assert (spelled.look_alikes, spelled.violations) == (("</think >",), ()), "which the guard would not have let happen"
    empty = program.explain([], vocabulary.encode("<think></think>\n\nb") + [256], ThinkPolicy(max_thinking_tokens=0))
    assert (empty.skipped, empty.violations, empty.well_formed) == ((1,), (), True), "the line break of an empty block"
    bare = program.explain([], vocabulary.encode("<think>a</think>\n\nb") + [256], ThinkPolicy())
    assert (bare.skipped, bare.violations, bare.well_formed) == ((1,), (), True), "the line break behind a start"
    beyond = program.explain([], vocabulary.encode("<think>\nabc"), policy)
    assert "was due, but" in beyond.violations[0].what, "a cap that is not kept is no matter of taste"
