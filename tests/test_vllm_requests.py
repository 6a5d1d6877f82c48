"""Requests in a vLLM engine: what the server's default becomes for each, and whom the guard leaves alone."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
import types
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinkguard import ThinkPolicy, ThinkProgram
from thinkguard.errors import FormatError, PolicyError, UnsupportedError
from thinkguard.policy import CHOICES, COUNTS, POLICY_DEFAULTS, POLICY_FIELDS, contradictions
from thinkguard.requests.admission import admit

pytest.importorskip("vllm", reason="vLLM's own SamplingParams, tokenizers and grammars are used, and it is not installed")

from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from thinkguard.requests.merge import merged
from thinkguard.vllm import processor as adapter
from thinkguard.vllm.engine_requests import Guard, Requests
from thinkguard.vllm.grammar import num_free_tokens, why_no_grammar

ABSENT = object()
MODEL = '{"model_type": "gpt2"}'


def params(argument=ABSENT, **fields):
    extra = {} if argument is ABSENT else {"extra_args": {"thinkguard": argument}}
    return SamplingParams(**{"max_tokens": 256, **extra, **fields})


def config_of(path, default=ABSENT, parser="", in_reasoning=False, **model):
    """What `Requests` reads of a VllmConfig."""
    return SimpleNamespace(
        model_config=SimpleNamespace(
            **{
                "model": str(path), "tokenizer": str(path), "tokenizer_mode": "auto", "tokenizer_revision": None,
                "trust_remote_code": False, "runner_type": "generate", "skip_tokenizer_init": False, "hf_config": None,
                "is_diffusion": False, "max_model_len": 512, "get_vocab_size": lambda: 152_064, **model,
            }
        ),
        structured_outputs_config=SimpleNamespace(
            reasoning_parser=parser, reasoning_parser_plugin="", enable_in_reasoning=in_reasoning, backend="auto"
        ),
        additional_config={} if default is ABSENT else {"thinkguard": default},
        speculative_config=None,
        parallel_config=SimpleNamespace(distributed_executor_backend="uni"),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a byte-level tokenizer of 261 tokens and Qwen3's way of writing turns."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from thinkguard.vocabulary.readers import BYTE_ALPHABET

    words = {BYTE_ALPHABET[byte]: byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
    tokenizer.add_tokens([AddedToken(name, special="|" in name, normalized=False) for name in names])
    path = tmp_path_factory.mktemp("tiny")
    tokenizer.save(str(path / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    settings_of = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": template}
    (path / "tokenizer_config.json").write_text(json.dumps(settings_of))
    (path / "config.json").write_text(MODEL)
    return path


@pytest.fixture(scope="module")
def models(tokenizer_dirs, tmp_path_factory):
    """The real tokenizers as model folders: where vLLM finds no config.json it looks again for seconds."""
    made = {}
    for name, path in tokenizer_dirs.items():
        made[name] = tmp_path_factory.mktemp(name)
        (made[name] / "config.json").write_text(MODEL)
        for file in path.iterdir():
            (made[name] / file.name).symlink_to(file)
    return made


IM_END, END_OF_TEXT, END_THINK = 258, 256, 260


@pytest.fixture(scope="module")
def serve(tiny):
    made = {}

    def make(default=ABSENT, **more):
        key = json.dumps([None if default is ABSENT else [default], more])
        if key not in made:
            made[key] = Requests(config_of(tiny, default, **more))
        requests = made[key]
        requests._said.clear()
        requests._kept.cache_clear()
        return requests

    return make


@pytest.fixture
def said(vllm_log):
    """The warnings in it, when called."""
    return lambda: [record.getMessage() for record in vllm_log if record.levelno >= logging.WARNING]


def running(argument=ABSENT, eos=IM_END, generation=(IM_END, END_OF_TEXT), **fields):
    """Params as they arrive in the engine: admitted, with the EOS ids that vLLM puts in."""
    one = params(argument, **fields)
    admit(one)
    one = one.clone()
    one.update_from_generation_config({"eos_token_id": list(generation)} if generation else {}, eos)
    return one


def policy_of(requests, *args, **fields):
    return requests.guard_of(running(*args, **fields)).bound.source


def test_the_format_is_found_in_the_tokenizer_and_said(tiny, vllm_log):
    requests = Requests(config_of(tiny, {"max_thinking_tokens": 41}))
    assert requests.program.format.starts == ("<think>",)
    assert requests.program.eos_token_ids[0] == IM_END
    assert requests.vocab_size == 152_064
    (line,) = [record.getMessage() for record in vllm_log]
    assert "the chat template writes them" in line
    assert "{'max_thinking_tokens': 41}" in line


def test_a_named_format_and_one_that_does_not_fit(tiny, models):
    plain = Requests(config_of(models["qwen2.5-instruct"], {"format": "think"}))
    assert plain.program.format.name == "think"
    with pytest.raises(FormatError, match="no reasoning markers found") as caught:
        Requests(config_of(models["qwen2.5-instruct"]))
    assert '--additional-config \'{"thinkguard": {"format": "..."}}\'' in str(caught.value)
    with pytest.raises(FormatError, match="format='qwen' is not a known family") as caught:
        Requests(config_of(tiny, {"format": "qwen"}))
    assert "--additional-config" in str(caught.value)
    with pytest.raises(FormatError, match=r"needs '<\|start\|>' to be one added token"):
        Requests(config_of(tiny, {"format": "gpt_oss_harmony"}))


def test_a_default_that_cannot_be_spelled_is_refused_when_the_server_starts(tiny):
    with pytest.raises(PolicyError, match="could complete a marker"):
        Requests(config_of(tiny, {"close_message": "done </think>"}))
    with pytest.raises(PolicyError, match="additional_config, thinkguard: grace_tokens=9"):
        Requests(config_of(tiny, {"grace_tokens": 9}))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"skip_tokenizer_init": True}, "needs the tokenizer"),
        ({"is_diffusion": True}, "diffusion"),
        ({"runner_type": "pooling"}, "pooling"),
    ],
)
def test_models_that_cannot_be_guarded_are_refused(tiny, model, told):
    with pytest.raises(UnsupportedError, match=told):
        Requests(config_of(tiny, **model))


def test_who_is_guarded(serve):
    plain, silent, raw = serve(), serve(False), serve({"raw_completions": True})
    assert plain.guard_of(running()).guards_raw is False
    assert plain.guard_of(running(True)).guards_raw is True
    assert plain.guard_of(running(False)) is None
    assert raw.guard_of(running()).guards_raw is True
    assert silent.guard_of(running()) is None
    assert silent.guard_of(running(False)) is None
    for asking in (running(True), running({}), running({"grace_tokens": 0}), running(thinking_token_budget=5)):
        assert silent.guard_of(asking).guards_raw is True


def test_the_requests_fields_lie_over_the_default(serve):
    requests = serve({"max_thinking_tokens": 100, "close_message": "Enough."})
    assert policy_of(requests) == ThinkPolicy(max_thinking_tokens=100, close_message="Enough.")
    assert policy_of(requests, {"max_thinking_tokens": 7}) == ThinkPolicy(max_thinking_tokens=7, close_message="Enough.")
    assert policy_of(requests, {"max_thinking_tokens": None}) == ThinkPolicy(close_message="Enough.")
    assert policy_of(requests, thinking_token_budget=9).max_thinking_tokens == 9
    assert policy_of(requests, {"max_thinking_tokens": 7}, thinking_token_budget=9).max_thinking_tokens == 7
    assert policy_of(requests, {"max_thinking_tokens": None}, thinking_token_budget=9).max_thinking_tokens is None
    assert policy_of(requests, True) == policy_of(requests)


def test_a_partner_may_come_from_the_default(serve):
    requests = serve({"max_thinking_tokens": 100, "min_thinking_tokens": 5})
    asked = {"grace_tokens": 9, "soft_thinking_tokens": 50, "close_bias": 2.0, "extend_message": "Wait", "max_extensions": 1}
    assert policy_of(requests, asked) == ThinkPolicy(max_thinking_tokens=100, min_thinking_tokens=5, **asked)


def test_a_default_that_contradicts_a_request_yields_and_is_said_once(serve, said):
    requests = serve(
        {"max_thinking_tokens": 100, "grace_tokens": 30, "soft_thinking_tokens": 50, "close_bias": 2.0, "loop_tokens": 64}
    )
    for _ in range(2):
        assert policy_of(requests, {"max_thinking_tokens": 40}) == ThinkPolicy(
            max_thinking_tokens=40, grace_tokens=30, loop_tokens=64
        )
    soft, bias = said()
    assert soft.startswith("thinkguard: soft_thinking_tokens=50 of the server's default is not applied: ")
    assert "must lie below max_thinking_tokens=40" in soft
    assert bias.startswith("thinkguard: close_bias=2.0 of the server's default is not applied: ")
    assert policy_of(requests, {"min_thinking_tokens": 200}) == ThinkPolicy(min_thinking_tokens=200, loop_tokens=64)
    assert policy_of(requests, {"opening": "forbid"}).max_thinking_tokens == 100


def test_a_field_whose_partner_nobody_has_does_nothing_and_is_said_once(serve, said):
    requests = serve()
    for _ in range(2):
        assert policy_of(requests, {"grace_tokens": 9, "loop_tokens": 8}) == ThinkPolicy(loop_tokens=8)
    (line,) = said()
    assert line.startswith("thinkguard: grace_tokens=9 of a request is not applied: grace_tokens=9 needs a cap")
    assert policy_of(requests, {"extend_message": "Wait", "max_extensions": 3}) == ThinkPolicy()


def test_a_field_that_needs_the_defaults_cap_cannot_lift_it(serve, said):
    requests = serve({"max_thinking_tokens": 40, "loop_tokens": 8})
    kept = ThinkPolicy(max_thinking_tokens=40, loop_tokens=8)
    assert policy_of(requests, {"grace_tokens": 50}) == kept
    assert policy_of(requests, {"soft_thinking_tokens": 50, "close_bias": 2.0}) == kept
    assert [line.split(" is not applied")[0] for line in said()] == [
        "thinkguard: grace_tokens=50 of a request",
        "thinkguard: soft_thinking_tokens=50 of a request",
        "thinkguard: close_bias=2.0 of a request",
    ]


def test_equal_requests_share_what_is_bound(serve):
    requests = serve({"max_thinking_tokens": 50})
    first, again = requests.guard_of(running({"grace_tokens": 5})), requests.guard_of(running('{"grace_tokens": 5}'))
    assert first is again
    assert requests.guard_of(running()).bound is requests.guard_of(running(True)).bound


# --- EOS ---


def eos_of(requests, *args, **fields):
    return requests.guard_of(running(*args, **fields)).bound.eos_token_ids


def test_the_hosts_eos_is_the_forced_one_and_turn_ends_count_too(serve, said):
    requests = serve()
    assert eos_of(requests) == (IM_END, END_OF_TEXT)
    assert eos_of(requests, eos=END_OF_TEXT) == (END_OF_TEXT, IM_END)
    assert eos_of(requests, stop_token_ids=[65, 64]) == (IM_END, 64, 65, END_OF_TEXT)
    assert not said()
    assert eos_of(requests, eos=END_OF_TEXT, generation=()) == (END_OF_TEXT, IM_END)
    assert said() == [
        f"thinkguard: vLLM does not stop at {IM_END} (<|im_end|>), where a turn of format "
        f"{requests.program.format.name!r} ends, and what it generates behind it is not guarded: list these "
        "ids in generation_config.json or in stop_token_ids"
    ]
    assert eos_of(requests, eos=None, generation=()) == requests.program.eos_token_ids


def test_with_ignore_eos_eos_is_a_plain_token(serve, said):
    requests = serve()
    assert eos_of(requests, ignore_eos=True) == ()
    assert eos_of(requests, ignore_eos=True, stop_token_ids=[65]) == (65,)
    assert not said()
    assert policy_of(requests, {"max_answer_tokens": 9}, ignore_eos=True) == ThinkPolicy()
    assert "max_answer_tokens does not apply" in said()[0]
    assert policy_of(requests, {"max_answer_tokens": 9}, ignore_eos=True, stop_token_ids=[65]).max_answer_tokens == 9


def test_more_stops_than_there_is_room_for(serve, said):
    requests = serve()  # in bytes; from 65 on are letters, of which no opener of a tool call is made
    assert eos_of(requests, generation=(), stop_token_ids=list(range(65, 80))) == (IM_END, *range(65, 80))
    assert eos_of(requests, stop_token_ids=list(range(65, 95))) == (IM_END, *range(65, 79), END_OF_TEXT)
    assert len(said()) == 2
    assert "stops at token 79, which the guard has to take for any other token" in said()[-1]
    assert "at most 16 ids" in said()[-1]


def test_what_cannot_be_bound_is_left_out_and_the_rest_holds(serve, said):
    """A message that completes a marker costs a request the message, not its budget, and not the server's default."""
    requests = serve({"max_thinking_tokens": 9, "reserve_answer_tokens": 7})
    for message in ("see </think>", "and </think>", "a<|im_end|>b"):
        bound = requests.guard_of(running({"close_message": message, "max_thinking_tokens": 5})).bound
        assert bound.source == ThinkPolicy(max_thinking_tokens=5, reserve_answer_tokens=7)
    (line,) = said()
    assert line.startswith("thinkguard: close_message='see </think>' of a request is not applied: ")
    assert "could complete a marker" in line


