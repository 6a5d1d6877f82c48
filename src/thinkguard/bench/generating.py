"""What the guard costs a user of `generate()`: tokens per second with and without it, in pairs.

Two models: the embedded one, whose steps take a millisecond, so that any cost of a processor shows; and one of random
weights with a vocabulary of 151,936 tokens, whose logits are as wide as a real model's. Both runs of a pair generate as
many tokens: EOS ends nothing (`min_new_tokens`), and the guard's budget is reached in the middle, so that steps of free
thinking, the forced end and the answer are all in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from thinkguard.bench.setting import Setting
from thinkguard.bench.timing import in_pairs
from thinkguard.demo.run import MODELS

NEW_TOKENS: Final = 48
BUDGET: Final = 24


@dataclass(slots=True)
class Served:
    """A model with its tokenizer and the prompts of one batch."""

    name: str
    model: Any
    setting: Setting
    batch: int
    sampled: bool


def embedded(batch: int) -> Served:
    """The embedded model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODELS / "healthy").float().eval()
    return Served("embedded model", model, Setting.load(MODELS / "healthy", model.config.vocab_size), batch, sampled=True)


def random_weights(setting: Setting, batch: int) -> Served:
    """A small Qwen3 with random weights whose logits are `setting.width` wide, decoded greedily.

    Drawing from rows of that width takes torch longer on a CPU than the rest of the step, and would hide the guard.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=setting.width, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, tie_word_embeddings=True, bos_token_id=None, pad_token_id=None,
        eos_token_id=setting.eos_ids[0],
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    return Served(f"random weights, {setting.width:,} tokens", model, setting, batch, sampled=False)


def run(served: Sequence[Served], pairs: int) -> list[dict[str, Any]]:
    """Measure each model. Returns per model {"model", "batch", "alone", "guarded", "ratio"}, tokens per second."""
    return [_measured(one, pairs) for one in served]


def _measured(served: Served, pairs: int) -> dict[str, Any]:
    import torch
    from transformers.utils import logging

    from thinkguard.hf import ThinkLogitsProcessor

    logging.disable_progress_bar()

    guard = ThinkLogitsProcessor(served.setting.program, max_thinking_tokens=BUDGET)
    prompt = served.setting.encode("What is 123 + 456?" + served.setting.start + "\n")
    ids = torch.tensor([prompt] * served.batch)
    arguments = dict(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
        pad_token_id=served.setting.eos_ids[0], do_sample=served.sampled, **(dict(top_k=0) if served.sampled else {}),
    )  # fmt: skip

    def alone(seed: int) -> Any:
        torch.manual_seed(seed)
        with torch.no_grad():
            return served.model.generate(**arguments)

    def guarded(seed: int) -> Any:
        with guard.attach(served.model):
            return alone(seed)

    def check(name: str, made: Any) -> None:
        assert made.shape == (served.batch, len(prompt) + NEW_TOKENS)
        if name == "guarded":
            _check(guard, prompt, made[:, len(prompt) :].tolist())

    rates = in_pairs({"alone": alone, "guarded": guarded}, check, pairs, served.batch * NEW_TOKENS)
    return {"model": served.name, "batch": served.batch, **rates}


def _check(guard: Any, prompt: list[int], outputs: list[list[int]]) -> None:
    """The budget was held in every row that was timed."""
    for output in outputs:
        trace = guard.explain(prompt, output, NEW_TOKENS)
        assert trace.thinking_tokens <= BUDGET, trace
        assert trace.think_blocks == 1, trace
