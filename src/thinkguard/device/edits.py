"""Edits that the host decided on (vLLM V1), carried out where the logits are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from thinkguard.core._core import BoundPolicy
from thinkguard.device import kernel
from thinkguard.device.tables import ACTION_SIZE, BLOCK, NUM_WARPS, DeviceProgram, sent


class DeviceEdits:
    """Edits that the host decided on, carried out on the device."""

    def __init__(self, program: DeviceProgram) -> None:
        self.program = program
        self._packed: list[BoundPolicy | None] = []
        self._policies = torch.zeros(0, program.layout.policy_size, dtype=torch.int32, device=program.tables.device)

    def apply(self, logits: torch.Tensor, actions: npt.NDArray[np.int32], policies: list[BoundPolicy | None]) -> None:
        """Carry out actions in one transfer and one launch; a policy that is new takes another transfer.

        actions: [num_actions, ACTION_SIZE], each a row of the logits, an index in `policies`, and tg_action's fields.
        """
        self._take_in(policies)
        kernel.carry_out_actions[(len(actions),)](
            logits, logits.stride(0), logits.stride(1), logits.shape[1],
            sent(actions, logits.device), self._policies, self.program.tables,
            ACTION_SIZE=ACTION_SIZE, L=self.program.layout, BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip

    def _take_in(self, policies: list[BoundPolicy | None]) -> None:
        known = [*self._packed, *[None] * (len(policies) - len(self._packed))]
        new = [i for i, bound in enumerate(policies) if bound is not None and bound is not known[i]]
        if not new:
            return
        if len(policies) > len(self._policies):
            room = torch.zeros(2 * len(policies), self._policies.shape[1], dtype=torch.int32, device=self._policies.device)
            room[: len(self._policies)] = self._policies
            self._policies = room
        device = self._policies.device
        packed = np.stack([self.program.pack_policy(bound) for i in new if (bound := policies[i]) is not None])
        self._policies.index_copy_(0, sent(np.array(new), device), sent(packed, device))
        self._packed = list(policies)
