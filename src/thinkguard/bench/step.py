"""Cost of a step: the sampled tokens taken, the logits edited, for one alternative behind the other in one process.

Three kinds of steps, each behind a prompt that opened the thinking: "thinking" (the budget is far away; whoever bans EOS or
markers there does so), "answer" (behind the end marker, nothing need be edited) and "forced" (the step that closes at the
budget). All sequences of a batch are alike. vLLM V2's kernels are not timed: on a CPU Triton has only its interpreter.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from thinkguard.bench.alternatives.alternative import Alternative, Cannot
from thinkguard.bench.setting import Request, Setting
from thinkguard.bench.timing import spread

FREE: Final = 2**30  # a budget that is never reached
NOTHING: Final = "nothing"
_CACHED: Final = 2**21  # rows x tokens that grammars are walked through before a step; beyond, walking takes minutes
_TRIES: Final = 3  # steps within which the end is forced: some count the line break behind the start, some do not


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


def run(
    settings: Mapping[int, Setting], classes: Mapping[str, type[Alternative]], where: Sequence[Point], seconds: float
) -> list[dict[str, Any]]:
    """Time every alternative at every point, `seconds` for each figure.

    `settings` maps vocabulary sizes to settings. Returns rows of {"vocab_size", "batch", "length", "alternative", "kind"}
    with the spread of the microseconds that a step takes, or with "cannot".
    """
    import torch

    torch.set_num_threads(1)
    rows = []
    for vocab_size, group in _by_vocabulary(where):
        setting = settings[vocab_size]
        words = _words(setting, max(point.length for point in group) + 4096)
        made: dict[str, Alternative] = {}
        for name, cls in classes.items():
            try:
                made[name] = cls(setting)
            except Cannot as reason:
                rows += [_row(point, name, "thinking", {"cannot": str(reason)}) for point in group]
        for point in group:
            logits = torch.randn(point.batch, setting.width, generator=torch.Generator().manual_seed(0))
            for name, alternative in made.items():
                if name.startswith(("xgrammar", "llguidance")) and point.batch * point.length > _CACHED:
                    continue
                for kind, times in _timed(alternative, name, setting, point, words, logits, seconds).items():
                    rows.append(_row(point, name, kind, spread(times, "us per step")))
    return rows


def _by_vocabulary(where: Sequence[Point]) -> Iterator[tuple[int, list[Point]]]:
    for vocab_size in dict.fromkeys(point.vocab_size for point in where):
        yield vocab_size, [point for point in where if point.vocab_size == vocab_size]


def _row(point: Point, name: str, kind: str, figures: dict[str, Any]) -> dict[str, Any]:
    where = {"vocab_size": point.vocab_size, "batch": point.batch, "length": point.length}
    return {**where, "alternative": name, "kind": kind, **figures}


def _words(setting: Setting, num: int) -> list[int]:
    """Ordinary words, so that no alternative sees a marker or a repetition."""
    vocabulary = setting.program.vocabulary
    some = range(600, min(30_000, vocabulary.num_tokens))
    known = [token for token in some if re.fullmatch(rb" [a-z]{2,}", vocabulary.token_bytes(token))]
    found: list[int] = np.random.default_rng(0).choice(known, num).tolist()
    return found


def _timed(
    alternative: Alternative, name: str, setting: Setting, point: Point, words: Sequence[int], logits: Any, seconds: float
) -> dict[str, list[float]]:
    """Return microseconds of single steps of each kind; what the steps edited is asserted behind them."""
    prompt = setting.encode("<|im_start|>assistant\n" + setting.start + "\n")
    thought = list(words[: point.length])
    found = {}
    thinking = alternative.start([Request(prompt, FREE, thought)] * point.batch)
    edited = logits.clone()
    found["thinking"] = _steps(thinking, words[point.length :], point.batch, edited, seconds)
    edited.copy_(logits)
    thinking.step([words[0]] * point.batch, edited)
    eos = setting.eos_ids[0]
    assert (edited[-1, eos].item() == -np.inf) == ("ban EOS" not in alternative.cannot), name
    assert edited[-1, words[0]].isfinite(), name
    answered = [*thought, *setting.end_ids, *setting.encode("\n\n"), *words[:8]]
    answering = alternative.start([Request(prompt, FREE, answered)] * point.batch)
    found["answer"] = _steps(answering, words[8:], point.batch, edited, seconds)
    edited.copy_(logits)
    answering.step([words[0]] * point.batch, edited)
    assert edited[-1, [eos, words[0]]].isfinite().all(), name
    if name != NOTHING:
        found["forced"] = _forced(alternative, name, prompt, words, point, (logits, edited), seconds)
    return found


def _steps(running: Any, words: Sequence[int], batch: int, logits: Any, seconds: float) -> list[float]:
    running.step(None, logits)
    running.step([words[0]] * batch, logits)
    times: list[float] = []
    for word in words[1:]:
        sampled = [word] * batch
        begin = time.perf_counter()
        running.step(sampled, logits)
        times.append((time.perf_counter() - begin) * 1e6)
        if len(times) >= 400 or (sum(times) > seconds * 1e6 and len(times) >= 5):
            break
    return times


def _forced(
    alternative: Alternative, name: str, prompt: list[int], words: Sequence[int], point: Point, tensors: tuple[Any, Any],
    seconds: float,
) -> list[float]:  # fmt: skip
    """Time the step that forces the end, which comes once in a sequence: begun anew for each."""
    fresh, logits = tensors
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds * 1e6 and len(times) < 15):
        request = Request(prompt, point.length + 1, list(words[: point.length]))
        running = alternative.start([request] * point.batch)
        running.step(None, logits.copy_(fresh))
        for word in words[point.length : point.length + _TRIES]:
            logits.copy_(fresh)
            begin = time.perf_counter()
            running.step([word] * point.batch, logits)
            taken = (time.perf_counter() - begin) * 1e6
            if logits[-1].isfinite().sum() <= 2 or logits[-1].max() > 1e8:  # one token is left, or lifted above all others
                times.append(taken)
                break
        else:
            raise AssertionError(f"{name} forced nothing within {_TRIES} steps of its budget")
    return times
