"""vLLM's V1 runner: a state for each batch index, advanced from the request's own list of output tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import AddedRequest

from thinkguard.core._core import ThinkState
from thinkguard.core._slots import ACTION_FIELDS, Slots
from thinkguard.device.edits import DeviceEdits
from thinkguard.device.kernels import kernels_of
from thinkguard.device.tables import DTYPES, DeviceProgram

if TYPE_CHECKING:
    from thinkguard.vllm.engine_requests import Requests

_NO_TOKEN = 2**31 - 1  # an id beyond every vocabulary: a token without text


class V1Batch:
    """The guarded requests of V1's persistent batch.

    A step costs what its requests gained, whatever their length; Python does no work for a single request but when it joins
    the batch. Nothing here raises on account of a request: an exception would end the engine for everybody. Logits have a
    row for each request of the batch, also for those whose prompt is not read to its end; V1 drops what it samples for them.
    """

    def __init__(self, requests: Requests, device: torch.device) -> None:
        self._requests, self._slots = requests, Slots()
        self._on_cpu = device.type == "cpu"
        self._device: Any = None
        if not self._on_cpu and (kernels := kernels_of(device)) is not None:
            self._device = DeviceEdits(DeviceProgram(requests.program, device, kernels))
        self._actions = np.empty((0, ACTION_FIELDS), np.int32)

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch: first what was removed, then added, then moved. Output lists are not read yet."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._slots.remove(index)
        for added in batch_update.added:
            self._add(added)
        for source, target, direction in batch_update.moved:
            self._slots.move(source, target, direction is MoveDirectionality.SWAP)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Edit the logits in place; a step without edits does not touch them. logits: [num_requests, vocab_size]"""
        num_edits = self._slots.step(logits.shape[0])
        if num_edits and self._on_cpu and (code := DTYPES.get(logits.dtype)) is not None:
            row_stride, stride = logits.stride()
            if self._slots.edit(logits.data_ptr(), code, row_stride, stride, logits.shape[1]):
                self._requests.say_banned()
        elif num_edits and self._device is not None and logits.dtype in DTYPES:
            self._device.apply(logits, self._actions_of(num_edits), self._slots.policies)
            if self._device.was_banned:
                self._requests.say_banned()
        elif num_edits:
            self._edit_on_device(logits, self._actions_of(num_edits))
        if self._slots.num_waiting:
            self._requests.say(
                "a request was left alone for a step: its next token was asked for before the last one was known (-1 in its "
                "output). vLLM fills these in for processors named by --logits-processors or logits_processors=; name "
                "thinkguard there, or pass --no-async-scheduling"
            )
        return logits

    def _add(self, added: AddedRequest) -> None:
        """Start a request behind its prompt, which stays the user's own over preemption; or leave it alone."""
        index, params, prompt_ids, output = added
        state = self._state(params, prompt_ids)
        if state is None:
            self._slots.remove(index)
        else:
            self._slots.put(index, state, output)

    def _state(self, params: Any, prompt_ids: list[int] | None) -> ThinkState | None:
        guard = self._requests.guard_of(params)
        if guard is None:
            return None
        if prompt_ids is None:
            self._requests.say("requests whose prompt is given as embeddings are left alone: no ids to read a turn from")
            return None
        begin, raw = self._requests.program.turn(prompt_ids, read=_known_ids)
        if raw and not guard.guards_raw:
            self._requests.say_no_chat()
            return None
        state = ThinkState(guard.bound)
        state.start(_known_ids(prompt_ids[begin:]), raw, min(self._requests.limit_of(params, len(prompt_ids)), 2**30))
        if state.is_open():
            state.open(_known_ids(prompt_ids))
        return state

    def _edit_on_device(self, logits: torch.Tensor, actions: npt.NDArray[np.int32]) -> None:
        """Edit logits that C cannot reach, the rows that need it alone, as copies on the CPU."""
        index = torch.from_numpy(actions[:, 0].astype(np.int64)).to(logits.device)
        rows = logits.index_select(0, index).cpu()
        rows = rows if rows.dtype in DTYPES else rows.float()
        row_stride, stride = rows.stride()
        if self._slots.edit(rows.data_ptr(), DTYPES[rows.dtype], row_stride, stride, rows.shape[1], gathered=True):
            self._requests.say_banned()
        logits.index_copy_(0, index, rows.to(logits))

    def _actions_of(self, num_edits: int) -> npt.NDArray[np.int32]:
        """What this step edits, as `Slots.write_actions` has it; good until the next step."""
        if len(self._actions) < num_edits:
            self._actions = np.empty((2 * num_edits, ACTION_FIELDS), np.int32)
        self._slots.write_actions(self._actions)
        return self._actions[:num_edits]


def _known_ids(ids: list[int]) -> npt.NDArray[np.int32]:
    """Ids of a prompt, what is no token id as one without text: a request may hold anything, and nothing may be raised."""
    wide = np.array(ids, np.int64)
    return np.where((wide < 0) | (wide >= _NO_TOKEN), _NO_TOKEN, wide).astype(np.int32)