def test_a_stop_that_the_close_needs_costs_no_policy(serve, said):
    requests = serve({"max_thinking_tokens": 9, "close_message": "Enough."})
    bound = requests.guard_of(running(stop_token_ids=[END_THINK])).bound
    assert bound.source.close_message == "Enough."
    assert END_THINK not in bound.eos_token_ids, "vLLM stops there: the guard sees to it that this comes"
    assert "the end marker '</think>' is token 260, which is also in the EOS set" in said()[0]
    assert eos_of(requests, stop_token_ids=[10]) == (IM_END, END_OF_TEXT)
    assert policy_of(requests, stop_token_ids=[10]).max_thinking_tokens == 9
    assert len(said()) == 1, "of one kind"


def test_a_default_that_a_stop_does_not_go_with_is_left_out_for_that_request(serve, said):
    requests = serve({"max_thinking_tokens": 9, "close_message": "Enough."})
    bound = requests.guard_of(running(stop_token_ids=[ord("E")])).bound
    assert bound.eos_token_ids == (IM_END, ord("E"), END_OF_TEXT)
    assert bound.source == ThinkPolicy(max_thinking_tokens=9)
    assert "close_message='Enough.' of the server's default is not applied" in said()[0]


# --- the rest ---


def test_a_request_for_one_token_is_a_measurement_unless_it_asks(serve, said):
    requests = serve()
    assert requests.guard_of(running(max_tokens=1, logprobs=4, detokenize=False)) is None  # as beam search asks
    assert requests.guard_of(running(max_tokens=2)) is not None
    assert requests.guard_of(running(True, max_tokens=1)) is not None
    assert len(said()) == 1
    assert "beam search" in said()[0]


