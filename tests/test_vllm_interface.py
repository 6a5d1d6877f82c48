"""Releases of vLLM that lack what the newest one has; `make matrix` runs the releases themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from thinkguard.errors import UnsupportedError
from thinkguard.requests.admission import admit

pytest.importorskip("vllm", reason="its interfaces are looked at, and it is not installed")

import vllm
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor import LogitsProcessor, validate_logits_processors_parameters
from vllm.v1.structured_output.request import StructuredOutputRequest

from thinkguard.vllm import interface

CLASS = "thinkguard.vllm:ThinkLogitsProcessor"
ABSENT = "vllm.v1.no_such_module"


def test_both_runners_interfaces_are_there():
    v1, v2 = interface.processor_interfaces()
    assert v1 is LogitsProcessor
    assert v2.__module__ == "vllm.v1.worker.gpu.sample.logits_processor.interface"


@pytest.mark.parametrize("version", [*interface.TESTED, "0.33.7+cu129", "0.25.1", "0.11.0rc2"])
def test_tested_versions_and_those_between_are_not_spoken_of(version):
    assert interface.why_untested(version) == ""


@pytest.mark.parametrize("version", ["0.34.0", "0.330.1", "1.0.0", "0.34.1rc2.dev3+g1234", "dev", ""])
def test_a_newer_version_is_named_with_the_newest_tested_and_a_remedy(version):
    told = interface.why_untested(version)
    assert told.startswith(f"vLLM {version} is newer than 0.33, the newest that")
    assert "install a tested one" in told


def test_before_0_11_the_import_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(interface, "_V1", ABSENT)
    assert len(interface.processor_interfaces()) == 1, "V2's is enough"
    monkeypatch.setattr(interface, "_V2", ABSENT)
    told = rf"^vLLM {re.escape(vllm.__version__)} has no logits processors: install vLLM 0.11 or newer$"
    with pytest.raises(UnsupportedError, match=told):
        interface.processor_interfaces()
    monkeypatch.undo()
    monkeypatch.delattr("vllm.sampling_params.StructuredOutputsParams")  # 0.10 has guided decoding in its place
    with pytest.raises(UnsupportedError, match=r"has no structured outputs .*: install vLLM 0.11 or newer$"):
        interface.processor_interfaces()


def test_a_module_that_fails_for_another_reason_is_not_taken_for_a_missing_one(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError("No module named 'numba'", name="numba")

    monkeypatch.setattr(interface, "import_module", import_module)
    with pytest.raises(ModuleNotFoundError, match="numba"):
        interface.processor_interfaces()


# --- a forced V2 runner that makes no processors ---


@pytest.mark.parametrize(
    ("runner", "has_interface", "argument", "is_refused"),
    [
        ("1", False, None, True), ("1", False, {"max_thinking_tokens": 5}, True), ("1", False, True, True),
        ("1", False, False, False), ("0", False, None, False), (None, False, True, False), ("1", True, None, False),
    ],
)  # fmt: skip
def test_a_v2_runner_without_processors_refuses_what_would_not_be_guarded(
    runner, has_interface, argument, is_refused, monkeypatch
):
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    if runner is not None:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", runner)
    if not has_interface:
        monkeypatch.setattr(interface, "_V2", ABSENT)
    params = SamplingParams(extra_args=None if argument is None else {"thinkguard": argument})
    if not is_refused:
        validate_logits_processors_parameters([CLASS], params)
        return
    told = r"^VLLM_USE_V2_MODEL_RUNNER=1: .* VLLM_USE_V2_MODEL_RUNNER=0, or with vLLM 0\.31"
    with pytest.raises(VLLMValidationError, match=told) as caught:
        validate_logits_processors_parameters([CLASS], params)
    assert isinstance(caught.value.__cause__, interface.RefusedRequest)


# --- what older releases lack ---


def test_parameters_without_a_budget_of_vllms_own_are_admitted():
    @dataclass(slots=True)  # as vLLM's, it takes no attribute that is not a field
    class Params:
        extra_args: dict

    params = Params({"thinkguard": '{"max_thinking_tokens": 5}'})
    admit(params)
    assert params.extra_args == {"thinkguard": {"max_thinking_tokens": 5}}


@dataclass
class OldParams:
    """Below 0.17: EOS is known by `all_stop_token_ids` alone, and stays in it under ignore_eos."""

    stop_token_ids: list[int] = field(default_factory=list)
    all_stop_token_ids: set[int] = field(default_factory=set)
    ignore_eos: bool = False


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        (OldParams([9, 7], {9, 7, 8}), (8, 7, 9)),
        (OldParams([9, 7], {9, 7, 8}, ignore_eos=True), (7, 9)),
        (OldParams([8], {8}), (8,)),
        (OldParams(), ()),
        (SimpleNamespace(eos_token_id=8, stop_token_ids=[9, 8, 7]), (8, 7, 9)),
        (SimpleNamespace(eos_token_id=None, stop_token_ids=None), ()),
    ],
)
def test_the_ids_at_which_vllm_stops(params, wanted):
    assert interface.stop_ids(params) == wanted


def test_old_parameters_stop_where_new_ones_do():
    """The rule of `OldParams`, held against this vLLM's own parameters, which have both."""
    for ignore_eos in (False, True):
        for stops in ([], [7], [8, 7]):
            params = SamplingParams(stop_token_ids=stops, ignore_eos=ignore_eos)
            params.update_from_generation_config({"eos_token_id": [8, 6]}, 8)
            old = OldParams(params.stop_token_ids, params.all_stop_token_ids, ignore_eos)
            assert set(interface.stop_ids(old)) == set(interface.stop_ids(params)), params


def test_grammars_of_0_11_hold_where_there_are_any():
    assert not interface.has_grammar(SimpleNamespace(structured_outputs=None))
    assert interface.has_grammar(SimpleNamespace(structured_outputs=SimpleNamespace(json="{}")))
    none = SimpleNamespace(all_constraints_none=lambda: True)
    assert not interface.has_grammar(SimpleNamespace(structured_outputs=none))


def test_parsers_that_all_requests_share_are_made_with_nothing(monkeypatch):
    assert interface.parser_kwargs() == {"chat_template_kwargs": {"thinking": True, "enable_thinking": True}}
    monkeypatch.delitem(StructuredOutputRequest.__annotations__, "reasoning_parser_kwargs")
    assert interface.parser_kwargs() == {}


def test_parsers_that_do_not_read_streams_are_shown_the_whole():
    old = SimpleNamespace(is_reasoning_end=lambda ids: 5 in ids)
    new = SimpleNamespace(is_reasoning_end_streaming=lambda ids, new_ids: 5 in new_ids, is_reasoning_end=lambda ids: False)
    for parser in (old, new):
        assert [interface.ends_reasoning(parser, [4, *ids], ids) for ids in ([5], [6])] == [True, False]


def test_the_tokenizer_is_found_where_0_11_has_it(monkeypatch):
    asked = []
    there = SimpleNamespace(cached_tokenizer_from_config=lambda model: asked.append(model) or "tokenizer")
    found = {"vllm.transformers_utils.tokenizer": there}

    def import_module(name):
        if name not in found:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found[name]

    monkeypatch.setattr(interface, "import_module", import_module)
    assert interface.tokenizer_of("model") == "tokenizer"
    assert asked == ["model"]
