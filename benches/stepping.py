"""One step of one alternative: the sampled tokens taken, the logits edited.

Three kinds of steps, each behind a prompt that opened the thinking: "thinking" (the budget is far away; whoever bans EOS or
markers there does so), "answer" (behind the end marker, nothing need be edited) and "forced" (the step that closes at the
budget). All sequences of a batch are alike. Before each step the logits are written, as a model writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np

from benches.alternatives.alternative import Alternative
from benches.setting import Request, Setting

KINDS: Final = ("thinking", "answer", "forced")
NOTHING: Final = "nothing"
_FREE: Final = 2**30  # a budget that is never reached
_TRIES: Final = 3  # steps within which the end is forced: some count the line break behind the start, some do not
_MORE: Final = 8192  # words at hand beyond the thinking


@dataclass(frozen=True, slots=True)
class Point:
    """Where a step is timed."""

    vocab_size: int
    batch: int
    length: int  # thinking tokens generated so far

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}-{self.vocab_size}"


def words(setting: Setting, num: int) -> list[int]:
    """Ordinary words, so that no alternative sees a marker or a repetition."""
    vocabulary = setting.program.vocabulary
    some = range(600, min(30_000, vocabulary.num_tokens))
    known = [token for token in some if re.fullmatch(rb" [a-z]{2,}", vocabulary.token_bytes(token))]
    found: list[int] = np.random.default_rng(0).choice(known, num).tolist()
    return found


class Steps(NamedTuple):
    """How one kind of step is taken: `step(prepare())`, any number of times."""

    prepare: Callable[[], int]
    step: Callable[[int], None]
    check: Callable[[], None]  # asserts what a step of this kind edits


class Walk:
    """A batch of one alternative at one point: begun in the thinking, then brought to its answer.

    `write()` before each `step(token)`; `token` is what every sequence sampled last.
    """

    def __init__(self, alternative: Alternative, name: str, setting: Setting, point: Point, logits: Any) -> None:
        """`logits`: torch.Tensor [batch, width], what a model writes before each step"""
        self.alternative, self.name, self.setting, self.point = alternative, name, setting, point
        self.logits, self.edited = logits, logits.clone()
        said = words(setting, point.length + _MORE)
        self.thought, self.behind = said[: point.length], said[point.length :]
        self.prompt = setting.encode("<|im_start|>assistant\n" + setting.start + "\n")
        self.rest: Iterator[int] = iter(self.behind)
        self.running = alternative.start([Request(self.prompt, _FREE, list(self.thought))] * point.batch)
        self.running.step(None, self.edited)
        self.answers = False
        self.step(next(self.rest))  # what is made at the first step is no step's cost

    def write(self) -> None:
        """Write the logits, so that they are not left in the processor's caches by the step before."""
        self.edited.copy_(self.logits)

    def step(self, token: int) -> None:
        """Take a token in every sequence, and edit the logits."""
        self.running.step([token] * self.point.batch, self.edited)

    def close(self) -> None:
        """Go on to the answer."""
        if not self.answers:
            for token in [*self.setting.end_ids, *self.setting.encode("\n\n"), *islice(self.rest, 8)]:
                self.step(token)
            self.answers = True

    def check(self) -> None:
        """Assert what a step edits here: EOS is banned in the thinking, and nothing in the answer."""
        self.write()
        self.step(next(self.rest))
        last, eos = self.edited[-1], self.setting.eos_ids[0]
        bans = not self.answers and "ban EOS" not in self.alternative.cannot
        assert (last[eos].item() == -np.inf) == bans, self.name
        assert last[self.thought[0]].isfinite(), self.name


class Forced:
    """The step of a `Walk` that forces the end, which comes once in a sequence: begun anew for each."""

    def __init__(self, walk: Walk) -> None:
        """AssertionError, if no end is forced within some steps of the budget."""
        self.walk, self.tries = walk, 0
        for tries in range(1, _TRIES + 1):
            self.tries = tries
            self.step(self.begin())
            if self._is_forced():
                return
        raise AssertionError(f"{walk.name} forced nothing within {_TRIES} steps of its budget")

    def begin(self) -> int:
        """Start sequences, and bring them before the step that forces; returns its token."""
        walk, length = self.walk, self.walk.point.length
        request = Request(walk.prompt, length + 1, list(walk.thought))
        self.running = walk.alternative.start([request] * walk.point.batch)
        walk.write()
        self.running.step(None, walk.edited)
        *before, last = walk.behind[: self.tries]
        for token in before:
            walk.write()
            self.step(token)
        walk.write()
        return last

    def step(self, token: int) -> None:
        """Take a token in every sequence, and edit the logits."""
        self.running.step([token] * self.walk.point.batch, self.walk.edited)

    def check(self) -> None:
        """Assert that the step forced one token in the last sequence."""
        assert self._is_forced(), self.walk.name

    def _is_forced(self) -> bool:
        last = self.walk.edited[-1]  # one token is left, or lifted above all others
        return bool(last.isfinite().sum() <= 2 or last.max() > 1e8)


def bring(walk: Walk, kind: str) -> Steps:
    """Return the steps of one kind."""
    if kind == "forced":
        forced = Forced(walk)
        return Steps(forced.begin, forced.step, forced.check)
    if kind == "answer":
        walk.close()

    def prepare() -> int:
        walk.write()
        return next(walk.rest)

    return Steps(prepare, walk.step, walk.check)
