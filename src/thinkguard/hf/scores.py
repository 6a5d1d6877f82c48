"""Editing torch scores, on the host or on their device; for the processors of `generate` and of continuous batching."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from thinkguard.core._core import BoundPolicy, StateBatch
from thinkguard.core.names import Dtype
from thinkguard.core.program import ThinkProgram
from thinkguard.errors import InputError

if TYPE_CHECKING:
    from thinkguard.device.sequences import DeviceSequences
    from thinkguard.hf.binding import Binding

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
FLOATS = tuple(getattr(torch, dtype.name.lower()) for dtype in Dtype)


def edit_scores(batch: StateBatch, scores: torch.Tensor, binding: Binding) -> torch.Tensor:
    """Edit scores in place; those on another device through a copy on the CPU."""
    on_cpu = scores if scores.is_cpu else scores.cpu()
    if batch.edit(on_cpu):
        binding.note_banned()
    return scores if on_cpu is scores else scores.copy_(on_cpu)


class DeviceRows:
    """The rows of `generate()` where scores and ids are both on a GPU: found, advanced and edited there, in one launch.

    `prompt` and `max_tokens` are those of an attached call, None where they are not known.
    """

    def __init__(
        self,
        program: ThinkProgram,
        bound: BoundPolicy,
        binding: Binding,
        prompt: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.program, self.bound, self.binding, self.prompt, self.max_tokens = program, bound, binding, prompt, max_tokens
        self._sequences: DeviceSequences | None = None

    def edit(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Edit scores in place behind each sequence. input_ids: [num_rows, length], scores: [num_rows, width]"""
        sequences = self._sequences
        if sequences is None or sequences.device != scores.device:
            from thinkguard.device.kernels import kernels_of
            from thinkguard.device.sequences import DeviceSequences
            from thinkguard.device.tables import DeviceProgram

            tables = self.binding.device_tables
            if scores.device not in tables:
                kernels = kernels_of(scores.device)
                assert kernels is not None, "runs_on_device was not asked"
                tables[scores.device] = DeviceProgram(self.program, scores.device, kernels)
            sequences = DeviceSequences(tables[scores.device], self.bound, self.prompt, self.max_tokens)
            self._sequences = sequences
        sequences.apply(input_ids, scores)
        if sequences.was_banned:
            self.binding.note_banned()
        return scores


def check_arguments(input_ids: torch.Tensor, scores: torch.Tensor) -> None:
    """InputError for ids or scores that are no batch of sequences and their logits."""
    for name, tensor in (("input_ids", input_ids), ("scores", scores)):
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{name} is a {type(tensor).__name__}: wanted a torch tensor")
        if tensor.layout is not torch.strided:
            raise InputError(f"{name} is a tensor of layout {tensor.layout}: pass {name}.to_dense()")
        if tensor.is_neg():
            raise InputError(f"{name} has the negative bit set: pass {name}.resolve_neg()")
    if input_ids.ndim == 1 and scores.ndim == 2:
        raise InputError(
            "input_ids has one dimension, as in continuous batching, where they are no histories: use "
            "`with guard.attach(model): model.generate_batch(...)`"
        )
    if input_ids.ndim != 2 or input_ids.dtype not in _INTEGERS:
        raise InputError(
            f"input_ids is {input_ids.dtype} of shape {list(input_ids.shape)}: wanted ids, [num_rows, length]"
        )
    if scores.ndim != 2 or scores.dtype not in FLOATS:
        raise InputError(
            f"scores are {scores.dtype} of shape {list(scores.shape)}: wanted float32, float16 or bfloat16, "
            "[num_rows, vocab_size]"
        )
    if len(input_ids) != len(scores):
        raise InputError(
            f"input_ids has {len(input_ids)} rows and scores {len(scores)}: wanted one row of scores for each"
        )


_IDS = (torch.int64, torch.int32)  # types of ids that the kernels read
_RUN_ON: dict[torch.device, bool] = {}  # device -> whether the kernels run there, so that a step asks nobody
_ON_CPU = False  # whether what GPUs do is done on the CPU too, in place: in tests


def runs_on_device(input_ids: torch.Tensor, scores: torch.Tensor) -> bool:
    """Whether a step can be done where its tensors are, without a word to the host."""
    if not (scores.is_cuda or _ON_CPU):  # a flag: to spell `device.type` takes 10 us behind a model's step
        return False
    if input_ids.device != scores.device or not input_ids.shape[1] or input_ids.dtype not in _IDS:
        return False
    if scores.device not in _RUN_ON:
        from thinkguard.device.kernels import kernels_of

        _RUN_ON[scores.device] = kernels_of(scores.device) is not None
    return _RUN_ON[scores.device]
