"""What the guard costs a user of vLLM: tokens per second of two engines, with the server's flag and without, in pairs.

Both engines run at the same time, each in processes of their own, and are asked in turn; the one that is not asked
sleeps. The model is small, so that a processor's cost shows.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from thinkguard.bench.timing import in_pairs
from thinkguard.core.program import ThinkProgram
from thinkguard.demo.run import MODELS
from thinkguard.policy import ThinkPolicy

NEW_TOKENS: Final = 48
BUDGET: Final = 24
_CHAT: Final = "<|im_start|>user\nWhat is 123 + 456?<|im_end|>\n<|im_start|>assistant\n<think>\n"
_FLAG: Final = "thinkguard.vllm:ThinkLogitsProcessor"


@contextmanager
def _engine(guarded: bool, batch: int) -> Iterator[Any]:
    from vllm import LLM

    options: dict[str, Any] = {"logits_processors": [_FLAG]} if guarded else {}
    options["gpu_memory_utilization"] = 0.4  # two of them, where there is a GPU
    llm = LLM(
        str(MODELS / "healthy"), enforce_eager=True, dtype="float32", max_model_len=256, max_num_seqs=batch,
        enable_prefix_caching=False, seed=0, **options,
    )  # fmt: skip
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def run(batch: int, pairs: int) -> dict[str, Any]:
    """Measure. Returns {"batch", "alone", "guarded", "ratio"}, tokens per second of the V1 runner on the CPU."""
    os.environ |= {"VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    from vllm import SamplingParams

    program = ThinkProgram(None, MODELS / "healthy")
    prompt = {"prompt_token_ids": program.vocabulary.encode(_CHAT)}
    policy = ThinkPolicy(max_thinking_tokens=BUDGET)
    with ExitStack() as stack:
        engines = {name: stack.enter_context(_engine(name == "guarded", batch)) for name in ("alone", "guarded")}

        def asked(name: str, seed: int) -> list[list[int]]:
            extra = {"thinkguard": {"max_thinking_tokens": BUDGET}} if name == "guarded" else None
            length = {"max_tokens": NEW_TOKENS, "min_tokens": NEW_TOKENS}
            params = SamplingParams(temperature=0.8, seed=seed, extra_args=extra, **length)
            found = engines[name].generate([prompt] * batch, params, use_tqdm=False)
            return [list(one.outputs[0].token_ids) for one in found]

        def check(name: str, outputs: list[list[int]]) -> None:
            assert all(len(output) == NEW_TOKENS for output in outputs)
            if name == "guarded":
                for output in outputs:
                    trace = program.explain(prompt["prompt_token_ids"], output, policy, max_tokens=NEW_TOKENS)
                    assert trace.thinking_tokens <= BUDGET, trace

        runs = {name: partial(asked, name) for name in engines}
        return {"batch": batch, **in_pairs(runs, check, pairs, batch * NEW_TOKENS)}


def main() -> None:
    """Measure in this process, which is made for it, and write JSON; {"cannot": why} where vLLM is not installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    try:
        found: dict[str, Any] = {"rows": [run(options.batch, options.pairs)]}
    except ImportError as error:
        found = {"cannot": f"not installed here: {error}"}
    options.json.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
