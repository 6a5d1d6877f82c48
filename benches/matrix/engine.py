"""A vLLM engine on a CPU, guarded in every way: `python -m benches.matrix.engine V1|V2` prints its row."""

from __future__ import annotations

import os
import sys
from typing import Any

IS_V2 = sys.argv[1:] == ["V2"]
os.environ.update(
    HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_USE_V2_MODEL_RUNNER=str(int(IS_V2)),
)  # fmt: skip
_DEFAULT = {"max_thinking_tokens": 12, "max_answer_tokens": 20}


def main() -> None:
    """Print the row."""
    if IS_V2:  # its kernels are Triton's, which vLLM looks for when it is imported
        os.environ["TRITON_INTERPRET"] = "1"
        from benches.alternatives.interpreted import interpret

        interpret()
    import vllm
    from vllm import LLM, SamplingParams

    from benches.matrix import judging
    from benches.matrix.judging import FIELDS, MODEL, PROCESSOR, PROMPT

    llm = LLM(
        MODEL, logits_processors=[PROCESSOR], additional_config={"thinkguard": _DEFAULT}, max_model_len=256, max_num_seqs=4,
        enforce_eager=True, dtype="float32", seed=0,
        reasoning_config={"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"},  # else it refuses its budget
    )  # fmt: skip

    def ask(**fields: Any) -> list[int]:
        params = SamplingParams(max_tokens=60, temperature=2, seed=1, **fields)
        (output,) = llm.generate([{"prompt_token_ids": PROMPT}], params, use_tqdm=False)
        return list(output.outputs[0].token_ids)

    judging.report(
        vllm.__version__,
        {
            "by default": lambda: judging.judge(ask(), _DEFAULT["max_thinking_tokens"]),
            "per request": lambda: judging.judge(ask(extra_args={"thinkguard": FIELDS}), FIELDS["max_thinking_tokens"]),
            "off": lambda: judging.unguarded(ask(extra_args={"thinkguard": False})),
            "misspelt field": lambda: judging.refused(lambda: ask(extra_args={"thinkguard": {"max_thinking_token": 5}})),
            "thinking_token_budget": lambda: judging.judge(ask(thinking_token_budget=3), 3),
        },
    )
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
