"""The host path for a host with slots: for devices that the kernels cannot run on (AMD, Intel, a driver that refuses them).

What is committed is known on the device alone, so that a step waits for it once: lengths and new tokens come to the CPU, C
decides there, and the rows of logits that need an edit are edited as copies and sent back.
"""

from __future__ import annotations

import numpy as np
import torch

from thinkguard.core._core import BoundPolicy
from thinkguard.core.names import ActionKind
from thinkguard.core.program import ThinkProgram
from thinkguard.device.launch import HostKernels
from thinkguard.device.slots import DeviceSlots
from thinkguard.device.steps import EDIT_SIZE, EditsStep
from thinkguard.device.tables import DTYPES, DeviceProgram, HostFlag

_ACTION = EDIT_SIZE - 2  # int32 of a tg_action


class HostSlots:
    """The sequences of a host with slots whose logits lie where C does not reach; called like `DeviceSlots`."""

    def __init__(self, program: ThinkProgram, num_slots: int) -> None:
        self._program = DeviceProgram(program, "cpu", HostKernels())
        self._slots = DeviceSlots(self._program, num_slots)
        self._tokens = torch.zeros(num_slots, 0, dtype=torch.int32)  # committed, as far as they are known here
        self._known = np.zeros(num_slots, np.int64)  # how many
        self._actions = torch.zeros(0, _ACTION, dtype=torch.int32)
        self._edits = EditsStep(program=self._program.struct, num_policies=num_slots)
        self.was_banned = HostFlag(self._program.device)  # see DeviceSlots
        self._edits.logits.banned = self.was_banned.address
        self._edit = self._program.kernels.bind("guard_edits", self._edits)

    def stage(self, slot: int, bound: BoundPolicy | None, limit: int = -1, guards_raw: bool = True) -> None:
        """See `DeviceSlots.stage`."""
        self._slots.stage(slot, bound, limit, guards_raw)
        self._known[slot] = 0

    def flush(self) -> None:
        """See `DeviceSlots.flush`."""
        self._slots.flush()

    def apply(
        self,
        logits: torch.Tensor,
        slots: torch.Tensor,
        offsets: torch.Tensor,
        inputs: torch.Tensor,
        tokens: torch.Tensor,
        total: torch.Tensor,
        prompt: torch.Tensor,
    ) -> None:
        """See `DeviceSlots.apply`; waits for the device."""
        num_rows, num_slots = len(logits), len(total)
        if not num_rows:
            return
        small = torch.cat([tensor.int() for tensor in (slots, offsets, inputs, total, prompt)]).cpu()
        slots, offsets, inputs, total, prompt = small.split([num_rows] * 3 + [num_slots] * 2)
        self._fetch(slots.unique(), tokens, total)
        if len(self._actions) < num_rows:
            self._actions = torch.zeros(2 * num_rows, _ACTION, dtype=torch.int32)
        actions = self._actions[:num_rows].zero_()  # rows that are left alone are TG_FREE
        self._slots.decide(actions, slots, offsets, inputs, self._tokens, total, prompt)
        edited = (actions[:, 0] != ActionKind.FREE).nonzero()[:, 0]
        if len(edited):
            self._carry_out(logits, edited, slots, actions)

    @property
    def flags(self) -> torch.Tensor:
        """See `DeviceSlots.flags`; they lie here."""
        return self._slots.flags

    def state_of(self, slot: int) -> dict[str, int]:
        """See `DeviceSlots.state_of`; it lies here."""
        return self._slots.state_of(slot)

    def _fetch(self, slots: torch.Tensor, tokens: torch.Tensor, total: torch.Tensor) -> None:
        """Bring tokens that were committed since the last step, of these slots, in one transfer; none without any."""
        if tokens.shape[1] > self._tokens.shape[1]:
            self._tokens = torch.zeros(len(tokens), tokens.shape[1], dtype=torch.int32)
            self._known[:] = 0
        here = np.unique(slots.numpy())
        here = here[(here >= 0) & (here < len(tokens))]
        known, end = self._known[here], total.numpy()[here].clip(0, tokens.shape[1])
        begin = np.where(known > end, 0, known)  # fewer than before: what a slot had is gone
        self._known[here], num = end, end - begin
        if not num.any():
            return
        rows, places = np.repeat(here, num), np.repeat(begin - np.cumsum(num) + num, num)
        columns = places + np.arange(len(places))
        where = torch.from_numpy(np.stack([rows, columns])).to(tokens.device)
        new = tokens[where[0], where[1]].cpu().numpy()
        self._tokens.numpy()[rows, columns] = np.where((new >= 0) & (new < 2**31), new, -1)

    def _carry_out(self, logits: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, actions: torch.Tensor) -> None:
        """Edit copies of some rows on the CPU, and put them back."""
        where = rows.to(logits.device)
        copies = logits.index_select(0, where).cpu()
        copies = copies if copies.dtype in DTYPES else copies.float()
        edits = torch.cat([torch.arange(len(rows), dtype=torch.int32)[:, None], slots[rows][:, None], actions[rows]], 1)
        step, policies = self._edits, self._slots.policies
        step.policies, step.policy_size = policies.data_ptr(), policies.shape[1]
        step.edits, step.num_edits = edits.data_ptr(), len(rows)
        step.logits.point(copies, DTYPES[copies.dtype])
        self._edit(len(rows), 0)
        logits.index_copy_(0, where, copies.to(logits))
