"""vLLM's V2 runner: the automaton on the device, a slot per request, one launch a step.

Committed tokens lie in the runner's own buffers and are read by the kernel, as are this step's drafts; the host only says
which request sits in which slot. Nothing here waits for the device, but where the kernels cannot run (`HostSlots`), and
nothing raises on account of a request: that would end the engine for everybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from thinkguard.core.names import StateFlag
from thinkguard.device.host_slots import HostSlots
from thinkguard.device.kernels import kernels_of
from thinkguard.device.slots import DeviceSlots
from thinkguard.device.tables import DTYPES, DeviceProgram

if TYPE_CHECKING:
    from thinkguard.vllm.engine_requests import Requests


class Chats:
    """Says once that a prompt showed no chat, which is found out on the device: what it noted is read without waiting."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._expected: set[int] = set()  # slots whose prompts have to show a chat, and were not read yet
        self._asked: tuple[list[int], torch.Tensor, torch.cuda.Event | None] | None = None  # on its way from the device
        self._is_said = False

    def expect(self, slot: int) -> None:
        """A request that is guarded only if its prompt shows a chat took this slot."""
        if not self._is_said:
            self._expected.add(slot)

    def look(self, slots: DeviceSlots | HostSlots, stepped: npt.NDArray[np.integer[Any]]) -> None:
        """Read what the last step noted, if it has come, and ask for what this one does, if it read such prompts."""
        if self._asked is not None:
            asked, flags, arrived = self._asked
            if arrived is None or arrived.query():
                self._asked = None
                if (flags[asked] & StateFlag.NO_CHAT).any():
                    self._requests.say_no_chat()
                    self._is_said = True
                    self._expected.clear()
        read = self._expected.intersection(stepped.tolist()) if self._expected and self._asked is None else ()
        if read:
            self._expected -= set(read)
            flags, arrived = slots.flags, None
            if flags.is_cuda:
                flags = torch.empty(len(flags), dtype=flags.dtype, pin_memory=True).copy_(flags, non_blocking=True)
                arrived = torch.cuda.Event()
                arrived.record()
            self._asked = sorted(read), flags.clone() if arrived is None else flags, arrived


class V2Slots:
    """The guarded requests of V2's slots. Slots are recycled without notice: taking one into use says all about it."""

    def __init__(self, requests: Requests, req_states: Any) -> None:
        self._requests, self._host = requests, req_states
        self._kernels = kernels_of(req_states.device)  # proved now, before the first request
        self._made: DeviceSlots | HostSlots | None = None
        self._guarded = np.zeros(req_states.max_num_reqs, np.bool_)
        self._chats = Chats(requests)

    def add_request(self, slot: int, params: Any) -> bool:
        """Take a slot into use for a request, also one that resumes; whether it is guarded."""
        guard = self._requests.guard_of(params)
        self._guarded[slot] = guard is not None
        if guard is None:
            if self._made is not None:
                self._made.stage(slot, None)
            return False
        limit = self._requests.limit_of(params, int(self._host.prompt_len.np[slot]))
        self._slots.stage(slot, guard.bound, min(limit, 2**30), guard.guards_raw)
        if not guard.guards_raw and not self._is_warm_up(slot):
            self._chats.expect(slot)
        return True

    def apply_staged_writes(self) -> None:
        """Send the slots that were taken into use to the device, in one transfer; none without any."""
        if self._made is not None:
            self._made.flush()

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Edit the logits in place; no launch unless a request of the batch is guarded. logits: [num_rows, vocab_size]"""
        if self._guarded[ctx.idx_mapping_np].any():
            if logits.dtype in DTYPES:
                self._edit(logits, ctx)
            else:
                before = logits.float()
                self._edit(rows := before.clone(), ctx)
                logits.copy_(torch.where(rows == before, logits, rows))  # what is not edited keeps its own precision
            if self._slots.was_banned:
                self._requests.say_banned()
            self._chats.look(self._slots, ctx.idx_mapping_np)
        return logits

    def _is_warm_up(self, slot: int) -> bool:
        """Whether a request is one of the engine's own, which try out its kernels on no conversation."""
        name = getattr(self._host, "index_to_req_id", {}).get(slot, "")
        return str(name).startswith("_") and "warmup" in str(name)

    def _edit(self, logits: torch.Tensor, ctx: Any) -> None:
        host = self._host
        self._slots.apply(
            logits, ctx.expanded_idx_mapping, ctx.expanded_local_pos, ctx.input_ids,
            host.all_token_ids.gpu, host.total_len.gpu, host.prompt_len.gpu,
        )  # fmt: skip

    @property
    def _slots(self) -> DeviceSlots | HostSlots:
        """The slots where their tensors are, if the kernels run there; else the host path, which waits for them.

        Made for the first guarded request. vLLM makes its processors while it loads the model's weights, and what is
        allocated then it throws away with them when it is put to sleep (level 2), without a word to us.
        """
        if self._made is None:
            program, num_slots = self._requests.program, self._host.max_num_reqs
            if self._kernels is None:
                self._made = HostSlots(program, num_slots)
            else:
                self._made = DeviceSlots(DeviceProgram(program, self._host.device, self._kernels), num_slots)
        return self._made
