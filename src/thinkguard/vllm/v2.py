"""vLLM's V2 runner: the automaton on the device, a slot per request, one launch a step.

Committed tokens lie in the runner's own buffers and are read by the kernel, as are this step's drafts; the host only says
which request sits in which slot. Nothing here waits for the device, but where the kernels cannot run (`HostSlots`), and
nothing raises on account of a request: that would end the engine for everybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from thinkguard.device.host_slots import HostSlots
from thinkguard.device.kernels import kernels_of
from thinkguard.device.slots import DeviceSlots
from thinkguard.device.tables import DTYPES, DeviceProgram

if TYPE_CHECKING:
    from thinkguard.core.program import ThinkProgram
    from thinkguard.vllm.engine_requests import Requests


class V2Slots:
    """The guarded requests of V2's slots. Slots are recycled without notice: taking one into use says all about it."""

    def __init__(self, requests: Requests, req_states: Any) -> None:
        self._requests, self._host = requests, req_states
        self._slots = _slots_on(req_states.device, requests.program, req_states.max_num_reqs)
        self._guarded = np.zeros(req_states.max_num_reqs, np.bool_)

    def add_request(self, slot: int, params: Any) -> bool:
        """Take a slot into use for a request, also one that resumes; whether it is guarded."""
        guard = self._requests.guard_of(params)
        self._guarded[slot] = guard is not None
        if guard is None:
            self._slots.stage(slot, None)
            return False
        limit = self._requests.limit_of(params, int(self._host.prompt_len.np[slot]))
        self._slots.stage(slot, guard.bound, min(limit, 2**30), guard.guards_raw)
        return True

    def apply_staged_writes(self) -> None:
        """Send the slots that were taken into use to the device, in one transfer; none without any."""
        self._slots.flush()

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Edit the logits in place; no launch unless a request of the batch is guarded. logits: [num_rows, vocab_size]"""
        if self._guarded[ctx.idx_mapping_np].any():
            if logits.dtype in DTYPES:
                self._edit(logits, ctx)
            else:
                before = logits.float()
                self._edit(rows := before.clone(), ctx)
                logits.copy_(torch.where(rows == before, logits, rows))  # what is not edited keeps its own precision
        return logits

    def _edit(self, logits: torch.Tensor, ctx: Any) -> None:
        host = self._host
        self._slots.apply(
            logits, ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.input_ids,
            host.all_token_ids.gpu, host.total_len.gpu, host.prompt_len.gpu,
        )  # fmt: skip


def _slots_on(device: torch.device, program: ThinkProgram, num_slots: int) -> DeviceSlots | HostSlots:
    """The slots where their tensors are, if the kernels run there; else the host path, which waits for them."""
    kernels = kernels_of(device)
    if kernels is None:
        return HostSlots(program, num_slots)
    return DeviceSlots(DeviceProgram(program, device, kernels), num_slots)
