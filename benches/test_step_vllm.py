"""Host cost of a V1 step in steady thinking, against vLLM's own thinking budget in the same process, in pairs.

Both see the same requests: prompts that open the thinking, outputs of ordinary tokens, a budget that is never reached. What
is timed is what the engine calls in every step: ours `update_state(None)` and `apply`, on logits of real width on the CPU;
theirs `update_state` and `apply_to_logits`. "warm" is step after step; "cold" writes 64 MB before each, which pushes code
and data of both out of the caches nearest to the core, and is given for a feeling of the worst case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from benches.conftest import Sizes
from benches.measuring import by_clock, pairs
from benches.setting import made_vocabulary
from thinkguard import ThinkPolicy, ThinkProgram

torch = pytest.importorskip("torch", reason="the logits are torch's")
pytest.importorskip("vllm", reason="what it is held against is vLLM's own budget")

from vllm import SamplingParams  # noqa: E402
from vllm.v1.sample.logits_processor import BatchUpdate  # noqa: E402
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder  # noqa: E402

from thinkguard.vllm.engine_requests import Guard  # noqa: E402
from thinkguard.vllm.v1 import V1Batch  # noqa: E402

ROWS, BUDGET, PAIRS = 32, 2**29, 15
USUAL, LONG, SHORT = 1_024, 32_768, 128
OTHER_WORK = np.ones(8_000_000)
PROMISED = 200
"""At the usual length a warm step of ours is so many times shorter than one of theirs."""


class Requests:
    """One policy for every request; reading it from parameters is no part of a step."""

    def __init__(self, width: int) -> None:
        self.program = ThinkProgram("think", made_vocabulary(width, marker_tokens=True))
        self.guard = Guard(self.program.bind(ThinkPolicy(max_thinking_tokens=BUDGET)), guards_raw=False)

    def guard_of(self, params: Any) -> Guard:
        return self.guard

    def limit_of(self, params: Any, prompt_len: int) -> int:
        return 2**30


@dataclass
class Reasoning:
    """The part of vLLM's configuration that its budget reads."""

    reasoning_start_token_ids: list[int]
    reasoning_end_token_ids: list[int]


class Batch:
    """Both guards over the same requests, whose outputs are `length` tokens long and grow by one before each step."""

    def __init__(self, requests: Requests, logits: torch.Tensor, length: int) -> None:
        encode, added = requests.program.vocabulary.encode, requests.program.vocabulary.added
        prompt = encode("<|im_start|>assistant\n<think>\n")
        self.rng, self.most = np.random.default_rng(0), logits.shape[1] - 100
        self.outputs = [self.rng.integers(300, self.most, length).tolist() for _ in range(ROWS)]
        params = SamplingParams(thinking_token_budget=BUDGET)
        update = BatchUpdate(ROWS, [], [(i, params, prompt, out) for i, out in enumerate(self.outputs)], [])
        device = torch.device("cpu")
        self.ours = V1Batch(requests, device)  # type: ignore[arg-type]
        self.ours.update_state(update)
        reasoning = Reasoning([added["<think>"]], [added["</think>"]])
        self.theirs = ThinkingBudgetStateHolder(reasoning, ROWS, 0, device, False)  # type: ignore[arg-type]
        self.theirs.sync_batch(update)
        self.drafts: list[list[int]] = [[] for _ in self.outputs]
        self.logits = logits
        self.forbidden, self.target = [added["<|im_end|>"], added["<think>"]], added["</think>"]
        for step in (self.our_step, self.their_step):  # both read what is there
            step(0)

    def grow(self) -> None:
        """Append one token to every output."""
        for output, token in zip(self.outputs, self.rng.integers(300, self.most, ROWS).tolist(), strict=True):
            output.append(token)

    def our_step(self, number: int) -> None:
        self.ours.update_state(None)
        self.ours.apply(self.logits)

    def their_step(self, number: int) -> None:
        self.theirs.update_state(self.outputs, self.drafts)
        self.theirs.apply_to_logits(self.logits, False, self.drafts)

    def check(self) -> None:
        """Both stand in the thinking with every token counted, and our edits are on the logits."""
        logits = torch.zeros_like(self.logits)
        self.our_step(0)
        self.ours.apply(logits)
        assert (logits[:, self.forbidden] == -torch.inf).all()
        assert (logits[:, self.target] == 0).all()
        assert torch.isfinite(logits).sum() == logits.numel() - 2 * len(logits)
        self.their_step(0)
        for i, output in enumerate(self.outputs):
            state = self.theirs._state[i]
            assert state["in_think"]
            assert state["prev_output_length"] == len(output)


@pytest.fixture(scope="module")
def requests(sizes: Sizes) -> Requests:
    return Requests(sizes.vocab_size)


@pytest.fixture(scope="module")
def logits(sizes: Sizes) -> torch.Tensor:
    return torch.randn(ROWS, sizes.vocab_size, generator=torch.Generator().manual_seed(0))


@by_clock("step")
@pytest.mark.parametrize(("cache", "length"), [("warm", SHORT), ("warm", USUAL), ("warm", LONG), ("cold", USUAL)])
def test_v1_step(benchmark: Any, requests: Requests, logits: Any, sizes: Sizes, cache: str, length: int) -> None:
    """Theirs and ours in pairs; each of a pair's four runs is one step, behind one more token of every request."""
    batch = Batch(requests, logits, length)
    num_pairs = (PAIRS if length == LONG else 4 * PAIRS) if sizes.full else 1

    def prepare(name: str) -> None:
        batch.grow()
        if cache == "cold":
            np.add(OTHER_WORK, 1, out=OTHER_WORK)
        elif name == "thinkguard":  # step after step: not the first one behind the other's
            batch.our_step(0)
            batch.grow()

    runs = {"vLLM": batch.their_step, "thinkguard": batch.our_step}
    found = pairs(benchmark, runs, lambda name, nothing: None, num_pairs, prepare)
    batch.check()
    benchmark.extra_info.update({"cache": cache, "length": length, "batch": ROWS})
    if sizes.full and (cache, length) == ("warm", USUAL):
        assert found["ratio"]["median"] * PROMISED <= 1


@by_clock("step")
def test_v1_step_long(benchmark: Any, requests: Requests, logits: Any, sizes: Sizes) -> None:
    """A step of ours behind 32,768 thinking tokens over one behind 128."""
    batches = {name: Batch(requests, logits, length) for name, length in (("short", SHORT), ("long", LONG))}

    def prepare(name: str) -> None:
        batches[name].grow()
        batches[name].our_step(0)
        batches[name].grow()

    runs = {name: batch.our_step for name, batch in batches.items()}
    pairs(benchmark, runs, lambda name, nothing: None, 100 if sizes.full else 2, prepare)
    for batch in batches.values():
        batch.check()
