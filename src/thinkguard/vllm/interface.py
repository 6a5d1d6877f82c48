"""What differs between vLLM's releases. Features are looked for, never numbers: an unknown release works if it has them.

The rest of this wing is written for the newest interface, and asks here for what an older one lacks or has elsewhere.
"""

from __future__ import annotations

import re
from importlib import import_module
from types import ModuleType
from typing import Any, Final

import vllm

from thinkguard.errors import UnsupportedError

TESTED: Final = {
    "0.11": "adapter driven", "0.13": "adapter driven", "0.18": "adapter driven", "0.20": "adapter driven",
    "0.24": "adapter driven", "0.27": "engine, V1", "0.28": "engine, V1", "0.30": "engine, V1",
    "0.31": "engine, V1 and V2", "0.32": "engine, V1 and V2", "0.33": "adapter driven",
}  # fmt: skip
"""vLLM release -> how it was run by `make matrix`: by its engine on a runner, or its batches around the adapter alone."""

_V1, _V2 = "vllm.v1.sample.logits_processor", "vllm.v1.worker.gpu.sample.logits_processor"


class RefusedRequest(UnsupportedError, ValueError):
    """A request that this server cannot guard; a ValueError, since vLLM makes an HTTP 400 of no other exception."""


def processor_interfaces() -> tuple[type, ...]:
    """The abstract processors of the runners that this vLLM has; UnsupportedError for one that is too old."""
    modules = [module for name in (_V1, _V2) if (module := _module(name)) is not None]
    found = tuple(module.LogitsProcessor for module in modules if hasattr(module, "LogitsProcessor"))
    lacks = "logits processors" if not found else "structured outputs as thinkguard knows them"
    if not found or not hasattr(import_module("vllm.sampling_params"), "StructuredOutputsParams"):
        raise UnsupportedError(f"vLLM {vllm.__version__} has no {lacks}: install vLLM 0.11 or newer")
    return found


def why_untested(version: str) -> str:
    """What to say of a version that is newer than all that were tested; "" for others."""
    newest = max(_numbers(name) for name in TESTED)
    if _numbers(version)[:2] <= newest:
        return ""
    return (
        f"vLLM {version} is newer than {'.'.join(map(str, newest))}, the newest that this version of thinkguard was tested "
        "with; it goes on. If requests come out unguarded, install a tested one or a newer thinkguard"
    )


def check_runner() -> None:
    """RefusedRequest where the V2 runner was asked for and makes no processors: nothing would guard a request there."""
    if getattr(import_module("vllm.envs"), _RUNNER, None) and _module(_V2) is None:
        raise RefusedRequest(
            f"{_RUNNER}=1: the V2 model runner of vLLM {vllm.__version__} leaves logits processors out, so this request "
            f'would not be guarded: start the server with {_RUNNER}=0, or with vLLM 0.31 or newer; {{"thinkguard": false}} '
            "in a request asks for no guard"
        )


def tokenizer_of(model_config: Any) -> Any:
    """The served model's tokenizer."""
    module = _module("vllm.tokenizers") or import_module("vllm.transformers_utils.tokenizer")  # the latter below 0.12
    return module.cached_tokenizer_from_config(model_config)


def stop_ids(params: Any) -> tuple[int, ...]:
    """The ids at which vLLM ends a request, the model's own EOS first."""
    given = sorted(params.stop_token_ids or ())
    if hasattr(params, "eos_token_id"):
        eos = () if params.eos_token_id is None else (params.eos_token_id,)
    else:  # below 0.17: among all of them, where ignore_eos does not take it out
        eos = () if params.ignore_eos else tuple(sorted(set(params.all_stop_token_ids).difference(given)))
    return tuple(dict.fromkeys((*eos, *given)))


def has_grammar(params: Any) -> bool:
    """Whether a request's output is held by a grammar: a JSON schema, a tool call, a regular expression."""
    structured = params.structured_outputs
    if structured is None or not hasattr(structured, "all_constraints_none"):  # 0.11 has them for nothing else
        return structured is not None
    return not structured.all_constraints_none()


def parser_kwargs() -> dict[str, Any]:
    """What a grammar's reasoning parser is made with for a request that thinks: nothing below 0.20, where all share one."""
    fields = import_module("vllm.v1.structured_output.request").StructuredOutputRequest.__annotations__
    if "reasoning_parser_kwargs" not in fields:
        return {}
    return {"chat_template_kwargs": {"thinking": True, "enable_thinking": True}}


def ends_reasoning(parser: Any, token_ids: list[int], new_ids: list[int]) -> bool:
    """Whether a reasoning parser sees the thinking end among the last tokens of a sequence."""
    if hasattr(parser, "is_reasoning_end_streaming"):
        return bool(parser.is_reasoning_end_streaming(token_ids, new_ids))
    return bool(parser.is_reasoning_end(token_ids))  # below 0.13


_RUNNER: Final = "VLLM_USE_V2_MODEL_RUNNER"


def _numbers(version: str) -> tuple[int, ...]:
    """(major, minor), or the greatest of all for a version that is no number, as of a branch."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (2**31, 0)


def _module(name: str) -> ModuleType | None:
    """A module, or None if this vLLM has none of that name."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith(error.name or "?"):
            raise
        return None
