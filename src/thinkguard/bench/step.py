"""Cost of a step: the sampled tokens taken, the logits edited, for one alternative behind the other in one process.

Three kinds of steps, each behind a prompt that opened the thinking: "thinking" (the budget is far away; whoever bans EOS or
markers there does so), "answer" (behind the end marker, nothing need be edited) and "forced" (the step that closes at the
budget). All sequences of a batch are alike. Before each step the logits are written, as a model writes them. vLLM V2's
kernels are not timed: on a CPU Triton has only its interpreter.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final

import numpy as np

from thinkguard.bench.alternatives.alternative import Alternative, Cannot, set_up
from thinkguard.bench.setting import Request, Setting
from thinkguard.bench.timing import Round, one_thread, spread_of_rounds, with_pace

KINDS: Final = ("thinking", "answer", "forced")
FREE: Final = 2**30  # a budget that is never reached
NOTHING: Final = "nothing"
_COPIED: Final = {"llguidance grammar": 2**19}  # rows x tokens; beyond, its matchers take half a minute to copy
_LONG: Final = 10.0  # seconds: what takes longer to be brought to its steps is measured in one round
_TRIES: Final = 3  # steps within which the end is forced: some count the line break behind the start, some do not
MORE: Final = 4096  # words at hand beyond the longest thinking
_PATIENCE: Final = 2.5  # seconds for three values of one kind and round
_MOST: Final = 300  # values of one kind and round

Meter = Callable[[Callable[[], None]], float]
"""Runs a step and returns what it cost."""
Enough = Callable[[Sequence[float], float], bool]
"""Whether the values of a kind suffice, and the seconds that they took altogether."""


@dataclass(frozen=True, slots=True)
class Point:
    """Where a step is timed."""

    vocab_size: int
    batch: int
    length: int  # thinking tokens generated so far


def points(*, quick: bool) -> list[Point]:
    """Return the points: one axis at a time is moved away from 151,936 tokens, 32 rows and 1,024 tokens of thinking."""
    if quick:
        return [Point(151_936, batch, length) for batch, length in ((1, 1024), (32, 8192))]
    found = [Point(151_936, 32, length) for length in (128, 1024, 8192, 32_768)]
    found += [Point(151_936, batch, 1024) for batch in (1, 256, 1024)]
    return found + [Point(vocab_size, 32, 1024) for vocab_size in (32_000, 262_144)]


@one_thread()
def run(
    settings: Mapping[int, Setting], classes: Mapping[str, type[Alternative]], where: Sequence[Point], seconds: float,
    num_rounds: int = 2,
) -> list[dict[str, Any]]:  # fmt: skip
    """Time every alternative at every point in rounds, `seconds` for each figure.

    `settings` maps vocabulary sizes to settings. Returns rows of {"vocab_size", "batch", "length", "alternative", "kind"}
    with the spread of the microseconds that a step takes, or with "cannot".
    """
    import torch

    rows = []
    made: dict[tuple[Point, str], Alternative] = {}
    for vocab_size in dict.fromkeys(point.vocab_size for point in where):
        for name, cls in classes.items():
            alternative = set_up(cls, settings[vocab_size])
            for point in (point for point in where if point.vocab_size == vocab_size):
                if isinstance(alternative, Cannot):
                    rows.append(_row(point, name, "thinking", {"cannot": str(alternative)}))
                elif point.batch * point.length > _COPIED.get(name, math.inf):
                    rows.append(_row(point, name, "thinking", {"cannot": "a batch takes half a minute to copy"}))
                else:
                    made[point, name] = alternative
    enough = within(seconds / num_rounds)
    longest = max(point.length for point in where) + MORE
    said = {vocab_size: words(setting, longest) for vocab_size, setting in settings.items()}
    found: dict[tuple[Point, str, str], list[Round]] = {}
    for _ in range(num_rounds):
        for point in where:
            setting = settings[point.vocab_size]
            logits = torch.randn(point.batch, setting.width, generator=torch.Generator().manual_seed(0))
            for name in classes:
                if (point, name) not in made:
                    continue
                begin = time.perf_counter()
                where_and_how = (setting, point, said[point.vocab_size], logits, clock, enough)
                values, pace = with_pace(partial(walk, made[point, name], name, *where_and_how))
                for kind, costs in values.items():
                    found.setdefault((point, name, kind), []).append((costs, pace))
                if time.perf_counter() - begin > _LONG:
                    del made[point, name]
    for (point, name, kind), rounds in found.items():
        rows.append(_row(point, name, kind, spread_of_rounds(rounds, "us per step")))
    return rows


def clock(step: Callable[[], None]) -> float:
    """Return the microseconds of a step."""
    begin = time.perf_counter()
    step()
    return (time.perf_counter() - begin) * 1e6


def within(seconds: float) -> Enough:
    """Values for so many seconds, what lies between them included: at least three, or one where that takes too long."""

    def enough(values: Sequence[float], taken: float) -> bool:
        return len(values) >= (3 if taken < _PATIENCE else 1) and (taken > seconds or len(values) == _MOST)

    return enough


def _row(point: Point, name: str, kind: str, figures: dict[str, Any]) -> dict[str, Any]:
    where = {"vocab_size": point.vocab_size, "batch": point.batch, "length": point.length}
    return {**where, "alternative": name, "kind": kind, **figures}


def words(setting: Setting, num: int) -> list[int]:
    """Ordinary words, so that no alternative sees a marker or a repetition."""
    vocabulary = setting.program.vocabulary
    some = range(600, min(30_000, vocabulary.num_tokens))
    known = [token for token in some if re.fullmatch(rb" [a-z]{2,}", vocabulary.token_bytes(token))]
    found: list[int] = np.random.default_rng(0).choice(known, num).tolist()
    return found


def walk(
    alternative: Alternative, name: str, setting: Setting, point: Point, said: Sequence[int], logits: Any, meter: Meter,
    enough: Enough,
) -> dict[str, list[float]]:  # fmt: skip
    """Return what single steps of each kind cost, by `meter`; what the steps edited is asserted behind them.

    `said`: words, `MORE` of them beyond those of the point
    """
    prompt = setting.encode("<|im_start|>assistant\n" + setting.start + "\n")
    thought, rest = list(said[: point.length]), iter(said[point.length :])
    eos, edited = setting.eos_ids[0], logits.clone()
    running = alternative.start([Request(prompt, FREE, thought)] * point.batch)
    running.step(None, edited)

    def taken(token: int) -> None:
        running.step([token] * point.batch, edited)

    def fresh(token: int) -> Any:
        edited.copy_(logits)
        taken(token)
        return edited[-1]

    def steps() -> list[float]:
        taken(next(rest))
        begin = time.perf_counter()
        costs: list[float] = []
        while not enough(costs, time.perf_counter() - begin):
            edited.copy_(logits)  # not left in the processor's caches by the step before
            costs.append(meter(partial(taken, next(rest))))
        return costs

    found = {"thinking": steps()}
    last = fresh(next(rest))
    assert (last[eos].item() == -np.inf) == ("ban EOS" not in alternative.cannot), name
    assert last[said[0]].isfinite(), name
    for token in [*setting.end_ids, *setting.encode("\n\n"), *islice(rest, 8)]:
        taken(token)
    found["answer"] = steps()
    assert fresh(next(rest))[[eos, said[0]]].isfinite().all(), name
    if name != NOTHING:
        found["forced"] = _forced(alternative, name, prompt, said, point, (logits, edited), meter, enough)
    return found


def _forced(
    alternative: Alternative, name: str, prompt: list[int], said: Sequence[int], point: Point, tensors: tuple[Any, Any],
    meter: Meter, enough: Enough,
) -> list[float]:  # fmt: skip
    """Measure the step that forces the end, which comes once in a sequence: begun anew for each."""
    fresh, logits = tensors
    begin = time.perf_counter()
    costs: list[float] = []
    while not enough(costs, time.perf_counter() - begin):
        request = Request(prompt, point.length + 1, list(said[: point.length]))
        running = alternative.start([request] * point.batch)
        running.step(None, logits.copy_(fresh))
        for word in said[point.length : point.length + _TRIES]:
            logits.copy_(fresh)
            cost = meter(partial(running.step, [word] * point.batch, logits))
            if logits[-1].isfinite().sum() <= 2 or logits[-1].max() > 1e8:  # one token is left, or lifted above all others
                costs.append(cost)
                break
        else:
            raise AssertionError(f"{name} forced nothing within {_TRIES} steps of its budget")
    return costs
