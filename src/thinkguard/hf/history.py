"""Where a sequence stands, for a host that hands over nothing but token ids: found from the histories seen before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thinkguard.core._core import BoundPolicy, ThinkState
from thinkguard.core.program import ThinkProgram, as_token_ids

_REMEMBERED = 64  # sequences kept beside those of the last call, or twice as many as its rows
Ids = npt.NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Seen:
    """A sequence that was seen, and where it stands."""

    ids: Ids
    prompt: int  # its first tokens are the prompt
    state: ThinkState


class History:
    """Where sequences stand, found from the sequences that were seen before."""

    def __init__(
        self,
        program: ThinkProgram,
        bound: BoundPolicy,
        prompt: int | None = None,
        max_tokens: int | None = None,
        note_prompt: Callable[[npt.NDArray[np.int32]], None] | None = None,  # is given every prompt that is read
    ) -> None:
        self.note_prompt = note_prompt
        self.program, self.bound, self.prompt, self.max_tokens = program, bound, prompt, max_tokens
        self.last: list[Seen] = []
        self.older: deque[Seen] = deque()

    def states(self, batch: Ids) -> list[ThinkState]:
        """The state behind each sequence. batch: [num_rows, length], strides as they come"""
        own = np.array(batch, np.int64)  # a copy: hosts reuse their buffers
        seen = [self._find(i, ids) for i, ids in enumerate(own)]
        again = {id(one) for one in seen}
        self.older.extend(other for other in self.last if id(other) not in again)
        while len(self.older) > max(_REMEMBERED, 2 * len(seen)):
            self.older.popleft()
        self.last = seen
        return [one.state for one in seen]

    def _find(self, index: int, ids: Ids) -> Seen:
        """Continue the sequence that all but the last token of `ids` were seen in, else take `ids` for a prompt."""
        if not len(ids):  # inputs_embeds: the prompt has no ids
            return self._walk(ids, 0)
        before = len(ids) - 1
        own = self.last[index : index + 1]
        for seen in (*own, *(other for other in self.last if other not in own), *reversed(self.older)):
            if len(seen.ids) < before or len(ids) < seen.prompt or not np.array_equal(seen.ids[:before], ids[:-1]):
                continue
            if len(seen.ids) == before:
                state = seen.state.copy()
                self.program.advance(state, int(ids[-1]))
                return Seen(ids, seen.prompt, state)
            if len(seen.ids) == len(ids) and seen.ids[-1] == ids[-1]:
                return seen
            if before >= seen.prompt or seen.ids[before] == ids[-1]:
                return self._walk(ids, seen.prompt)
        return self._walk(ids, len(ids) if self.prompt is None else min(self.prompt, len(ids)))

    def _walk(self, ids: Ids, prompt: int) -> Seen:
        prompt_ids = as_token_ids("input_ids", ids[:prompt])
        state = self.program.start_bound(prompt_ids, self.bound, self.max_tokens)
        if self.note_prompt is not None:
            self.note_prompt(prompt_ids)
        state.advance_all(ids[prompt:])
        return Seen(ids, prompt, state)
