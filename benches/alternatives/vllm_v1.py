"""vLLM V1's thinking budget: the holder that its sampler calls behind all processors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import vllm
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

from benches.alternatives.vllm_common import reasoning_config
from benches.setting import Request, Setting


class VllmV1:
    """`thinking_token_budget` on the V1 runner."""

    version = vllm.__version__
    path = (
        "vllm/v1/worker/gpu_input_batch.py:845 sync_batch on changes; "
        "vllm/v1/sample/sampler.py:411 update_state and :416 apply_to_logits every step"
    )
    cannot: ClassVar[dict[str, str]] = {
        "ban EOS": "EOS is not its business",
        "one block": "the budget is per block; a new block is allowed",
        "utf-8": "it knows tokens, not their bytes",
        "spelled end": "it looks for token ids, whatever plain tokens spell",
    }

    def __init__(self, setting: Setting) -> None:
        self.config = reasoning_config(setting)

    def start(self, requests: Sequence[Request]) -> VllmV1Batch:
        """Admit requests."""
        return VllmV1Batch(self, requests)


class VllmV1Batch:
    """vLLM's holder over the lists of its requests."""

    def __init__(self, how: VllmV1, requests: Sequence[Request]) -> None:
        num = len(requests)
        self.holder = ThinkingBudgetStateHolder(how.config, num, 0, torch.device("cpu"), False)
        self.outputs = [list(request.output) for request in requests]
        self.drafts: list[list[int]] = [[] for _ in requests]
        self._added(range(num), requests, removed=[])

    def _added(self, rows: Sequence[int], requests: Sequence[Request], removed: list[int]) -> None:
        added = [
            (row, SamplingParams(thinking_token_budget=request.budget), request.prompt, self.outputs[row])
            for row, request in zip(rows, requests, strict=True)
        ]
        self.holder.sync_batch(BatchUpdate(len(self.outputs), removed, added, []))

    def step(self, sampled: Sequence[int] | None, logits: torch.Tensor) -> None:
        """Append tokens, and let vLLM edit."""
        if sampled is not None:
            for output, token in zip(self.outputs, sampled, strict=True):
                output.append(token)
        if self.holder.has_tracked_requests():
            self.holder.update_state(self.outputs, self.drafts, repeat_indices=None)
            self.holder.apply_to_logits(logits, False, self.drafts)

    def resume(self, row: int, request: Request) -> None:
        """Remove the row, and add it as vLLM does."""
        self.outputs[row] = list(request.output)
        self._added([row], [request], removed=[row])
