"""What a policy refuses: every message names the field, the value, and what to do instead."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from thinkguard import ThinkPolicy
from thinkguard.errors import PolicyError, ThinkGuardError
from thinkguard.policy import CHOICES, COUNTS, POLICY_FIELDS, check_names


def refused(**fields):
    with pytest.raises(PolicyError) as caught:
        ThinkPolicy(**fields)
    assert isinstance(caught.value, ThinkGuardError)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def test_the_default_policy_asks_for_thinking_and_one_visible_token():
    policy = ThinkPolicy()
    assert (policy.opening, policy.max_thinking_tokens, policy.min_answer_tokens) == ("auto", None, 1)
    assert set(POLICY_FIELDS) == {field.name for field in dataclasses.fields(ThinkPolicy)}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [True, 1.0, "3", np.float32(2), [3], float("nan")])
def test_a_count_is_a_whole_number(name, value):
    message = refused(**{name: value})
    assert message.startswith(f"{name}=")
    assert repr(value) in message
    assert "whole number of tokens" in message


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_has_a_range(name):
    lowest, highest, optional = COUNTS[name]
    for value in (lowest - 1, (highest or 2**30) + 1, -(2**70), 2**70):
        message = refused(**{name: value})
        assert f"{name}={value}" in message
        assert f"between {lowest} and {highest or 2**30}" in message
    if not optional:
        assert f"{name}=None" in refused(**{name: None})


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_one_of_a_few_words(name):
    for value in (None, 0, [], "", "Force"):
        message = refused(**{name: value})
        assert message.startswith(f"{name}={value!r}")
        assert all(repr(choice) in message for choice in CHOICES[name])


def test_a_choice_that_is_nearly_right_is_named():
    assert "did you mean 'sentence'?" in refused(close_at="sentences")
    assert "did you mean 'forbid'?" in refused(opening="forbidden")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"min_thinking_tokens": 9, "max_thinking_tokens": 5},
            ["min_thinking_tokens=9", "max_thinking_tokens=5", "lower it to 5"],
        ),
        ({"grace_tokens": 4}, ["grace_tokens=4", "set max_thinking_tokens"]),
        ({"grace_tokens": 6, "max_thinking_tokens": 5}, ["grace_tokens=6", "max_thinking_tokens=5", "lower it to 5"]),
        (
            {"soft_thinking_tokens": 3, "max_thinking_tokens": 9},
            ["soft_thinking_tokens=3", "close_bias=0", "both or neither"],
        ),
        (
            {"close_bias": 2.0, "max_thinking_tokens": 9},
            ["soft_thinking_tokens=None", "close_bias=2.0", "both or neither"],
        ),
        ({"soft_thinking_tokens": 3, "close_bias": 1}, ["soft_thinking_tokens=3", "below max_thinking_tokens=None"]),
        (
            {"soft_thinking_tokens": 9, "close_bias": 1, "max_thinking_tokens": 9},
            ["soft_thinking_tokens=9", "below max_thinking_tokens=9"],
        ),
        (
            {"soft_thinking_tokens": 2, "close_bias": 1, "max_thinking_tokens": 9, "min_thinking_tokens": 4},
            ["soft_thinking_tokens=2", "min_thinking_tokens=4", "raise it to 4"],
        ),
        (
            {"extend_message": "Wait", "min_thinking_tokens": 4},
            ["extend_message='Wait'", "max_extensions=0", "both or neither"],
        ),
        (
            {"max_extensions": 2, "min_thinking_tokens": 4},
            ["extend_message=None", "max_extensions=2", "both or neither"],
        ),
        (
            {"extend_message": "Wait", "max_extensions": 1},
            ["max_extensions=1", "never applies", "set min_thinking_tokens"],
        ),
        ({"opening": "forbid", "min_thinking_tokens": 4}, ["opening='forbid'", "min_thinking_tokens=4", "no minimum"]),
        (
            {"min_answer_tokens": 5, "max_answer_tokens": 4},
            ["min_answer_tokens=5", "max_answer_tokens=4", "lower it to 4"],
        ),
        (
            {"reserve_answer_tokens": 5, "max_answer_tokens": 4},
            ["reserve_answer_tokens=5", "max_answer_tokens=4", "lower it to 4"],
        ),
        ({"loop_tokens": 3}, ["loop_tokens=3", "0 (off)", "4 and 256"]),
        (
            {"markers_in_answer": "allow", "max_think_blocks": 2},
            ["markers_in_answer='allow'", "max_think_blocks=2", "choose one of the two"],
        ),
    ],
)
def test_a_contradiction_names_both_fields_their_values_and_the_remedy(fields, told):
    message = refused(**fields)
    assert all(part in message for part in told), message


@pytest.mark.parametrize("bias", [-1, -1e-9, 1e7, float("inf"), float("nan"), 10**400, "3", None, True])
def test_a_bias_is_a_number_of_logits(bias):
    message = refused(close_bias=bias, soft_thinking_tokens=1, max_thinking_tokens=4)
    assert message.startswith("close_bias=")
    assert "between 0 and 1,000,000" in message


@pytest.mark.parametrize("message", [None, 3, b"stop", ["stop"]])
def test_a_close_message_is_a_string(message):
    assert f"close_message={message!r}: must be a string" in refused(close_message=message)


@pytest.mark.parametrize("message", ["", 3, b"Wait"])
def test_an_extension_is_a_string_with_text_in_it(message):
    told = refused(extend_message=message, max_extensions=1, min_thinking_tokens=3)
    assert f"extend_message={message!r}: must be a string with text" in told


@pytest.mark.parametrize("name", ["close_message", "extend_message"])
def test_half_a_surrogate_pair_is_refused_when_made_not_when_spelled(name):
    """JSON can carry one, and the error would come up inside the engine."""
    more = {"max_extensions": 1, "min_thinking_tokens": 3} if name == "extend_message" else {}
    assert f"{name}='oh \\ud83d': holds half a surrogate pair" in refused(**{name: "oh \ud83d"}, **more)
    assert ThinkPolicy(**{name: "oh \U0001f600"}, **more)


def test_the_edges_of_what_is_allowed():
    ThinkPolicy(max_thinking_tokens=0)
    ThinkPolicy(max_thinking_tokens=5, min_thinking_tokens=5, grace_tokens=5)
    ThinkPolicy(max_thinking_tokens=5, min_thinking_tokens=4, soft_thinking_tokens=4, close_bias=1e6)
    ThinkPolicy(min_answer_tokens=4, reserve_answer_tokens=4, max_answer_tokens=4)
    ThinkPolicy(loop_tokens=4)
    ThinkPolicy(loop_tokens=256)
    ThinkPolicy(max_thinking_tokens=2**30, max_answer_tokens=2**30, reserve_answer_tokens=2**30)


def test_a_policy_is_frozen_hashable_and_picklable():
    policy = ThinkPolicy(max_thinking_tokens=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.max_thinking_tokens = 6
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(ThinkPolicy(max_thinking_tokens=5)) == hash(policy)


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(
        PolicyError, match="unknown policy field 'max_thinking_token': did you mean 'max_thinking_tokens'"
    ):
        ThinkPolicy.from_mapping({"max_thinking_token": 5})
    with pytest.raises(
        PolicyError, match="unknown policy field 'zzz': the fields are max_thinking_tokens, budget_per, min_thinking"
    ):
        ThinkPolicy.from_mapping({"zzz": 5})
    check_names({"format": 1}, also=("format",))
    assert ThinkPolicy.from_mapping({"max_thinking_tokens": 5}) == ThinkPolicy(max_thinking_tokens=5)
