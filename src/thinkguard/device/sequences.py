"""The sequences of a host that hands over all of their tokens at every call (`generate()`), in one launch a step."""

from __future__ import annotations

import torch

from thinkguard.core._core import BoundPolicy
from thinkguard.device import kernel
from thinkguard.device.tables import BLOCK, LOOP_SIZE, NUM_WARPS, STATE_SIZE, DeviceProgram, sent


class DeviceSequences:
    """The sequences of a host that hands over all of their tokens at every call, in any order."""

    def __init__(
        self, program: DeviceProgram, bound: BoundPolicy, prompt: int | None = None, max_tokens: int | None = None
    ) -> None:
        """`prompt` tokens of each sequence are its prompt, None: all those of a sequence that was not seen before."""
        self.program = program
        self.device = program.tables.device
        self._prompt = -1 if prompt is None else prompt
        self._limit = -1 if max_tokens is None else min(max_tokens, 2**30)
        self._policy = sent(program.pack_policy(bound), self.device)
        self._num_seen = self._num_rows = self._capacity = 0
        self._seen, self._next = self._buffers(), self._buffers()

    def apply(self, token_ids: torch.Tensor, logits: torch.Tensor) -> None:
        """Edit each row of logits in place behind its sequence, in one launch.

        token_ids: [num_rows, length] of int64 or int32, each row contiguous. logits: [num_rows, width], of any strides.
        """
        num_rows, length = token_ids.shape
        if not num_rows:
            return
        if num_rows > self._num_rows or length > self._capacity:
            self._grow(num_rows, length)
        states, loops, seen = self._seen
        kernel.guard_sequences[(num_rows,)](
            logits, logits.stride(0), logits.stride(1), num_rows, logits.shape[1],
            token_ids, token_ids.stride(0), length, self._prompt, self._limit,
            states, loops, seen, self._num_seen, *self._next, seen.stride(0),
            self._policy, self.program.tables,
            STATE_SIZE=STATE_SIZE, LOOP_SIZE=LOOP_SIZE, L=self.program.layout, BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
        self._seen, self._next, self._num_seen = self._next, self._seen, num_rows

    @property
    def states(self) -> torch.Tensor:
        """Where the sequences of the last call stand. [num_rows, STATE_SIZE]"""
        return self._seen[0][: self._num_seen]

    def _grow(self, num_rows: int, length: int) -> None:
        """Make room, by halves again as much as is needed, and keep what was seen."""
        self._num_rows, self._capacity = max(num_rows, self._num_rows), max(length + length // 2 + 256, self._capacity)
        old, self._seen, self._next = self._seen, self._buffers(), self._buffers()
        for before, after in zip(old, self._seen, strict=True):
            after[: before.shape[0], : before.shape[1]] = before

    def _buffers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = self._num_rows
        return self._zeros(rows, STATE_SIZE), self._zeros(rows, 2 * LOOP_SIZE), self._zeros(rows, self._capacity)

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=self.device)