def test_a_trace_is_left_alone(serve, said):
    assert serve().guard_of(running(trace_decode_token_ids=[5])) is None
    assert "the trace decides every token" in said()[0]


def test_what_came_past_admission_leaves_the_default_in_force(serve, said):
    one = params({"max_thinking_tokens": -5})
    one.update_from_generation_config({}, IM_END)
    assert serve({"max_thinking_tokens": 9}).guard_of(one).bound.source.max_thinking_tokens == 9
    assert "arguments are ignored" in said()[0]


@pytest.mark.parametrize("broken", [None, 5, SimpleNamespace(), SimpleNamespace(extra_args=[]), object()])
def test_params_that_are_none_never_raise(serve, said, broken):
    assert serve().guard_of(broken) is None
    assert "a request is left alone" in said()[0]


def test_the_log_cannot_be_flooded(serve, said):
    requests = serve()
    for i in range(200):
        requests.guard_of(running({"close_message": f"{i}</think>"}))
    assert len(said()) == 1, "one kind"
    for i in range(200):
        requests.say(f"{i}")
    assert len(said()) == 64
    assert said()[-1].endswith("reasons that come up from here on are not logged")


def test_limits(serve):
    requests = serve()
    assert requests.limit_of(params(max_tokens=20), 100) == 20
    assert requests.limit_of(params(max_tokens=500), 100) == 412
    assert requests.limit_of(params(max_tokens=None), 100) == 412
    assert requests.limit_of(params(max_tokens=5), 600) == 0


