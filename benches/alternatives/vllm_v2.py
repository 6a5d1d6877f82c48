"""vLLM V2's thinking budget: two Triton kernels over the runner's buffers. On a CPU they need Triton's interpreter.

`RequestState` and `ThinkingBudgetState` are vLLM's own; what is written here is what its `post_update` kernel does to the
buffers behind a step (the token appended, the length grown) and the `LogitsContext` of a step without drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import triton
import vllm
from vllm import SamplingParams
from vllm.v1.worker.cpu import buffer_utils as cpu_buffer_utils
from vllm.v1.worker.gpu import buffer_utils
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext
from vllm.v1.worker.gpu.sample.thinking_budget import ThinkingBudgetState
from vllm.v1.worker.gpu.states import RequestState

from benches.alternatives.vllm_common import reasoning_config
from benches.setting import Request, Setting

if not torch.cuda.is_available():  # what vLLM's own CPU worker does, vllm/v1/worker/cpu/shm.py:98: no memory is pinned
    buffer_utils.UvaBuffer = cpu_buffer_utils.UvaBuffer


class VllmV2:
    """`thinking_token_budget` on the V2 runner."""

    version = f"{vllm.__version__}, triton {triton.__version__}"
    path = (
        "vllm/v1/worker/gpu/sample/sampler.py:98 add_request, :113 apply_staged_writes, :260 apply every step; "
        "kernels vllm/v1/worker/gpu/sample/thinking_budget.py:152 and :237"
    )
    cannot: ClassVar[dict[str, str]] = {
        "ban EOS": "EOS is not its business",
        "one block": "the budget is per block; a new block is allowed",
        "utf-8": "it knows tokens, not their bytes",
        "spelled end": "it looks for token ids, whatever plain tokens spell",
    }

    def __init__(self, setting: Setting, device: str = "cpu") -> None:
        self.config, self.width, self.device = reasoning_config(setting), setting.width, torch.device(device)

    def start(self, requests: Sequence[Request]) -> VllmV2Batch:
        """Admit requests."""
        return VllmV2Batch(self, requests)


class VllmV2Batch:
    """vLLM's request states and budget over its own buffers."""

    def __init__(self, how: VllmV2, requests: Sequence[Request], most: int = 2048) -> None:
        num, longest = len(requests), max(len(request.prompt) + len(request.output) for request in requests)
        self.states = RequestState(num, longest + most, 64, 0, how.width, how.device)
        self.states.free_indices = list(range(num))[::-1]  # slot = row, for reading's sake
        self.budget = ThinkingBudgetState(self.states, how.config)
        self.rows = torch.arange(num, dtype=torch.int32, device=how.device)
        self.rows_np = np.arange(num, dtype=np.int32)
        self.inputs = torch.zeros(num, dtype=torch.int32, device=how.device)
        self.offsets = torch.zeros(num, dtype=torch.int32, device=how.device)
        for row, request in enumerate(requests):
            self._add(row, request)
        self._flush()

    def _add(self, row: int, request: Request) -> None:
        self.states.add_request(str(row), len(request.prompt), request.prompt + request.output, 0, 2**20)
        self.budget.add_request(row, SamplingParams(thinking_token_budget=request.budget))
        self.inputs[row] = (request.prompt + request.output)[-1]

    def _flush(self) -> None:
        self.states.apply_staged_writes()
        self.budget.apply_staged_writes()

    def step(self, sampled: Sequence[int] | None, logits: torch.Tensor) -> None:
        """Do what `post_update` does, and launch vLLM's kernels."""
        if sampled is not None:
            self.inputs.copy_(torch.tensor(sampled, dtype=torch.int32))
            total = self.states.total_len.gpu
            self.states.all_token_ids.gpu[self.rows.long(), total.long()] = self.inputs
            total += 1
        context = LogitsContext(
            expanded_idx_mapping=self.rows, idx_mapping=self.rows, idx_mapping_np=self.rows_np,
            expanded_local_pos=self.offsets, input_ids=self.inputs, pos=self.states.total_len.gpu - 1,
            seq_lens_upper_bound_np=self.states.total_len.gpu.cpu().numpy(),
        )  # fmt: skip
        self.budget.apply(logits, context)

    def resume(self, row: int, request: Request) -> None:
        """Remove the slot, and add it as vLLM does."""
        assert self.states.remove_request(str(row)) == row
        self._add(row, request)
        self._flush()
