"""thinkguard itself: a row for each request, held in one batch as its own adapters hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

import thinkguard
from thinkguard import ThinkPolicy, ThinkProgram
from thinkguard.bench.alternatives.alternative import started
from thinkguard.bench.setting import Request, Setting
from thinkguard.core._core import Row, RowBatch


class Guard:
    """The C core behind the package's own interface."""

    version = thinkguard.__version__
    path = (
        "thinkguard/hf.py: ThinkProgram.start on admission, then one RowBatch, every step advanced by the sampled tokens "
        "and applied"
    )
    cannot: ClassVar[dict[str, str]] = {}

    def __init__(self, setting: Setting) -> None:
        self.program, self.setting = ThinkProgram("think", setting.tokenizer), setting

    def row(self, request: Request) -> Row:
        """Start a request, what it generated included."""
        policy = ThinkPolicy(
            max_thinking_tokens=request.budget, close_message=self.setting.message, max_think_blocks=self.setting.max_blocks
        )
        row = self.program.start(request.prompt, policy)
        row.advance_all(np.array(request.output, np.int64))
        return row

    def start(self, requests: Sequence[Request]) -> GuardBatch:
        """Admit requests."""
        return GuardBatch(self, requests)


class GuardBatch:
    """Rows of the core."""

    def __init__(self, how: Guard, requests: Sequence[Request]) -> None:
        self.how = how
        self.rows = RowBatch(started(requests, how.row, lambda row: row.copy()))

    def step(self, sampled: Sequence[int] | None, logits: torch.Tensor) -> None:
        """Take tokens, edit logits."""
        if sampled is not None:
            self.rows.advance(np.asarray(sampled, np.int64))
        self.how.program.apply(self.rows, logits)

    def resume(self, row: int, request: Request) -> None:
        """Start the row anew; what was generated is walked again."""
        self.rows.rows[row].assign(self.how.row(request))
