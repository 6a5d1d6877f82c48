"""What a user pays beside the step: a call of the Hugging Face processor, compiling, a new policy, importing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from core import Walk, vocabulary

from thinkguard import ThinkFormat, ThinkPolicy, ThinkProgram
from thinkguard.bench.timing import Round, Spread, spread, spread_of_rounds, with_pace

REPEATS, CALLS = 20, 300


def _times(function: Any, repeats: int, calls: int = 1) -> list[float]:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - begin) / calls)
    return times


def _spread(times: Callable[[], list[float]], scale: float, unit: str) -> Spread:
    found, pace = with_pace(times)
    return spread([t * scale for t in found], unit, pace)


def hf_call() -> dict[str, Any]:
    """us of one step at batch 1 of `LogitsProcessorList`, guarded (attached, in steady thinking) and with a processor that
    returns its scores; the difference is what the guard adds."""
    import torch
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

    from thinkguard.hf import ThinkLogitsProcessor
    from thinkguard.hf.attached import AttachedProcessor, without_signature_lookup

    class Returns(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores

    without_signature_lookup(Returns)
    walk = Walk(True, "")
    encode = walk.program.vocabulary.encode
    guard = ThinkLogitsProcessor(walk.program, max_thinking_tokens=2**29)
    prompt = encode("<|im_start|>assistant\n<think>\n")
    ids = torch.tensor([prompt + encode(" the") * (REPEATS * CALLS * 2 + 10)])
    scores = torch.randn(1, walk.logits.shape[1])
    config = GenerationConfig(max_length=ids.shape[1] + 100)
    out: dict[str, Any] = {}
    times: dict[str, list[float]] = {"guarded": [], "returns": []}
    attached = AttachedProcessor(guard.binding, config, len(prompt))
    lists = {"guarded": LogitsProcessorList([attached]), "returns": LogitsProcessorList([Returns()])}
    length = len(prompt)
    views = [ids[:, : length + i] for i in range(REPEATS * CALLS)]
    lists["guarded"](views[0], scores)

    def call_all() -> None:
        for repeat in range(REPEATS):
            part = views[max(repeat * CALLS, 1) : (repeat + 1) * CALLS]
            for name, processors in lists.items():
                begin = time.perf_counter()
                for view in part:
                    processors(view, scores)
                times[name].append((time.perf_counter() - begin) / len(part) * 1e6)

    _, pace = with_pace(call_all)
    assert attached._batch is not None
    assert attached._batch.states[0].thinking_tokens == REPEATS * CALLS - 1
    for name in times:
        out[name] = spread(times[name], "us per call", pace)
    out["added"] = {"median": out["guarded"]["median"] - out["returns"]["median"], "unit": "us per call"}
    return out


def compiling() -> dict[str, Any]:
    """ms to compile 151,936 tokens once the vocabulary is read, and us to bind a new policy with a message."""
    out: dict[str, Any] = {}
    for name, marker_tokens in (("token markers", True), ("text markers", False)):
        vocab, fmt = vocabulary(marker_tokens), ThinkFormat.from_name("think")
        out[name] = _spread(partial(_times, partial(ThinkProgram, fmt, vocab), 7), 1e3, "ms")
        program = ThinkProgram(fmt, vocab)
        out[name]["program_bytes"] = program.nbytes
    policies = iter(ThinkPolicy(close_message="Time is up.", max_thinking_tokens=n) for n in range(100, 200))
    out["new policy"] = _spread(lambda: _times(lambda: program.bind(next(policies)), 50), 1e6, "us")
    return out


def importing() -> dict[str, Any]:
    """ms in a fresh interpreter that has imported nothing; all names' import includes numpy's own, given beside it."""

    def fresh(statement: str) -> list[float]:
        code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
        run = partial(subprocess.run, [sys.executable, "-c", code], capture_output=True, check=True)
        return [float(run().stdout) * 1e3 for _ in range(5)]

    statements = {"package": "import thinkguard", "all names": "from thinkguard import *", "numpy alone": "import numpy"}
    rounds: dict[str, list[Round]] = {name: [] for name in statements}
    for _ in range(3):
        for name, statement in statements.items():
            rounds[name].append(with_pace(partial(fresh, statement)))
    return {name: spread_of_rounds(found, "ms") for name, found in rounds.items()}


def run() -> dict[str, Any]:
    """Measure all of them."""
    return {"hf_call": hf_call(), "compile": compiling(), "import": importing()}
