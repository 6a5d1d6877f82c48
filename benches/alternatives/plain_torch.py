"""The obvious processor: count, force the close token by token, ban EOS while thinking. Vectorised over the batch.

O(1) per row and step: what it keeps are counters and the last few tokens of each row. Sequences of any length are matched
as marker or as close, so markers of several tokens work wherever the tokenizer writes them in their own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from benches.setting import Request, Setting


class PlainTorch:
    """Set up: the ids of the markers, and of what is forced."""

    version = torch.__version__
    path = (
        "transformers/generation/logits_process.py LogitsProcessorList.__call__ -> processor(input_ids, scores); "
        "given the last column of input_ids, which is all it reads"
    )
    cannot: ClassVar[dict[str, str]] = {
        "one block": "it counts and closes; it does not watch the answer",
        "utf-8": "it knows tokens, not their bytes",
        "spelled end": "it looks for token ids, whatever plain tokens spell",
    }

    def __init__(self, setting: Setting) -> None:
        self.start_ids, self.end_ids = torch.tensor(setting.start_ids), torch.tensor(setting.end_ids)
        self.close_ids = torch.tensor(setting.encode(setting.message + setting.end))
        self.eos = torch.tensor(setting.eos_ids)
        self.size = max(map(len, (self.start_ids, self.end_ids, self.close_ids)))
        length = len(self.close_ids)
        self.prefixes = torch.full((length, self.size), -1)  # row k: the close's first k tokens, at the right
        for k in range(1, length):
            self.prefixes[k, -k:] = self.close_ids[:k]

    def start(self, requests: Sequence[Request]) -> PlainBatch:
        """Admit requests."""
        return PlainBatch(self, requests)


class PlainBatch:
    """Counters and the last tokens of each row."""

    def __init__(self, how: PlainTorch, requests: Sequence[Request]) -> None:
        self.how = how
        num = len(requests)
        self.budget = torch.tensor([request.budget for request in requests])
        self.thinking, self.count = torch.zeros(num, dtype=torch.bool), torch.zeros(num, dtype=torch.int64)
        self.last = torch.full((num, how.size), -1)
        for row, request in enumerate(requests):
            self._scan(row, request.prompt + request.output)

    def _scan(self, row: int, history: list[int]) -> None:
        """Find where a history ends: behind its last start or end, and how far."""
        ids, how = torch.tensor(history), self.how
        start, end = self._last(ids, how.start_ids), self._last(ids, how.end_ids)
        self.thinking[row] = start > end
        self.count[row] = len(ids) - start - len(how.start_ids) if start > end else 0
        self.last[row] = -1
        self.last[row, -min(len(ids), how.size) :] = ids[-how.size :]

    @staticmethod
    def _last(ids: torch.Tensor, marker: torch.Tensor) -> int:
        if len(ids) < len(marker):
            return -1
        found = (ids.unfold(0, len(marker), 1) == marker).all(1).nonzero()
        return int(found[-1]) if len(found) else -1

    def _ends_with(self, marker: torch.Tensor) -> torch.Tensor:
        return (self.last[:, -len(marker) :] == marker).all(1)

    def step(self, sampled: Sequence[int] | None, logits: torch.Tensor) -> None:
        """Count, and edit logits."""
        how = self.how
        if sampled is not None:
            tokens = torch.as_tensor(sampled)
            self.last = torch.cat((self.last[:, 1:], tokens[:, None]), 1)
            self.count += self.thinking
            started = self._ends_with(how.start_ids)
            self.thinking = (self.thinking | started) & ~self._ends_with(how.end_ids)
        logits[self.thinking.nonzero(), how.eos] = -torch.inf
        forced = (self.thinking & (self.count >= self.budget)).nonzero()[:, 0]
        if len(forced):
            last = self.last[forced][:, None]
            matches = ((last == how.prefixes) | (how.prefixes < 0)).all(2)  # [num_forced, len(close)]; 0 always matches
            done = (matches * torch.arange(len(how.close_ids))).amax(1)
            logits[forced] = -torch.inf
            logits[forced, how.close_ids[done]] = 0.0

    def resume(self, row: int, request: Request) -> None:
        """Scan the whole history again."""
        self.budget[row] = request.budget
        self._scan(row, request.prompt + request.output)
