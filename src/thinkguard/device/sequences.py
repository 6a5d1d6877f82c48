"""The sequences of a host that hands over all of their tokens at every call (`generate()`), in one launch a step."""

from __future__ import annotations

import torch

from thinkguard.core._core import BoundPolicy
from thinkguard.device.slots import STATE
from thinkguard.device.steps import LOOP_SIZE, SLOT_SIZE, SequencesStep
from thinkguard.device.tables import DTYPES, DeviceProgram, HostFlag, sent, stream_of

Buffers = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(slots, loops, tokens seen) of the rows of one call."""


class DeviceSequences:
    """The sequences of a host that hands over all of their tokens at every call, in any order."""

    def __init__(
        self, program: DeviceProgram, bound: BoundPolicy, prompt: int | None = None, max_tokens: int | None = None
    ) -> None:
        """`prompt` tokens of each sequence are its prompt, None: all those of a sequence that was not seen before."""
        self.program, self.device = program, program.device
        self._policy = sent(bound.block, self.device)
        self._num_seen = self._num_rows = self._capacity = 0
        self._seen, self._next = self._buffers(), self._buffers()
        self._step = SequencesStep(
            program=program.struct, policy=self._policy.data_ptr(), prompt=-1 if prompt is None else prompt,
            limit=-1 if max_tokens is None else min(max_tokens, 2**30),
        )  # fmt: skip
        self.was_banned = HostFlag(self.device)  # whether what was due in a row had been banned by another processor
        self._step.logits.banned = self.was_banned.address
        self._launch = program.kernels.bind("guard_sequences", self._step)

    def apply(self, token_ids: torch.Tensor, logits: torch.Tensor) -> None:
        """Edit each row of logits in place behind its sequence, in one launch.

        token_ids: [num_rows, length] of int64 or int32, of any strides. logits: [num_rows, width], of any strides.
        """
        num_rows, length = token_ids.shape
        if not num_rows:
            return
        if num_rows > self._num_rows or length > self._capacity:
            self._grow(num_rows, length)
        step = self._step
        step.logits.point(logits, DTYPES[logits.dtype])
        step.tokens.point(token_ids)
        step.tokens_stride, step.num_tokens, step.num_seen = token_ids.stride(0), length, self._num_seen
        step.slots, step.loops, step.seen = (tensor.data_ptr() for tensor in self._seen)
        step.next_slots, step.next_loops, step.next_seen = (tensor.data_ptr() for tensor in self._next)
        self._launch(num_rows, stream_of(logits.device))
        self._seen, self._next, self._num_seen = self._next, self._seen, num_rows

    @property
    def states(self) -> torch.Tensor:
        """Where the sequences of the last call stand. [num_rows, fields of a tg_state]"""
        return self._seen[0][: self._num_seen, STATE:]

    def _grow(self, num_rows: int, length: int) -> None:
        """Make room, by halves again as much as is needed, and keep what was seen."""
        self._num_rows, self._capacity = max(num_rows, self._num_rows), max(length + length // 2 + 256, self._capacity)
        old, self._seen, self._next = self._seen, self._buffers(), self._buffers()
        for before, after in zip(old, self._seen, strict=True):
            after[: before.shape[0], : before.shape[1]] = before
        self._step.capacity = self._capacity

    def _buffers(self) -> Buffers:
        rows = self._num_rows
        return self._zeros(rows, SLOT_SIZE), self._zeros(rows, 2 * LOOP_SIZE), self._zeros(rows, self._capacity)

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=self.device)
