"""Host cost of a V1 step in steady thinking, against vLLM's own thinking budget in the same process.

    python benches/vllm_v1.py [--requests 32]

Both see the same requests: prompts that open the thinking, outputs of ordinary tokens, a budget that is never reached. What
is timed is what the engine calls in every step: ours `update_state(None)` and `apply`, on logits of real width on the CPU;
theirs `update_state` and `apply_to_logits`. "warm" is step after step; "cold" writes 64 MB between the steps, which pushes
code and data of both out of the caches nearest to the core, and is given for a feeling of the worst case.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from core import WIDTH, vocabulary
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

from thinkguard import ThinkFormat, ThinkPolicy, ThinkProgram
from thinkguard.bench.machine import machine
from thinkguard.bench.timing import Round, spread_of_rounds, with_pace
from thinkguard.vllm.engine_requests import Guard
from thinkguard.vllm.v1 import V1Batch

LENGTHS, ASKED_LENGTH, ASKED_RATIO = (128, 1_024, 8_192, 32_768), 1_024, 200
ROUNDS, LONG_ROUNDS, OUR_STEPS, THEIR_STEPS, BUDGET = 8, 3, 60, 12, 2**29
OTHER_WORK = np.ones(8_000_000)


class Requests:
    """One policy for every request; reading it from parameters is no part of a step."""

    def __init__(self) -> None:
        self.program = ThinkProgram(ThinkFormat.from_name("think"), vocabulary(marker_tokens=True))
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
    """Both guards over the same requests, whose outputs are about `length` tokens long while they are timed."""

    def __init__(self, requests: Requests, logits: torch.Tensor, length: int) -> None:
        encode, added = requests.program.vocabulary.encode, requests.program.vocabulary.added
        prompt, num_requests = encode("<|im_start|>assistant\n<think>\n"), len(logits)
        words = np.random.default_rng(0).integers(1000, 100_000, length - OUR_STEPS)
        self.outputs = [words.tolist() for _ in range(num_requests)]
        params = SamplingParams(thinking_token_budget=BUDGET)
        update = BatchUpdate(num_requests, [], [(i, params, prompt, out) for i, out in enumerate(self.outputs)], [])
        device = torch.device("cpu")
        self.ours = V1Batch(requests, device)  # type: ignore[arg-type]
        self.ours.update_state(update)
        reasoning = Reasoning([added["<think>"]], [added["</think>"]])
        self.theirs = ThinkingBudgetStateHolder(reasoning, num_requests, 0, device, False)  # type: ignore[arg-type]
        self.theirs.sync_batch(update)
        self.drafts: list[list[int]] = [[] for _ in self.outputs]
        self.logits = logits
        self.forbidden, self.target = [added["<|im_end|>"], added["<think>"]], added["</think>"]

    def our_step(self) -> None:
        self.ours.update_state(None)
        self.ours.apply(self.logits)

    def their_step(self) -> None:
        self.theirs.update_state(self.outputs, self.drafts)
        self.theirs.apply_to_logits(self.logits, False, self.drafts)

    def times(self, step: Any, num_steps: int, cold: bool) -> list[float]:
        """us of single steps, each behind one more token of every request; the first half warms up."""
        times = []
        for tokens in np.random.default_rng(1).integers(1000, 100_000, (num_steps, len(self.outputs))).tolist():
            for output, token in zip(self.outputs, tokens, strict=True):
                output.append(token)
            if cold:
                np.add(OTHER_WORK, 1, out=OTHER_WORK)
            begin = time.perf_counter()
            step()
            times.append((time.perf_counter() - begin) * 1e6)
        return times[num_steps // 2 :]

    def check(self) -> None:
        """Both stand in the thinking with every token counted, and our edits are on the logits."""
        logits = torch.zeros_like(self.logits)
        self.our_step()
        self.ours.apply(logits)
        assert (logits[:, self.forbidden] == -torch.inf).all()
        assert (logits[:, self.target] == 0).all()
        assert torch.isfinite(logits).sum() == logits.numel() - 2 * len(logits)
        self.their_step()
        for i, output in enumerate(self.outputs):
            state = self.theirs._state[i]
            assert state["in_think"]
            assert state["prev_output_length"] == len(output)


def run(num_requests: int) -> dict[str, Any]:
    """Measure at every length, both guards in turn and fresh in every round."""
    requests = Requests()
    logits = torch.randn(num_requests, WIDTH, generator=torch.Generator().manual_seed(0))
    out: dict[str, Any] = {"requests": num_requests, "width": WIDTH}
    ours: dict[int, list[Round]] = {}
    for state, lengths in (("warm", LENGTHS), ("cold", (ASKED_LENGTH,))):
        out[state] = {}
        rounds: dict[int, dict[str, list[Round]]] = {length: {"thinkguard": [], "vllm": []} for length in lengths}
        for number in range(ROUNDS):  # all lengths in each, so that the machine's drift hits all alike
            for length in (length for length in lengths if length <= ASKED_LENGTH or number < LONG_ROUNDS):
                batch = Batch(requests, logits, length)
                steps = {"thinkguard": (batch.our_step, OUR_STEPS), "vllm": (batch.their_step, THEIR_STEPS)}
                for name, (step, num_steps) in steps.items():
                    rounds[length][name].append(with_pace(partial(batch.times, step, num_steps, state == "cold")))
                batch.check()
        for length, taken in rounds.items():
            figures = {name: spread_of_rounds(taken[name], "us per step") for name in taken}
            out[state][length] = {**figures, "ratio": figures["vllm"]["median"] / figures["thinkguard"]["median"]}
        ours = ours or {length: taken["thinkguard"] for length, taken in rounds.items()}
    out["ratio"] = {"median": out["warm"][ASKED_LENGTH]["ratio"], "asked": ASKED_RATIO, "unit": "times less"}
    out["long_over_short"] = {"median": _long_over_short(ours), "unit": "ratio"}
    return out


def _long_over_short(ours: dict[int, list[Round]]) -> float:
    """How many times what a step takes behind a short thinking it takes behind a long one: the median of the rounds."""
    pairs = zip(ours[LENGTHS[0]], ours[LENGTHS[-1]], strict=False)  # of long ones there are fewer
    return median(median(long) / median(short) for (short, _), (long, _) in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    options = parser.parse_args()
    command = f"python benches/vllm_v1.py --requests {options.requests}"
    figures = {"command": command, "machine": machine(), **run(options.requests)}
    print(json.dumps(figures, indent=2))
    if options.requests == 32:
        assert figures["ratio"]["median"] >= ASKED_RATIO, f"{figures['ratio']} is less than what was promised"


if __name__ == "__main__":
    main()
