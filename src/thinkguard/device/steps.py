"""The structs of csrc/guard.h, in which a host describes a step to a kernel. Same names, same order; sizes are checked."""

from __future__ import annotations

import ctypes
from typing import Any, Final

from thinkguard.core import _core

_POINTER, _LONG, _INT = ctypes.c_uint64, ctypes.c_int64, ctypes.c_int32
Program = ctypes.c_uint64 * (_core.SIZES["tg_program"] // 8)
"""A tg_program by value, whose pointers lie in the memory of the device that runs the step."""


class Ids(ctypes.Structure):
    """Token ids, or other whole numbers, in a host's buffer of int32 or int64."""

    _fields_ = [("data", _POINTER), ("stride", _LONG), ("bytes", _LONG)]

    def point(self, tensor: Any) -> None:
        """Point at a tensor, whose stride is that of its last dimension."""
        self.data, self.stride, self.bytes = tensor.data_ptr(), tensor.stride(-1), tensor.element_size()


class Logits(ctypes.Structure):
    """Rows of logits."""

    _fields_ = [
        ("data", _POINTER), ("row_stride", _LONG), ("stride", _LONG), ("banned", _POINTER), ("num_rows", _INT),
        ("width", _INT), ("dtype", _INT), ("unused", _INT),
    ]  # fmt: skip

    def point(self, tensor: Any, dtype: int) -> None:
        """Point at a tensor [num_rows, width] whose type is `dtype`, a code of `core.names.Dtype`."""
        self.data, self.dtype = tensor.data_ptr(), dtype
        self.row_stride, self.stride = tensor.stride()
        self.num_rows, self.width = tensor.shape


class SlotsStep(ctypes.Structure):
    """A step of a host that gives each sequence a slot."""

    _fields_ = [
        ("program", Program), ("slots", _POINTER), ("loops", _POINTER), ("policies", _POINTER), ("policy_size", _LONG),
        ("slot_of", Ids), ("offset_of", Ids), ("inputs", Ids), ("tokens", Ids), ("tokens_stride", _LONG), ("total", Ids),
        ("prompt", Ids), ("logits", Logits), ("actions", _POINTER), ("num_slots", _INT), ("capacity", _INT),
    ]  # fmt: skip


class SequencesStep(ctypes.Structure):
    """A step of a host that hands over whole sequences."""

    _fields_ = [
        ("program", Program), ("policy", _POINTER), ("tokens", Ids), ("tokens_stride", _LONG), ("slots", _POINTER),
        ("loops", _POINTER), ("seen", _POINTER), ("next_slots", _POINTER), ("next_loops", _POINTER), ("next_seen", _POINTER),
        ("logits", Logits), ("num_tokens", _INT), ("prompt", _INT), ("limit", _INT), ("num_seen", _INT), ("capacity", _INT),
        ("unused", _INT),
    ]  # fmt: skip


class EditsStep(ctypes.Structure):
    """Edits that the host decided on."""

    _fields_ = [
        ("program", Program), ("edits", _POINTER), ("policies", _POINTER), ("policy_size", _LONG), ("logits", Logits),
        ("num_edits", _INT), ("num_policies", _INT),
    ]  # fmt: skip


Step = SlotsStep | SequencesStep | EditsStep
KERNELS: Final = {"guard_slots": SlotsStep, "guard_sequences": SequencesStep, "guard_edits": EditsStep}
"""Each kernel of csrc/guard.cu, and what it is given."""
SLOT_SIZE: Final = _core.SIZES["tg_slot"] // 4
LOOP_SIZE: Final = _core.SIZES["tg_loop"] // 4
EDIT_SIZE: Final = _core.SIZES["tg_edit"] // 4
"""int32 of each."""
for _name, _struct in KERNELS.items():
    _wanted = _core.SIZES[_name]
    assert ctypes.sizeof(_struct) == _wanted, f"{_name}: {ctypes.sizeof(_struct)} bytes here, {_wanted} in csrc/guard.h"
