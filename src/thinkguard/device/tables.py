"""A program's tables and policies in a device's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from thinkguard.core._core import BoundPolicy
from thinkguard.core.names import Dtype
from thinkguard.core.program import ThinkProgram
from thinkguard.device.launch import Kernels
from thinkguard.device.steps import Program
from thinkguard.errors import InputError


class _Codes(dict[torch.dtype, int]):
    """Types that the machine takes; asking for another one says so."""

    def __missing__(self, dtype: torch.dtype) -> int:
        raise InputError(f"logits are {dtype}: wanted {', '.join(map(str, self))}")


DTYPES: Final = _Codes({getattr(torch, dtype.name.lower()): int(dtype) for dtype in Dtype})
"""torch's types of logits that the machine takes -> their codes."""


class HostFlag:
    """A number that kernels set and the host reads without waiting: on a GPU it lies in pinned memory of the host."""

    def __init__(self, device: torch.device) -> None:
        self._memory = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        self.address = self._memory.data_ptr()
        self._value = ctypes.c_int32.from_address(self.address)

    def __bool__(self) -> bool:
        """Whether a kernel has set it, as far as the device has come."""
        return bool(self._value.value)


class DeviceProgram:
    """A program's tables on a device, and the kernels that run there."""

    def __init__(self, program: ThinkProgram, device: torch.device | str, kernels: Kernels) -> None:
        self.program, self.kernels = program, kernels
        self.tables = torch.empty(program.tables.placed_size, dtype=torch.int32, device=device)
        struct, tables = program.tables.placed(self.tables.data_ptr())
        self.tables.copy_(torch.from_numpy(tables))
        self.struct = Program.from_buffer_copy(struct)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.tables.device


def rows_of(policies: Sequence[BoundPolicy | None], width: int) -> npt.NDArray[np.int32]:
    """Policies as the kernels read them, a tg_policy with its tokens each; zeros for None. [num_policies, width]"""
    rows = np.zeros((len(policies), width), np.int32)
    for row, bound in zip(rows, policies, strict=True):
        if bound is not None:
            row[: len(bound.block)] = bound.block
    return rows


def widened(table: torch.Tensor, num_rows: int, width: int) -> torch.Tensor:
    """The table itself if it has room for so many rows of such a width; else a copy of twice what is needed."""
    if num_rows <= table.shape[0] and width <= table.shape[1]:
        return table
    room = torch.zeros(
        max(num_rows * (1 + (num_rows > table.shape[0])), table.shape[0]), max(2 * width, table.shape[1]),
        dtype=table.dtype, device=table.device,
    )  # fmt: skip
    room[: table.shape[0], : table.shape[1]] = table
    return room


def sent(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on the device that nobody waits for."""
    tensor = torch.from_numpy(np.array(values))
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # kept by torch until the copy is through
    return tensor.to(device, non_blocking=True)


def stream_of(device: torch.device) -> int:
    """The stream on which torch works on a device now; 0 where there are none."""
    if device.type != "cuda":
        return 0
    stream: int = torch.cuda.current_stream(device).cuda_stream
    return stream
