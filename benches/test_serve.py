"""What the guard costs a user of vLLM: tokens of two engines, with the server's flag and without, in pairs.

Both engines run at the same time, each in processes of their own, and are asked in turn; the one that is not asked
sleeps. The model is small, so that a processor's cost shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest

from benches.conftest import Sizes
from benches.measuring import by_clock, pairs
from thinkguard import ThinkPolicy, ThinkProgram
from thinkguard.demo.run import MODELS

pytest.importorskip("vllm", reason="the engines are vLLM's")

BATCH, NEW_TOKENS, BUDGET = 8, 48, 24
CHAT = "<|im_start|>user\nWhat is 123 + 456?<|im_end|>\n<|im_start|>assistant\n<think>\n"
FLAG = "thinkguard.vllm:ThinkLogitsProcessor"
RUNNER = {
    "VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip


@contextmanager
def engine(**options: Any) -> Iterator[Any]:
    from vllm import LLM

    llm = LLM(
        str(MODELS / "healthy"), enforce_eager=True, dtype="float32", max_model_len=256, max_num_seqs=BATCH,
        enable_prefix_caching=False, seed=0, gpu_memory_utilization=0.4, **options,  # two of them, where there is a GPU
    )  # fmt: skip
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="session")
def engines() -> Iterator[dict[str, Any]]:
    """One without the guard and one with the server's flag."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, value in RUNNER.items():
            patch.setenv(name, value)
        yield {
            "alone": stack.enter_context(engine()),
            "guarded": stack.enter_context(engine(logits_processors=[FLAG])),
        }


@by_clock("serve")
def test_serve(benchmark: Any, engines: dict[str, Any], sizes: Sizes) -> None:
    """The V1 runner on the CPU; the budget was held in every output that was timed."""
    from vllm import SamplingParams

    program = ThinkProgram(None, MODELS / "healthy")
    prompt = {"prompt_token_ids": program.vocabulary.encode(CHAT)}
    policy = ThinkPolicy(max_thinking_tokens=BUDGET)

    def asked(name: str, seed: int) -> list[list[int]]:
        extra = {"thinkguard": {"max_thinking_tokens": BUDGET}} if name == "guarded" else None
        length = {"max_tokens": NEW_TOKENS, "min_tokens": NEW_TOKENS}
        params = SamplingParams(temperature=0.8, seed=seed, extra_args=extra, **length)
        found = engines[name].generate([prompt] * BATCH, params, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in found]

    def check(name: str, outputs: list[list[int]]) -> None:
        assert all(len(output) == NEW_TOKENS for output in outputs)
        for output in outputs if name == "guarded" else ():
            trace = program.explain(prompt["prompt_token_ids"], output, policy, max_tokens=NEW_TOKENS)
            assert trace.thinking_tokens <= BUDGET, trace

    pairs(benchmark, {name: partial(asked, name) for name in engines}, check, sizes.num_pairs)
    benchmark.extra_info.update({"model": "embedded model", "batch": BATCH, "tokens": BATCH * NEW_TOKENS})
