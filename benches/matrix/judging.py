"""What is asked of each vLLM release, and how an output is judged: one model, one prompt, one reader for all of them."""

from __future__ import annotations

import json
import os
import re
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, Final
from unittest import mock

from benches.matrix.rows import MARK
from thinkguard.core.program import ThinkProgram
from thinkguard.demo.run import MODELS
from thinkguard.policy import ThinkPolicy

MODEL: Final = str(MODELS / "healthy")
PROCESSOR: Final = "thinkguard.vllm:ThinkLogitsProcessor"
FIELDS: Final = {"max_thinking_tokens": 5, "max_answer_tokens": 20}
"""Of the request that is guarded its own way."""
RUNNER: Final = "VLLM_USE_V2_MODEL_RUNNER"


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


def _prompt() -> list[int]:
    chat = [{"role": "user", "content": "What is two plus three times four?"}]
    text = _tokenizer().apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return list(_tokenizer().encode(text, add_special_tokens=False))


PROMPT: Final = _prompt()
EOS: Final[int] = _tokenizer().eos_token_id


def judge(output: Sequence[int], budget: int) -> str:
    """Return "ok", if an output thinks in one block of at most so many tokens and then answers; AssertionError otherwise."""
    text = _tokenizer().decode(output, skip_special_tokens=False)
    assert re.fullmatch(r"\s*<think>(?:(?!</?think>).)*</think>(?:(?!</?think>).)*\S.*", text, re.S), text
    trace = ThinkProgram("think", _tokenizer()).explain(PROMPT, output, ThinkPolicy(max_thinking_tokens=budget))
    assert trace.well_formed, (text, trace)
    assert trace.thinking_tokens <= budget, (text, trace)
    return "ok"


def unguarded(output: Sequence[int], budget: int = 12) -> str:
    """Return "ok", if an output is not as the server's default would have made it."""
    try:
        judge(output, budget)
    except AssertionError:
        return "ok"
    raise AssertionError(_tokenizer().decode(output))


def refused(ask: Callable[[], object], because: str = "did you mean 'max_thinking_tokens'") -> str:
    """Return "HTTP 400", if a request is refused with this reason, by an exception that vLLM makes one of."""
    known: list[type[Exception]] = [ValueError]
    with suppress(ImportError, AttributeError):
        known.append(import_module("vllm.exceptions").VLLMValidationError)
    try:
        ask()
    except tuple(known) as error:
        if because not in str(error):
            raise
        return "HTTP 400"
    raise AssertionError("it was admitted")


def refused_on_v2(admit: Callable[[], object]) -> str:
    """Say what becomes of a request where the V2 runner was forced."""
    if RUNNER not in import_module("vllm.envs").environment_variables:
        return "not in this release"
    from thinkguard.vllm import interface

    with mock.patch.dict(os.environ, {RUNNER: "1"}):
        if len(interface.processor_interfaces()) == 2:
            admit()
            return "admitted"
        return refused(admit, "leaves logits processors out")


def report(version: str, checks: dict[str, Callable[[], str]]) -> None:
    """Print a row: the version, and of every check its word, or "failed: " and why."""
    words: dict[str, str] = {}
    for name, check in checks.items():
        try:
            words[name] = check()
        except Exception as error:
            traceback.print_exc()
            words[name] = f"failed: {type(error).__name__}: {str(error)[:200]}"
    print(MARK + json.dumps({"version": version, "checks": words}), flush=True)
