"""The sequences of a host that gives each a slot (vLLM V2): where they stand, and one launch a step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from thinkguard.core._core import BoundPolicy
from thinkguard.core.names import STATE_FIELDS
from thinkguard.device.steps import LOOP_SIZE, SLOT_SIZE, SlotsStep
from thinkguard.device.tables import DTYPES, DeviceProgram, HostFlag, rows_of, sent, stream_of, widened
from thinkguard.errors import InputError

FOLDED, IS_GUARDED, GUARDS_RAW, STATE = 0, 2, 3, 4  # places in a tg_slot
LIMIT, FLAGS = (STATE + STATE_FIELDS.index(name) for name in ("limit", "flags"))


class DeviceSlots:
    """The sequences of a host with slots. [num_slots]"""

    def __init__(self, program: DeviceProgram, num_slots: int) -> None:
        self.program, self.num_slots, device = program, num_slots, program.device
        self.slots = torch.zeros(num_slots, SLOT_SIZE, dtype=torch.int32, device=device)
        self.loops = torch.zeros(num_slots, 2 * LOOP_SIZE, dtype=torch.int32, device=device)
        self.policies = torch.zeros(num_slots, 0, dtype=torch.int32, device=device)
        self._staged: dict[int, tuple[npt.NDArray[np.int32], BoundPolicy | None]] = {}
        self._step = SlotsStep(
            program=program.struct, slots=self.slots.data_ptr(), loops=self.loops.data_ptr(), num_slots=num_slots
        )
        self.was_banned = HostFlag(device)  # whether what was due in a row had been banned by another processor
        self._step.logits.banned = self.was_banned.address
        self._launch = program.kernels.bind("guard_slots", self._step)

    def stage(self, slot: int, bound: BoundPolicy | None, limit: int = -1, guards_raw: bool = True) -> None:
        """Give a slot to a new sequence with a policy, or, without one, to a sequence that is left alone.

        `limit`: tokens that its output may have, -1: unknown. Not `guards_raw`: a prompt that shows no chat is left alone.
        """
        if not 0 <= slot < self.num_slots:  # a GPU finds out in an assertion, behind which it does nothing any more
            raise InputError(f"slot={slot}: must be one of the {self.num_slots} slots, from 0 on")
        record = np.zeros(1 + SLOT_SIZE, np.int32)
        record[0] = slot
        record[1 + FOLDED], record[1 + LIMIT] = -1, limit
        record[1 + IS_GUARDED], record[1 + GUARDS_RAW] = bound is not None, guards_raw
        self._staged[slot] = record, bound

    def flush(self) -> None:
        """Write what was staged: one transfer, whatever the number of sequences; none without any.

        Memory is taken only for a policy with more tokens than any before it.
        """
        if not self._staged:
            return
        records, policies = zip(*self._staged.values(), strict=True)
        self._staged.clear()
        longest = max((len(bound.block) for bound in policies if bound is not None), default=0)
        self.policies = widened(self.policies, self.num_slots, longest)
        width = self.policies.shape[1]
        self._step.policies, self._step.policy_size = self.policies.data_ptr(), width
        new = sent(np.concatenate([np.stack(records), rows_of(policies, width)], 1), self.slots.device)
        slots = new[:, 0].long()
        self.slots.index_copy_(0, slots, new[:, 1 : 1 + SLOT_SIZE])
        self.policies.index_copy_(0, slots, new[:, 1 + SLOT_SIZE :])

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
        """Account for what was committed since the last call and edit each row of logits in place, in one launch.

        logits: [num_rows, width] of float32, float16 or bfloat16, of any strides. slots, offsets, inputs: [num_rows], a
        row's slot, its offset among that slot's rows, which follow each other, and the token fed there, at offsets above 0
        a draft. tokens: [num_slots, capacity], of which the first total[slot] are committed and the first prompt[slot] the
        prompt. All but the logits are int32 or int64.
        """
        if len(logits):
            self._step.logits.point(logits, DTYPES[logits.dtype])
            self._point(slots, offsets, inputs, tokens, total, prompt)
            self._launch(len(logits), stream_of(logits.device))

    def decide(self, actions: torch.Tensor, *where: torch.Tensor) -> None:
        """Write what each row needs instead of editing it; `where` is what `apply` takes behind the logits.

        actions: [num_rows, fields of a tg_action] of int32; rows that are left alone are not written.
        """
        step = self._step
        step.actions, step.logits.num_rows = actions.data_ptr(), len(actions)
        self._point(*where)
        self._launch(len(actions), stream_of(actions.device))
        step.actions = 0

    def _point(
        self, slots: torch.Tensor, offsets: torch.Tensor, inputs: torch.Tensor, tokens: torch.Tensor, total: torch.Tensor,
        prompt: torch.Tensor,
    ) -> None:  # fmt: skip
        step = self._step
        step.slot_of.point(slots)
        step.offset_of.point(offsets)
        step.inputs.point(inputs)
        step.tokens.point(tokens)
        step.tokens_stride, step.capacity = tokens.stride(0), tokens.shape[1]
        step.total.point(total)
        step.prompt.point(prompt)

    @property
    def flags(self) -> torch.Tensor:
        """What is noted of each sequence, `names.StateFlag`, on the device. [num_slots]"""
        return self.slots[:, FLAGS]

    def state_of(self, slot: int) -> dict[str, int]:
        """Where the sequence of a slot stands; waits for the device."""
        return dict(zip(STATE_FIELDS, self.slots[slot, STATE:].tolist(), strict=True))
