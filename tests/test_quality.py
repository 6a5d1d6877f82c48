"""Guarded outputs of real models are good outputs: a slice of `make quality`, run where the laboratory is."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the models are torch's")
transformers = pytest.importorskip("transformers", reason="the models are transformers'")

from benches.quality.honest import TEXTS, feed  # noqa: E402
from benches.quality.lab import place  # noqa: E402
from benches.quality.ways import Way  # noqa: E402
from thinkguard.core.program import ThinkProgram  # noqa: E402
from thinkguard.policy import ThinkPolicy  # noqa: E402

NUM = 20
GUARDED = Way("line", 48)
SEED = 1


@pytest.fixture(scope="module")
def text_model():
    """The laboratory's model whose markers are text."""
    if why := place.missing((place.TEXT,)):
        pytest.skip(why)
    from benches.quality.asking import Model

    transformers.utils.logging.disable_progress_bar()
    return Model.load(place.TEXT)


@pytest.fixture(scope="module")
def answered(text_model):
    """guarded -> 40 outputs: 20 questions, greedy and sampled."""
    from benches.quality.asking import Room, ask
    from benches.quality.tasks.draw import tasks

    ways = {False: Way("alone"), True: GUARDED}
    room = Room(alone=128, answer=64)
    found = {key: ask(text_model, tasks(NUM), way, (None, SEED), room=room) for key, way in ways.items()}
    return {key: [one for outputs in found[key] for one in outputs] for key in ways}


def test_every_guarded_output_thinks_and_then_answers(answered):
    for one in answered[True]:
        assert one.well_formed, one.text
        assert one.thinking_tokens <= GUARDED.cap, one.text
        assert one.closed_by in ("model", "boundary", "budget"), one.text


def test_the_guard_had_something_to_do(answered):
    assert sum(not one.well_formed for one in answered[False]) >= 2
    assert sum(one.closed_by != "model" for one in answered[True]) >= 2


def test_a_guard_costs_no_right_answers(answered):
    """Of 40 outputs; two runs that differ in what chance decides differ by a few."""
    alone, guarded = (sum(one.right for one in answered[key]) for key in (False, True))
    assert guarded >= alone - 4, (alone, guarded)
    assert alone >= 4, "the model answers too little to say anything"


def test_what_looks_like_a_marker_is_counted(answered, record_property):
    found = {key: [text for one in answered[key] for text in (*one.in_thinking, *one.in_answer)] for key in (False, True)}
    record_property("look-alikes", found)
    assert not [one.dangling for one in answered[True] if one.dangling], "half a marker is left behind"


@pytest.mark.parametrize("name", [place.TEXT, place.TOKENS])
def test_honest_answers_are_let_through(name):
    """HTML, XML, code and a letter, about 800 tokens, each the best by far where it is due."""
    if why := place.missing((name,)):
        pytest.skip(why)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place.folder() / name)
    program = ThinkProgram("think", tokenizer)
    fed = feed(program, tokenizer)
    assert 700 <= fed.num <= 900
    assert len(fed.refused) <= 3, fed.refused


def test_a_token_that_is_refused_is_named():
    if why := place.missing((place.TEXT,)):
        pytest.skip(why)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place.folder() / place.TEXT)
    fed = feed(ThinkProgram("think", tokenizer), tokenizer, ThinkPolicy(min_answer_tokens=400))
    assert {one.token for one in fed.refused} >= {tokenizer.eos_token}
    assert {one.text for one in fed.refused} <= set(TEXTS)
