"""thinkguard itself: a row for each request, held in one batch as its own adapters hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

import thinkguard
from benches.alternatives.alternative import started
from benches.setting import Request, Setting
from thinkguard import ThinkPolicy, ThinkProgram
from thinkguard.core._core import StateBatch, ThinkState


class Guard:
    """The C core behind the package's own interface."""

    version = thinkguard.__version__
    path = (
        "thinkguard/hf/attached.py: ThinkProgram.start on admission, then one StateBatch, each step advanced by the sampled "
        "tokens and applied"
    )
    cannot: ClassVar[dict[str, str]] = {}

    def __init__(self, setting: Setting) -> None:
        self.program, self.setting = ThinkProgram("think", setting.tokenizer), setting

    def state(self, request: Request) -> ThinkState:
        """Start a request, what it generated included."""
        policy = ThinkPolicy(
            max_thinking_tokens=request.budget, close_message=self.setting.message, max_think_blocks=self.setting.max_blocks
        )
        state = self.program.start(request.prompt, policy)
        state.advance_all(np.array(request.output, np.int64))
        return state

    def start(self, requests: Sequence[Request]) -> GuardBatch:
        """Admit requests."""
        return GuardBatch(self, requests)


class GuardBatch:
    """States of the core."""

    def __init__(self, how: Guard, requests: Sequence[Request]) -> None:
        self.how = how
        self.states = StateBatch(started(requests, how.state, lambda state: state.copy()))

    def step(self, sampled: Sequence[int] | None, logits: torch.Tensor) -> None:
        """Take tokens, edit logits."""
        if sampled is not None:
            self.states.advance(np.asarray(sampled, np.int64))
        self.how.program.apply(self.states, logits)

    def resume(self, row: int, request: Request) -> None:
        """Start the sequence anew; what was generated is walked again."""
        self.states.states[row].rollback_to(self.how.state(request))