field_values = st.fixed_dictionaries(
    {},
    optional={
        **{
            name: st.sampled_from([v for v in (0, 1, 4, 5, 40) if v >= low] + ([None] if optional else []))
            for name, (low, _, optional) in COUNTS.items()
        },
        "loop_tokens": st.sampled_from([0, 4, 40]),
        **{name: st.sampled_from(choices) for name, choices in CHOICES.items()},
        "close_bias": st.sampled_from([0, 1.5]),
        "close_message": st.sampled_from(["", "Enough.", "<", "</think>", "é", "\x00"]),
        "extend_message": st.sampled_from([None, "Wait", "</th", "<|im_end|>"]),
    },
)


def valid_default(fields, rng):
    """As many of the fields as go together, taken in a random order."""
    kept, names = {}, list(fields)
    for _ in range(2):
        rng.shuffle(names)
        for name in names:
            if not next(contradictions({**POLICY_DEFAULTS, **kept, name: fields[name]}), None):
                kept[name] = fields[name]
    return kept


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(default=field_values, asked=field_values, seed=st.integers(0, 2**16), more=st.data())
def test_whatever_is_admitted_runs_against_any_default(serve, default, asked, seed, more):
    requests = serve()
    default = valid_default(default, random.Random(seed))
    requests._kept.cache_clear()
    requests._default = {name: value for name, value in default.items() if value != POLICY_DEFAULTS[name]}
    one = params(asked, ignore_eos=more.draw(st.booleans()), stop_token_ids=more.draw(st.sampled_from([[], [65], [10]])))
    one.thinking_token_budget = more.draw(st.sampled_from([None, None, 0, 4, 40]))
    try:
        try:
            admit(one)
        except PolicyError:
            return
        one.update_from_generation_config({}, IM_END)
        guard = requests._guard_of(one)  # without the net that `guard_of` hangs under it
        assert guard is None or isinstance(guard, Guard)
        policy, _ = merged(asked, requests._default)
        if not next(contradictions({**POLICY_DEFAULTS, **asked}), None):
            assert {name: getattr(policy, name) for name in asked} == asked
        values = {name: getattr(policy, name) for name in POLICY_FIELDS}
        for name, value in {**requests._default, **asked}.items():
            if values[name] != value:
                assert next(contradictions({**values, name: value}), None), f"{name} yielded without need"
    finally:
        requests._default = {}


