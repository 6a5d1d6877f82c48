"""Continuous batching of transformers under the guard: `python -m benches.matrix.batching` prints its row."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from benches.matrix import judging
from benches.matrix.judging import FIELDS, MODEL, PROMPT
from thinkguard.errors import UnsupportedError
from thinkguard.hf import ThinkLogitsProcessor


def generate_batch() -> str:
    """Guard a batch, or say what this release is refused with."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(MODEL).float().eval()
    if not hasattr(model, "generate_batch"):
        return "not in this release"
    guard = ThinkLogitsProcessor(tokenizer, format="think", **FIELDS)
    config = transformers.GenerationConfig(max_new_tokens=40, do_sample=False, eos_token_id=tokenizer.eos_token_id)
    small: tuple[Any, ...] = ()  # else a batch takes most of the free memory
    if hasattr(transformers, "ContinuousBatchingConfig"):
        small = (transformers.ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=256),)
    try:
        with guard.attach(model):
            if small and hasattr(small[0], "per_request_processors"):
                model.set_attn_implementation("paged|eager")
            results = model.generate_batch([PROMPT, PROMPT], config, *small, progress_bar=False)
    except UnsupportedError as error:
        if "upgrade to 5.8" not in str(error):
            raise
        return "refused: upgrade to 5.8"
    assert len(results) == 2
    for result in results.values():
        judging.judge(result.generated_tokens, FIELDS["max_thinking_tokens"])
    return "ok"


if __name__ == "__main__":
    torch.set_num_threads(1)
    judging.report(transformers.__version__, {"generate_batch": generate_batch})
