"""Types of the compiled slots; `mypy.stubtest` holds them true."""

from typing import Final, final

import numpy as np
import numpy.typing as npt

from thinkguard.core._core import BoundPolicy, ThinkState

ACTION_FIELDS: Final[int]

@final
class Slots:
    policies: list[BoundPolicy | None]
    num_guarded: int
    num_waiting: int
    def __init__(self) -> None: ...
    def put(self, index: int, state: ThinkState, output: list[int]) -> None: ...
    def remove(self, index: int) -> None: ...
    def move(self, source: int, target: int, swap: bool) -> None: ...
    def step(self, num_rows: int) -> int: ...
    def edit(
        self, address: int, dtype: int, row_stride: int, stride: int, width: int, gathered: bool = False
    ) -> int: ...
    def write_actions(self, out: npt.NDArray[np.int32]) -> None: ...