# --- structured outputs ---

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def with_schema(argument=ABSENT, **fields):
    return running(argument, structured_outputs=StructuredOutputsParams(json=SCHEMA), **fields)


def test_with_a_parser_the_close_ends_on_the_marker_where_the_grammar_starts(serve):
    requests = serve({"close_message": "Enough."}, parser="qwen3")
    free, schema = requests.guard_of(running()).bound, requests.guard_of(with_schema()).bound
    spelled = [requests.program.vocabulary.token_bytes(t) for t in schema.sequence(2)]
    assert b"".join(spelled) == b"Enough.\n</think>"
    assert free.sequence(2)[: len(spelled)] == schema.sequence(2)
    assert free.sequence(2) != schema.sequence(2)
    assert schema.sequence(2)[-1] == schema.sequence(3)[-1] == END_THINK
    assert free.close_room - schema.close_room == len(free.sequence(2)) - len(spelled)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "without --reasoning-parser"),
        ({"parser": "qwen3", "in_reasoning": True}, "enable_in_reasoning"),
        ({"parser": "openai_gptoss"}, "'openai_gptoss' does not let their grammar start right behind '</think>'"),
        ({"parser": "mistral"}, "'mistral' does not work with this tokenizer"),
        ({"parser": "nonsense"}, "'nonsense' does not work with this tokenizer"),
    ],
)
def test_otherwise_such_requests_are_left_alone_and_it_is_said_once(serve, said, more, told):
    requests = serve(**more)
    for argument in (ABSENT, True, {"max_thinking_tokens": 5}):
        assert requests.guard_of(with_schema(argument)) is None
    assert requests.guard_of(running()) is not None
    (line,) = said()
    assert line.startswith("thinkguard: requests with structured outputs are left alone, budgets included: ")
    assert told in line


