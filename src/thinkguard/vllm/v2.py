"""vLLM's V2 runner: the automaton on the device, a slot per request, one launch a step.

Committed tokens lie in the runner's own buffers and are read by the kernel, as are this step's drafts; the host only says
which request sits in which slot. Nothing here waits for the device, and nothing raises on account of a request: that would
end the engine for everybody.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from thinkguard.device.slots import DeviceSlots
from thinkguard.device.tables import DeviceProgram
from thinkguard.errors import InputError

if TYPE_CHECKING:
    from thinkguard.vllm.engine_requests import Guard, Requests

_MAX_PACKED = 256  # policies kept as the kernel reads them


class V2Slots:
    """The guarded requests of V2's slots. Slots are recycled without notice: taking one into use says all about it."""

    def __init__(self, requests: Requests, req_states: Any) -> None:
        self._requests, self._host = requests, req_states
        self._program = DeviceProgram(requests.program, req_states.device)
        self._slots = DeviceSlots(self._program, req_states.max_num_reqs)
        self._guarded = np.zeros(req_states.max_num_reqs, np.bool_)
        self._packed: OrderedDict[Guard, npt.NDArray[np.int32]] = OrderedDict()
        self._warm_up()

    def add_request(self, slot: int, params: Any) -> bool:
        """Take a slot into use for a request, also one that resumes; whether it is guarded."""
        policy = self._policy_of(params)
        limit = self._requests.limit_of(params, int(self._host.prompt_len.np[slot])) if policy is not None else -1
        self._slots.stage(slot, policy, min(limit, 2**30))
        self._guarded[slot] = policy is not None
        return policy is not None

    def apply_staged_writes(self) -> None:
        """Send the slots that were taken into use to the device, in one transfer; none without any."""
        self._slots.flush()

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Edit the logits in place; no launch unless a request of the batch is guarded. logits: [num_rows, vocab_size]"""
        if self._guarded[ctx.idx_mapping_np].any():
            host = self._host
            self._slots.apply(
                logits, ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.input_ids,
                host.all_token_ids.gpu, host.total_len.gpu, host.prompt_len.gpu,
            )  # fmt: skip
        return logits

    def _policy_of(self, params: Any) -> npt.NDArray[np.int32] | None:
        guard = self._requests.guard_of(params)
        if guard is None:
            return None
        if guard not in self._packed:
            try:
                self._packed[guard] = self._program.pack_policy(guard.bound, guard.guards_raw)
            except InputError as error:
                self._requests.say(f"a request is left alone: {error}")
                return None
            if len(self._packed) > _MAX_PACKED:
                self._packed.popitem(last=False)
        self._packed.move_to_end(guard)
        return self._packed[guard]

    def _warm_up(self) -> None:
        """Compile the kernel before the first request waits for it: one launch over a slot that nobody uses."""
        device = self._host.device
        zero = torch.zeros(1, dtype=torch.int32, device=device)
        self._slots.apply(
            torch.zeros(1, self._requests.vocab_size, dtype=torch.float32, device=device),
            zero.long(), zero, zero,
            self._host.all_token_ids.gpu, self._host.total_len.gpu, self._host.prompt_len.gpu,
        )  # fmt: skip
