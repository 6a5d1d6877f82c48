"""Edits that the host decided on (vLLM V1), carried out where the logits are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from thinkguard.core._core import BoundPolicy
from thinkguard.device.steps import EditsStep
from thinkguard.device.tables import DTYPES, DeviceProgram, HostFlag, rows_of, sent, stream_of, widened


class DeviceEdits:
    """Edits that the host decided on, carried out on the device."""

    def __init__(self, program: DeviceProgram) -> None:
        self.program = program
        self._packed: list[BoundPolicy | None] = []
        self._policies = torch.zeros(0, 0, dtype=torch.int32, device=program.device)
        self._edits = torch.zeros(0, dtype=torch.int32, device=program.device)
        self._step = EditsStep(program=program.struct)
        self.was_banned = HostFlag(program.device)  # whether what was due in a row had been banned by another processor
        self._step.logits.banned = self.was_banned.address
        self._launch = program.kernels.bind("guard_edits", self._step)

    def apply(self, logits: torch.Tensor, edits: npt.NDArray[np.int32], policies: list[BoundPolicy | None]) -> None:
        """Carry out edits in one transfer and one launch; a policy that is new takes another transfer.

        edits: [num_edits, EDIT_SIZE], each a row of the logits, an index in `policies`, and tg_action's fields.
        """
        if not len(edits):
            return
        self._take_in(policies)
        step = self._step
        self._edits = sent(edits, logits.device)  # kept until the next step: torch gives memory to a stream in order
        step.edits, step.num_edits = self._edits.data_ptr(), len(edits)
        step.policies, step.num_policies = self._policies.data_ptr(), len(self._policies)
        step.policy_size = self._policies.shape[1]
        step.logits.point(logits, DTYPES[logits.dtype])
        self._launch(len(edits), stream_of(logits.device))

    def _take_in(self, policies: list[BoundPolicy | None]) -> None:
        known = [*self._packed, *[None] * (len(policies) - len(self._packed))]
        new = [i for i, bound in enumerate(policies) if bound is not None and bound is not known[i]]
        if not new:
            return
        longest = max(len(bound.block) for bound in policies if bound is not None)
        self._policies = widened(self._policies, len(policies), longest)
        device, rows = self._policies.device, rows_of([policies[i] for i in new], self._policies.shape[1])
        self._policies.index_copy_(0, sent(np.array(new), device), sent(rows, device))
        self._packed = list(policies)