def manager_of(requests, path, parser):
    """vLLM's own manager of grammars, which decides on which token one starts."""
    from vllm.v1.structured_output import StructuredOutputManager

    return StructuredOutputManager(config_of(path, parser=parser))


def grammar_start(manager, prompt, output):
    """How many output tokens vLLM lets pass before the grammar; -1: all of them."""
    from vllm.v1.request import Request

    one = SamplingParams(structured_outputs=StructuredOutputsParams(json=SCHEMA), max_tokens=99)
    request = Request("r", list(prompt), one, None)
    if manager._get_constraint_bounds(request, ()).constraint_start == 0:
        return 0
    for i, token_id in enumerate(output):
        request.append_output_token_ids(token_id)
        if manager._get_constraint_bounds(request, [token_id], spec_tokens_committed=True).grammar_start <= 1:
            return i + 1
    return -1


@pytest.mark.parametrize(
    ("name", "parser", "guarded"),
    [
        ("qwen3", "qwen3", True),
        ("qwen3", "deepseek_r1", True),
        ("deepseek-v3-r1", "deepseek_r1", True),
        ("r1-distill-qwen", "deepseek_r1", True),
        ("magistral-2507", "mistral", True),
        ("qwen3", "openai_gptoss", False),
        ("gpt-oss", "openai_gptoss", False),
        ("olmo3-think", "olmo3", False),
    ],
)
def test_vllms_own_manager_starts_the_grammar_where_our_close_ends(models, name, parser, guarded):
    path = models[name]
    requests = Requests(config_of(path, parser=parser))
    assert (requests._no_grammar is None) is guarded
    if not guarded:
        return
    program = requests.program
    bound = program.bind(ThinkPolicy(close_message="Enough."), bare_close=True)
    opening, closing = bound.sequence(1), bound.sequence(2)
    text, turn = program.vocabulary.encode("let me see"), program.vocabulary.encode("hello")
    manager = manager_of(requests, path, parser)
    for prompt, output in ((turn, [*opening, *text, *closing]), ([*turn, *opening], [*text, *closing])):
        assert grammar_start(manager, prompt, [*output, *text]) == len(output)
    assert grammar_start(manager, [*turn, *opening, *text, *closing], text) == 0  # a prompt that closes its thinking


def test_the_probe_sees_a_grammar_that_starts_late_or_never():
    late = SimpleNamespace(
        is_reasoning_end=lambda ids: False, is_reasoning_end_streaming=lambda ids, delta: len(ids) > 3 and ids[-3] == 9
    )
    assert num_free_tokens(late, [], [1, 9, 1, 1, 1]) == 4
    assert num_free_tokens(late, [], [1, 9, 1]) == -1
    assert num_free_tokens(SimpleNamespace(is_reasoning_end=lambda ids: True), [], [1]) == 0


def test_text_markers_are_never_closed_bare(models):
    program = ThinkProgram("think", models["qwen2.5-instruct"])
    with pytest.raises(FormatError, match="bare_close needs an end marker that is one token"):
        program.bind(ThinkPolicy(), bare_close=True)
    config = SimpleNamespace(reasoning_parser="qwen3", enable_in_reasoning=False, reasoning_parser_plugin="")
    assert "bare_close needs" in why_no_grammar(program, None, config)


