"""What the guard costs a user of vLLM: tokens per second of two engines, with the server's flag and without, in pairs.

Both engines run at the same time, each in processes of their own, and are asked in turn; the one that is not asked
sleeps. The model is small, so that a processor's cost shows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from thinkguard.bench.timing import ratio, spread
from thinkguard.demo.run import MODELS
from thinkguard.policy import ThinkPolicy
from thinkguard.program import ThinkProgram

NEW_TOKENS: Final = 96
BUDGET: Final = 48
_CHAT: Final = "<|im_start|>user\nWhat is 123 + 456?<|im_end|>\n<|im_start|>assistant\n<think>\n"
_FLAG: Final = "thinkguard.vllm:ThinkLogitsProcessor"


@contextmanager
def _engine(guarded: bool, batch: int) -> Iterator[Any]:
    from vllm import LLM

    options: dict[str, Any] = {"logits_processors": [_FLAG]} if guarded else {}
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
    rates: dict[str, list[float]] = {"alone": [], "guarded": []}
    with ExitStack() as stack:
        engines = {name: stack.enter_context(_engine(name == "guarded", batch)) for name in rates}
        for number in range(pairs + 1):
            for name in sorted(engines, reverse=bool(number % 2)):
                extra = {"thinkguard": {"max_thinking_tokens": BUDGET}} if name == "guarded" else None
                params = SamplingParams(
                    temperature=0.8, seed=number, max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS, extra_args=extra
                )
                begin = time.perf_counter()
                found = engines[name].generate([prompt] * batch, params, use_tqdm=False)
                seconds = time.perf_counter() - begin
                outputs = [list(one.outputs[0].token_ids) for one in found]
                assert all(len(output) == NEW_TOKENS for output in outputs)
                if name == "guarded":
                    for output in outputs:
                        trace = program.explain(prompt["prompt_token_ids"], output, policy, max_tokens=NEW_TOKENS)
                        assert trace.thinking_tokens <= BUDGET, trace
                if number:  # the first pair warms up
                    rates[name].append(batch * NEW_TOKENS / seconds)
    return {
        "batch": batch,
        **{name: spread(found, "tokens per second") for name, found in rates.items()},
        "ratio": ratio(rates["guarded"], rates["alone"]),
    }


def main() -> int:
    """Measure in this process, which is made for it, and write JSON. Exit status 2: vLLM is not installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    try:
        found = run(options.batch, options.pairs)
    except ImportError as error:
        print(f"not installed here: {error}", file=sys.stderr)
        return 2
    options.json.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
