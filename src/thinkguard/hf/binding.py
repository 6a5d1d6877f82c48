"""A program with a policy, bound to the EOS set of each `generate()` call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from thinkguard.core._core import BoundPolicy
from thinkguard.core.program import ThinkProgram
from thinkguard.policy import ThinkPolicy


class Binding:
    """What all calls of one processor share; made once, used by its calls in any thread."""

    def __init__(self, program: ThinkProgram, policy: ThinkPolicy, eos_token_id: int | Iterable[int] | None) -> None:
        self.program, self.policy = program, policy
        self.eos_token_ids = _token_ids(eos_token_id)  # in place of the tokenizer's and the host's; None: theirs
        self.bound = program.bind(policy, self.eos_token_ids)
        self.last_eos = self.eos_token_ids  # of the last attached call, for `explain`
        self.device_tables: dict[Any, Any] = {}  # device -> DeviceProgram, for the steps that run on a GPU

    def for_call(self, generation_config: Any) -> BoundPolicy:
        """The policy with the EOS set of one `generate()` call: the host's ids and the format's, or `eos_token_id`."""
        if self.eos_token_ids is not None:
            return self.bound
        host = _token_ids(getattr(generation_config, "eos_token_id", None)) or ()
        self.last_eos = (*(t for t in host if t >= 0), *self.program.eos_token_ids)
        return self.program.bind(self.policy, self.last_eos)


def _token_ids(eos: int | Iterable[int] | None) -> tuple[int, ...] | None:
    if eos is None:
        return None
    if isinstance(eos, torch.Tensor):
        eos = eos.flatten().tolist()
    return tuple(int(token_id) for token_id in eos) if isinstance(eos, Iterable) else (int(eos),)
