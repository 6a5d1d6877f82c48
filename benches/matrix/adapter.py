"""The vLLM adapter around a release's own parts, without an engine: `python -m benches.matrix.adapter` prints its row.

For releases that have no build for this machine: of their wheel only the Python files are needed. The release itself checks
each request, loads the processor by its name and tells it of the batch; logits are drawn here.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
import vllm
from vllm import SamplingParams
from vllm.v1.sample import logits_processor as v1

from benches.matrix import judging
from benches.matrix.judging import EOS, FIELDS, MODEL, PROCESSOR, PROMPT
from thinkguard.vllm import interface

_WIDTH: Final = 512
_DEFAULT: Final = {"max_thinking_tokens": 12, "max_answer_tokens": 20}
_TOKENS: Final = 60


def config(default: Any) -> Any:
    """What the processor, and vLLM's own tokenizer loader, read of a VllmConfig."""
    model = {
        "model": MODEL, "tokenizer": MODEL, "tokenizer_mode": "auto", "tokenizer_revision": None, "hf_config": None,
        "trust_remote_code": False, "runner_type": "generate", "skip_tokenizer_init": False, "max_model_len": 1024,
        "get_vocab_size": lambda: _WIDTH, "logits_processors": [PROCESSOR],
    }  # fmt: skip
    return SimpleNamespace(
        model_config=SimpleNamespace(**model), additional_config={"thinkguard": default}, speculative_config=None,
        structured_outputs_config=SimpleNamespace(reasoning_parser="qwen3"), reasoning_config=None,
        parallel_config=SimpleNamespace(distributed_executor_backend="uni"),
        scheduler_config=SimpleNamespace(max_num_seqs=8, async_scheduling=False),
    )  # fmt: skip


def admitted(**fields: Any) -> Any:
    """A request as the release hands it to its engine; ValueError from it is the client's HTTP 400."""
    params = SamplingParams(max_tokens=_TOKENS, temperature=0, **fields)
    if hasattr(v1, "validate_logits_processors_parameters"):
        v1.validate_logits_processors_parameters([PROCESSOR], params)
    params.update_from_generation_config({"eos_token_id": [EOS]}, EOS)
    return params


def outputs(processors: Any, requests: list[Any]) -> list[list[int]]:
    """What comes of a batch whose logits are drawn: every step the release's own update, then every processor."""
    update, found, rng = v1.BatchUpdateBuilder(), [list[int]() for _ in requests], np.random.default_rng(0)
    for i, (params, output) in enumerate(zip(requests, found, strict=True)):
        update.added.append((i, params, PROMPT, output))
    running = set(range(len(requests)))
    while running:
        change = update.get_and_reset(len(requests))
        logits = torch.from_numpy(rng.normal(0, 4, (len(requests), _WIDTH)).astype(np.float32))
        before = logits.clone()
        for processor in processors.all:
            processor.update_state(change)
        for processor in processors.non_argmax_invariant:
            logits = processor.apply(logits)
        for i in sorted(running):
            found[i].append(int(logits[i].argmax()))
            if requests[i].extra_args == {"thinkguard": False}:
                assert torch.equal(logits[i], before[i]), "a request without the guard had its logits edited"
            if len(found[i]) == _TOKENS or found[i][-1] in interface.stop_ids(requests[i]):
                running.remove(i)
    return found


def main() -> None:
    """Print the row."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("vllm.thinkguard").addHandler(handler)
    processors = v1.build_logitsprocs(config(_DEFAULT), torch.device("cpu"), False, False, [PROCESSOR])
    admits = hasattr(v1, "validate_logits_processors_parameters")
    has_budget = hasattr(SamplingParams(), "thinking_token_budget")

    def ask(**fields: Any) -> list[int]:
        return outputs(processors, [admitted(**fields)])[0]

    def misspelt() -> str:
        if admits:
            return judging.refused(lambda: admitted(extra_args={"thinkguard": {"max_thinking_token": 5}}))
        output, said = ask(extra_args={"thinkguard": {"max_thinking_token": 5}}), " ".join(lines)
        assert "did you mean 'max_thinking_tokens'" in said, said
        judging.judge(output, _DEFAULT["max_thinking_tokens"])
        return "logged; no hook for a refusal"

    judging.report(
        vllm.__version__,
        {
            "by default": lambda: judging.judge(ask(), _DEFAULT["max_thinking_tokens"]),
            "per request": lambda: judging.judge(ask(extra_args={"thinkguard": FIELDS}), FIELDS["max_thinking_tokens"]),
            "off": lambda: judging.unguarded(ask(extra_args={"thinkguard": False})),
            "misspelt field": misspelt,
            "thinking_token_budget": lambda: (
                judging.judge(ask(thinking_token_budget=3), 3) if has_budget else "not in this release"
            ),
            "forced V2": lambda: judging.refused_on_v2(admitted) if admits else "not in this release",
        },
    )


if __name__ == "__main__":
    main()
