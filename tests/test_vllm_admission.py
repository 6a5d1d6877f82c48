"""Requests to vLLM where they are admitted: what is understood, what is refused and how, what the engine is sent."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkguard.errors import PolicyError, ThinkGuardError
from thinkguard.policy import MAX_MESSAGE_BYTES, MOST, POLICY_FIELDS, shown
from thinkguard.requests.admission import admit, server_default

pytest.importorskip("vllm", reason="vLLM's own SamplingParams and protocol are used, and it is not installed")

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

CLASS = "thinkguard.vllm:ThinkLogitsProcessor"
ABSENT = object()
MESSAGES = ("close_message", "extend_message", "answer_prefix")


def params(argument=ABSENT, **fields):
    extra = {} if argument is ABSENT else {"extra_args": {"thinkguard": argument}}
    return SamplingParams(**{"max_tokens": 256, **extra, **fields})


def admitted(argument=ABSENT, **fields):
    """The normalised argument."""
    one = params(argument, **fields)
    admit(one)
    return (one.extra_args or {}).get("thinkguard", ABSENT)


def refused(argument, **fields):
    with pytest.raises(PolicyError) as caught:
        admit(params(argument, **fields))
    return str(caught.value)


# --- admission ---


def test_a_request_that_says_nothing_is_left_as_it_is():
    one = params()
    before = repr(one)
    admit(one)
    assert repr(one) == before
    assert one.extra_args is None
    other = SamplingParams(extra_args={"kv_transfer_params": {"a": 1}})
    admit(other)
    assert other.extra_args == {"kv_transfer_params": {"a": 1}}


@pytest.mark.parametrize("value", [False, 0, "false", "0", " false "])
def test_off(value):
    assert admitted(value) is False


@pytest.mark.parametrize("value", [True, 1, "true", "1"])
def test_on(value):
    assert admitted(value) is True


def test_fields_come_as_a_dict_or_as_its_json():
    fields = {"max_thinking_tokens": 5, "close_message": "Enough 😀.", "soft_thinking_tokens": None, "close_bias": 0.0}
    assert admitted(fields) == fields
    assert admitted(json.dumps(fields)) == fields
    assert admitted({}) == {}
    assert admitted("{}") == {}


@pytest.mark.parametrize(
    "value", [None, 2, -1, 1.0, 0.0, [], [1], "2", "null", "[]", '"{}"', float("nan"), b"{}", object(), "1.0"]
)
def test_anything_else_is_an_error_that_says_what_may_be_sent(value):
    told = refused(value)
    assert told.startswith("thinkguard=")
    assert "must be true, false or an object of policy fields" in told
    assert "write the object as JSON" in told


@pytest.mark.parametrize("text", ["", "True", "{max: 5}", "{", "{'max_thinking_tokens': 5}", "[" * 16_000, "9" * 5_000])
def test_what_is_not_json_is_told_so(text):
    told = refused(text)
    assert "is not JSON" in told
    assert len(told) < 500


def test_json_has_a_greatest_length_and_names_every_field_once():
    assert "20002 characters of JSON, and 19456 are read" in refused(json.dumps("x" * 20_000))
    assert "gives 'max_thinking_tokens' twice" in refused('{"max_thinking_tokens": 5, "max_thinking_tokens": 6}')


def test_the_longest_messages_fit_into_the_json_that_is_read():
    worst = "\x01" * MAX_MESSAGE_BYTES  # \u0001, six characters each
    fields = dict.fromkeys(MESSAGES, worst) | {"max_extensions": 1, "min_thinking_tokens": 1}
    assert admitted(json.dumps(fields)) == fields


def test_a_misspelt_field_names_the_nearest_and_a_strange_one_lists_all():
    assert refused({"max_thinking_token": 5}) == (
        "unknown policy field 'max_thinking_token': did you mean 'max_thinking_tokens'?"
    )
    assert "the fields are max_thinking_tokens, budget_per, min_thinking" in refused({"zzz": 5})
    assert "unknown policy field 5" in refused({5: 5})
    told = refused({"x" * 10_000: 1})
    assert "(10002 characters)" in told
    assert len(told) < 1_000


@pytest.mark.parametrize(("name", "value"), [("format", "qwen3"), ("raw_completions", True)])
def test_what_only_the_server_may_say(name, value):
    told = refused({name: value})
    assert told.startswith(f"{name}={value!r} is for the server to say, not for a request")
    assert f'--additional-config \'{{"thinkguard": {{"{name}": ...}}}}\'' in told


@pytest.mark.parametrize("name", POLICY_FIELDS)
@pytest.mark.parametrize("value", [True, "x", -1, 1.5, [], {}, 2**70, float("nan"), float("inf"), 10**4000])
def test_a_value_that_a_field_cannot_have_is_named_with_it(name, value):
    fine = isinstance(value, str) and name in MESSAGES
    fine |= name == "close_bias" and value == 1.5
    if fine:
        assert admitted({name: value}) == {name: value}
    else:
        one = params({})
        one.extra_args = {"thinkguard": {name: value}}  # vLLM refuses integers of more than 64 bits by itself
        with pytest.raises(PolicyError, match=f"^{name}=") as caught:
            admit(one)
        assert len(str(caught.value)) < 400


def test_null_is_kept_where_it_means_something():
    assert admitted({"max_thinking_tokens": None}) == {"max_thinking_tokens": None}
    assert admitted('{"max_answer_tokens": null, "extend_message": null}') == {
        "max_answer_tokens": None,
        "extend_message": None,
    }
    assert "min_thinking_tokens=None" in refused({"min_thinking_tokens": None})


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_have_a_greatest_length_in_bytes(name):
    assert admitted({name: "é" * (MAX_MESSAGE_BYTES // 2)})
    told = refused({name: "é" * (MAX_MESSAGE_BYTES // 2 + 1)})
    assert told == f"{name} is {MAX_MESSAGE_BYTES + 2} bytes of UTF-8 long: shorten it to {MAX_MESSAGE_BYTES} or less"


@pytest.mark.parametrize(
    "fields",
    [
        {"grace_tokens": 5},
        {"close_bias": 2.0},
        {"soft_thinking_tokens": 5},
        {"soft_thinking_tokens": 5, "close_bias": 2.0},
        {"soft_thinking_tokens": 5, "max_thinking_tokens": 9},
        {"extend_message": "Wait"},
        {"max_extensions": 2},
        {"extend_message": "Wait", "max_extensions": 2},
        {"min_thinking_tokens": 10**6},
        {"opening": "forbid"},
        {"max_think_blocks": 3},
        {"min_answer_tokens": 10**6},
    ],
)
def test_a_field_whose_partner_the_default_may_have_is_let_in(fields):
    assert admitted(fields) == fields


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"min_thinking_tokens": 9, "max_thinking_tokens": 5}, "min_thinking_tokens=9 exceeds max_thinking_tokens=5"),
        ({"grace_tokens": 5, "max_thinking_tokens": None}, "grace_tokens=5 needs a cap"),
        ({"grace_tokens": 5, "max_thinking_tokens": 4}, "grace_tokens=5 exceeds max_thinking_tokens=4"),
        ({"soft_thinking_tokens": 5, "max_thinking_tokens": 5}, "must lie below max_thinking_tokens=5"),
        ({"soft_thinking_tokens": 5, "min_thinking_tokens": 6}, "raise it to 6"),
        ({"soft_thinking_tokens": 5, "close_bias": 0}, "set both or neither"),
        ({"extend_message": "Wait", "max_extensions": 0}, "set both or neither"),
        ({"max_extensions": 1, "min_thinking_tokens": 0}, "never applies"),
        ({"opening": "forbid", "min_thinking_tokens": 1}, "has no minimum"),
        ({"opening": "forbid", "max_think_blocks": 2}, "no block is allowed"),
        ({"markers_in_answer": "allow", "max_think_blocks": 2}, "choose one of the two"),
        ({"min_answer_tokens": 5, "max_answer_tokens": 4}, "min_answer_tokens=5 exceeds max_answer_tokens=4"),
        ({"reserve_answer_tokens": 5, "max_answer_tokens": 4}, "reserve_answer_tokens=5 exceeds max_answer_tokens=4"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused(fields, told):
    assert told in refused(fields)


# --- vLLM's own budget ---


def test_the_hosts_budget_becomes_ours_and_its_own_holder_gets_none():
    one = params(thinking_token_budget=7)
    admit(one)
    assert one.thinking_token_budget is None
    assert one.extra_args == {"thinkguard": {"thinking_token_budget": 7}}
    assert admitted({"close_message": "Enough."}, thinking_token_budget=7) == {
        "close_message": "Enough.",
        "thinking_token_budget": 7,
    }
    assert admitted(True, thinking_token_budget=0) == {"thinking_token_budget": 0}


def test_no_budget_leaves_the_servers_default_in_force():
    """-1 reads as None, in vLLM and here; only our own null lifts a default."""
    assert SamplingParams(thinking_token_budget=-1).thinking_token_budget is None
    one = params()
    one.thinking_token_budget = -1
    admit(one)
    assert (one.thinking_token_budget, one.extra_args) == (None, None)
    assert admitted({"thinking_token_budget": -1}) == {}


def test_off_leaves_the_hosts_budget_to_the_host():
    one = params(False, thinking_token_budget=7)
    admit(one)
    assert one.thinking_token_budget == 7
    assert one.extra_args == {"thinkguard": False}


def test_a_budget_that_no_sequence_reaches_is_cut_to_the_largest_count():
    assert admitted(thinking_token_budget=2**31) == {"thinking_token_budget": MOST}


@pytest.mark.parametrize("value", [-2, True, 1.5, "7"])
def test_a_budget_that_is_none_is_refused_by_name(value):
    one = params()
    one.thinking_token_budget = value
    with pytest.raises(PolicyError, match="thinking_token_budget="):
        admit(one)
    assert refused({"thinking_token_budget": value}).startswith("thinking_token_budget=")


def test_a_contradiction_with_the_hosts_budget_says_whose_number_it_is():
    told = refused({"min_thinking_tokens": 9}, thinking_token_budget=5)
    assert "min_thinking_tokens=9 exceeds max_thinking_tokens=5" in told
    assert "(max_thinking_tokens is the request's thinking_token_budget)" in told
    both = {"min_thinking_tokens": 9, "max_thinking_tokens": 8}
    assert "thinking_token_budget" not in refused(both, thinking_token_budget=5)


def test_a_new_budget_on_params_that_were_admitted_before_counts():
    one = params()
    for budget in (5, 9):
        one.thinking_token_budget = budget
        admit(one)
        assert one.extra_args == {"thinkguard": {"thinking_token_budget": budget}}


def test_a_trace_and_a_guard_exclude_each_other():
    for argument in (True, {"max_thinking_tokens": 5}):
        assert "the trace decides every token" in refused(argument, trace_decode_token_ids=[1])
    assert admitted(False, trace_decode_token_ids=[1]) is False
    assert admitted(trace_decode_token_ids=[1]) is ABSENT


# --- admission as vLLM does it ---


def test_admitting_twice_changes_nothing_and_the_callers_dict_stays():
    given = {"max_thinking_tokens": 5}
    extra = {"thinkguard": given, "other": [1]}
    for argument in (given, json.dumps(given)):
        shared = {**extra, "thinkguard": argument}
        kept = json.loads(json.dumps(shared))
        one, other = SamplingParams(extra_args=shared, thinking_token_budget=9), SamplingParams(extra_args=shared)
        for _ in range(3):
            admit(one)
            assert one.extra_args == {"thinkguard": {**given, "thinking_token_budget": 9}, "other": [1]}
        admit(other)
        assert other.extra_args == {"thinkguard": given, "other": [1]}
        assert shared == kept


def test_what_is_admitted_reaches_the_engine_process():
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    class Text(str):
        __slots__ = ()

    fields = {"max_thinking_tokens": None, "close_message": Text("Enough."), "close_bias": 1, "loop_tokens": 8}
    for argument in (fields, False, True, ABSENT):
        one = params(argument, thinking_token_budget=None if argument is False else 8)
        admit(one)
        sent = MsgpackDecoder(SamplingParams).decode(MsgpackEncoder().encode(one))
        assert sent.extra_args == one.extra_args
        assert sent.clone().extra_args == one.extra_args
        if argument is fields:
            assert type(sent.extra_args["thinkguard"]["close_message"]) is str


@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_both_runners_turn_the_error_into_the_clients(runner):
    from vllm.v1.sample.logits_processor import validate_logits_processors_parameters
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors_params_validator

    def validate(one):
        if runner == "V1":
            validate_logits_processors_parameters([CLASS], one)
        else:
            build_custom_logits_processors_params_validator([CLASS])(one)

    one = params({"max_thinking_tokens": 5}, thinking_token_budget=6)
    validate(one)
    assert one.thinking_token_budget is None
    with pytest.raises(VLLMValidationError, match="did you mean 'max_thinking_tokens'"):
        validate(params({"max_thinking_token": 5}))


@pytest.mark.parametrize(
    ("sent", "becomes"),
    [(False, False), (True, True), (0, False), ("false", False), ('{"grace_tokens": 2}', {"grace_tokens": 2})],
)
def test_what_vllm_xargs_carries(sent, becomes):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "vllm_xargs": {"thinkguard": sent}}
    one = ChatCompletionRequest.model_validate(body).to_sampling_params(10, {})
    admit(one)
    assert one.extra_args["thinkguard"] == becomes
    assert type(one.extra_args["thinkguard"]) is type(becomes)


names = st.text(max_size=10) | st.sampled_from(POLICY_FIELDS)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(value=json_values | st.dictionaries(st.sampled_from(POLICY_FIELDS), json_values), as_text=st.booleans())
def test_whatever_is_sent_only_a_policy_error_comes_out(value, as_text):
    one = params(json.dumps(value) if as_text else value)
    told = ""
    try:
        admit(one)
    except PolicyError as error:
        told = str(error)
    else:
        once = repr(one)
        admit(one)
        assert repr(one) == once
    assert len(told.encode()) < 2_000  # it travels as JSON


# --- the server's default ---


def test_without_a_configuration_chat_turns_are_guarded_by_the_default_policy():
    for config in ({}, {"thinkguard": True}, {"thinkguard": {}}, {"gdn_prefill_backend": "x"}, None, object()):
        assert server_default(config) == ({}, None, False)
    assert server_default({"thinkguard": False}) == (None, None, False)
    everything = {"max_thinking_tokens": 5, "format": "qwen3", "raw_completions": True}
    assert server_default({"thinkguard": everything}) == ({"max_thinking_tokens": 5}, "qwen3", True)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("{}", "must be true, false, or an object"),
        (None, "must be true, false, or an object"),
        ({"formt": "qwen3"}, "did you mean 'format'"),
        ({"max_thinking_token": 3}, "did you mean 'max_thinking_tokens'"),
        ({"thinking_token_budget": 3}, "unknown policy field 'thinking_token_budget'"),
        ({"max_thinking_tokens": "3"}, "max_thinking_tokens='3'"),
        ({"grace_tokens": 3}, "grace_tokens=3 needs a cap"),
        ({"format": {"name": "x"}}, "format={'name': 'x'}: must be a family's name"),
        ({"raw_completions": 1}, "raw_completions=1: must be true or false"),
        ({"close_message": "x" * 2000}, "2000 bytes"),
    ],
)
def test_a_wrong_configuration_is_refused_when_the_server_starts(config, told):
    with pytest.raises(PolicyError, match="additional_config, thinkguard: ") as caught:
        server_default({"thinkguard": config})
    assert told in str(caught.value)


def test_an_error_shows_no_more_of_a_value_than_is_needed():
    assert shown("x" * 5_000).endswith("... (5002 characters)")
    assert shown(10**5_000) == "a int too large to print"
    nested = []
    for _ in range(100_000):
        nested = [nested]
    assert shown(nested) == "a list too large to print"
    assert issubclass(PolicyError, ThinkGuardError)
