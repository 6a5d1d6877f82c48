"""The verdicts on every alternative, in their quick form: how outputs are read, and what is wrong in which case."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the logits are torch's")
pytest.importorskip("transformers", reason="the tokenizers are transformers'")

from benches.alternatives.alternative import MODULES, Cannot, load, set_up
from benches.setting import Request, Setting, make_tokenizer
from benches.verdicts import judging
from benches.verdicts.processes import judge, merged
from benches.verdicts.reading import complaint

# The tests of the full form, which run here on this file's fixture `correctness`.
from benches.verdicts.test_verdicts import (  # noqa: F401
    test_a_verdict_follows_from_what_was_printed,
    test_an_alternative_is_wrong_where_it_is_written_down,
    test_every_alternative_is_asked_every_case,
    test_the_guard_is_right_in_every_case,
)
from thinkguard.errors import InputError

OPENED = "<|im_start|>assistant\n<think>"


@pytest.fixture(scope="module")
def correctness(tmp_path_factory):
    """The quick form in one process: two would import the engines twice, and the other core has other tests to run."""
    return judge(tmp_path_factory.mktemp("verdicts") / "found.json", quick=True)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """marker_tokens -> a small made vocabulary"""
    folders = {marker_tokens: tmp_path_factory.mktemp(f"made-{marker_tokens}") for marker_tokens in (True, False)}
    return {key: Setting.load(make_tokenizer(folder, 2048, marker_tokens=key)) for key, folder in folders.items()}


def test_made_tokenizers_split_markers_as_real_ones_do(settings):
    tokens, text = settings[True], settings[False]
    assert tokens.has_marker_tokens
    assert not text.has_marker_tokens
    for setting in settings.values():
        assert len(setting.tokenizer) == setting.width == 2048
        assert [setting.decode([token]) for token in setting.eos_ids] == ["<|im_end|>"]
        for written in ("What is two and two? <think>\nSo.</think>\n\nFour 🧮.", "</think>", "x</thi"):
            assert setting.decode(setting.encode(written)) == written
    pieces = [text.decode([token]) for token in text.encode("clear.</think>\n\nThe")]
    assert pieces[-4:] == [".</", "think", ">\n\n", "The"]
    assert text.decode([text.encode("<think>\n")[-1]]) == ">\n"
    with pytest.raises(InputError, match="vocab_size=100 has no room"):
        make_tokenizer(Path("nowhere"), 100, marker_tokens=True)


@pytest.mark.parametrize(
    ("written", "budget", "wrong"),
    [
        ("Two and two.</think>\n\nFour.<|im_end|>", 9, ""),
        ("Two and two.</think>\n\nFour.", 9, "it never finishes"),
        ("Two and two.<|im_end|>", 9, "not thinking, then an answer: 1 starts and 0 ends"),
        ("Two</think> is</think> four<|im_end|>", 9, "not thinking, then an answer: 1 starts and 2 ends"),
        ("Two</think>\n\n<|im_end|>", 9, "no answer"),
        ("Two and two and two</think>\n\nFour.<|im_end|>", 3, "5 thinking tokens under a budget of 3"),
        ("Two</thi</think>\n\nFour.<|im_end|>", 30, "half an end marker is left in the reasoning: 'Two</thi'"),
    ],
)
def test_an_output_is_read_by_its_text(settings, written, budget, wrong):
    for setting in settings.values():
        ids = setting.encode(written)
        assert complaint(setting, Request(setting.encode(OPENED), budget), ids) == wrong


def test_an_output_is_read_by_its_tokens(settings):
    tokens = settings[True]
    request = Request(tokens.encode(OPENED), 9)
    spelled = [*tokens.encode("Two</"), *tokens.encode("think"), *tokens.encode(">\n\n"), *tokens.encode("Four.<|im_end|>")]
    assert complaint(tokens, request, spelled) == "readers of tokens and of text see different ends"
    cut = [*tokens.encode("🧮")[:2], *tokens.encode("</think>Four.<|im_end|>")]
    assert complaint(tokens, request, cut) == "a character is cut in two"
    right = tokens.encode("Two</think>Four.<|im_end|>")
    assert complaint(tokens, request, right, verbatim=right) == ""
    other = tokens.encode("Two</think>Five.<|im_end|>")
    assert "its output was changed" in complaint(tokens, request, right, verbatim=other)


class _Refusing:
    version = path = "-"
    cannot: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, setting):
        raise Cannot("no such markers")


def test_what_cannot_be_loaded_or_set_up_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(MODULES, "absent", ("absent", "Absent"))
    monkeypatch.setitem(MODULES, "broken", ("broken", "Broken"))
    with pytest.raises(Cannot, match="not installed here") as absent:
        load("absent")
    settings = judging.settings_of(tmp_path, None)
    assert str(set_up(_Refusing, settings.tokens)) == "no such markers"
    parts = [
        judging.run(settings, {name: cls}, quick=True) for name, cls in (("broken", _Refusing), ("absent", absent.value))
    ]
    found = merged(parts)
    assert list(found["alternatives"]) == ["absent", "broken"], "in the order of MODULES"
    assert found["alternatives"]["absent"] == {"cannot": str(absent.value)}
    told = {(row["alternative"], row["verdict"], row["why"]) for row in found["rows"]}
    assert told == {("absent", "not installed", str(absent.value)), ("broken", "cannot", "no such markers")}
    assert len(found["rows"]) == 2 * len(found["cases"])
