"""The sequences of a host that gives each a slot (vLLM V2): where they stand, and one launch a step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from thinkguard.device import kernel
from thinkguard.device.tables import BLOCK, LOOP_SIZE, NUM_WARPS, ROW_FIELDS, STATE_SIZE, DeviceProgram, sent


class DeviceSlots:
    """The sequences of a host with slots. [num_slots]"""

    def __init__(self, program: DeviceProgram, num_slots: int) -> None:
        self.program, self.num_slots = program, num_slots
        device = program.tables.device
        self.states = torch.zeros(num_slots, STATE_SIZE, dtype=torch.int32, device=device)
        self.loops = torch.zeros(num_slots, 2 * LOOP_SIZE, dtype=torch.int32, device=device)
        self.policies = torch.zeros(num_slots, program.layout.policy_size, dtype=torch.int32, device=device)
        self._staged: dict[int, npt.NDArray[np.int32]] = {}

    def stage(self, slot: int, policy: npt.NDArray[np.int32] | None, limit: int = -1) -> None:
        """Give a slot to a new sequence with a packed policy, or, without one, to a sequence that is left alone."""
        record = np.zeros(1 + STATE_SIZE + self.program.layout.policy_size, np.int32)
        record[0] = slot
        record[1 + ROW_FIELDS.index("limit")] = limit
        record[1 + kernel.FOLDED.value] = -1
        if policy is not None:
            record[1 + STATE_SIZE :] = policy
        self._staged[slot] = record

    def flush(self) -> None:
        """Write what was staged: one transfer, whatever the number of sequences; none without any."""
        if not self._staged:
            return
        records = sent(np.stack(list(self._staged.values())), self.states.device)
        self._staged.clear()
        slots = records[:, 0].long()
        self.states.index_copy_(0, slots, records[:, 1 : 1 + STATE_SIZE])
        self.policies.index_copy_(0, slots, records[:, 1 + STATE_SIZE :])

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

        logits: [num_rows, width], of any strides. slots, offsets, inputs: [num_rows], a row's slot, its offset among that
        slot's rows, which follow each other, and the token fed there, at offsets above 0 a draft. tokens: [num_slots,
        capacity] int32 or int64, of which the first total[slot] are committed and the first prompt[slot] the prompt.
        """
        if not len(logits):
            return
        kernel.guard_slots[(len(logits),)](
            logits, logits.stride(0), logits.stride(1), len(logits), logits.shape[1],
            slots, offsets, inputs, tokens, tokens.stride(0), total, prompt,
            self.states, self.loops, self.policies, self.program.tables,
            STATE_SIZE=STATE_SIZE, LOOP_SIZE=LOOP_SIZE, L=self.program.layout, BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