def test_bare_and_whole_closes_are_kept_apart(tiny):
    program = ThinkProgram(None, tiny)
    whole, bare = program.bind(ThinkPolicy()), program.bind(ThinkPolicy(), bare_close=True)
    assert whole is program.bind(ThinkPolicy()) is not bare
    assert bare is program.bind(ThinkPolicy(), bare_close=True)
    with pytest.raises(PolicyError, match="could complete a marker"):
        program.bind(ThinkPolicy(close_message="</think>"), bare_close=True)


# --- the class ---


def test_one_class_is_a_processor_of_both_runners():
    from vllm.v1.sample.logits_processor import LogitsProcessor as ofV1
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ofV2

    assert issubclass(adapter.ThinkLogitsProcessor, ofV1)
    assert issubclass(adapter.ThinkLogitsProcessor, ofV2)
    assert not adapter.ThinkLogitsProcessor.__abstractmethods__


class Host:
    """Stands in for what a runner's side is made of; remembers how it was called."""

    def __init__(self, requests, host):
        self.calls = [(requests, host)]

    def __getattr__(self, name):
        return lambda *args: self.calls.append((name, *args)) or name


@pytest.fixture
def hosts(monkeypatch):
    for name, kind in (("v1", "V1Batch"), ("v2", "V2Slots")):
        module = types.ModuleType(f"thinkguard.vllm.{name}")
        setattr(module, kind, type(kind, (Host,), {}))
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_the_number_of_arguments_tells_the_runner(hosts, tiny):
    v1 = adapter.ThinkLogitsProcessor(config_of(tiny), "cpu", False)
    assert type(v1._host).__name__ == "V1Batch"
    assert v1._host.calls[0][1] == "cpu"
    v1.update_state(None)
    assert v1.apply("logits") == "apply"
    assert v1._host.calls[1:] == [("update_state", None), ("apply", "logits")]
    assert v1.is_argmax_invariant() is False
    v2 = adapter.ThinkLogitsProcessor(config_of(tiny), "slots")
    assert type(v2._host).__name__ == "V2Slots"
    assert v2.add_request(3, "params") is True
    v2.apply_staged_writes()
    assert v2.apply("logits", "context") == "apply"
    assert v2._host.calls[1:] == [("add_request", 3, "params"), ("apply_staged_writes",), ("apply", "logits", "context")]
    assert isinstance(v2._host.calls[0][0], Requests)
    for host in ((), (1, 2, 3)):
        with pytest.raises(UnsupportedError, match="neither V1's interface nor V2's"):
            adapter.ThinkLogitsProcessor(config_of(tiny), *host)


def test_speculative_decoding_on_v1_names_the_runner_that_has_it(hosts, tiny):
    config = config_of(tiny)
    config.speculative_config = object()
    with pytest.raises(UnsupportedError, match="VLLM_USE_V2_MODEL_RUNNER=1"):
        adapter.ThinkLogitsProcessor(config, "cpu", False)
    assert adapter.ThinkLogitsProcessor(config, "slots")


def test_a_version_that_is_newer_than_the_tested_ones_is_said_once_and_works(hosts, tiny, said, monkeypatch):
    adapter.ThinkLogitsProcessor(config_of(tiny), "cpu", False)
    assert said() == []
    monkeypatch.setattr(adapter.vllm, "__version__", "0.99.1+cu129")
    assert adapter.ThinkLogitsProcessor(config_of(tiny), "cpu", False).apply("logits") == "apply"
    (line,) = said()
    assert "vLLM 0.99.1+cu129 is newer than" in line


def test_the_frontend_imports_nothing_that_only_a_worker_needs():
    code = (
        "import sys, vllm.sampling_params\nbefore = set(sys.modules)\nimport thinkguard.vllm\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "names = ('device', 'vllm.v1', 'vllm.v2', 'core._slots', 'hf')\n"
        "heavy = {'thinkguard.' + name for name in names} & set(sys.modules)\n"
        "print(sorted(heavy), sorted(new & {'triton', 'torch', 'transformers', 'xgrammar'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[] []"
