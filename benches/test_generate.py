"""What the guard costs a user of `generate()`: tokens with and without it, in pairs; and one call of the processor.

Two models: the embedded one, whose steps take a millisecond, so that any cost of a processor shows; and one of random
weights with a vocabulary of 151,936 tokens, whose logits are as wide as a real model's. Both runs of a pair generate as
many tokens: EOS ends nothing (`min_new_tokens`), and the guard's budget is reached in the middle, so that steps of free
thinking, the forced end and the answer are all in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benches.conftest import Sizes
from benches.measuring import by_clock, pairs
from benches.setting import Setting, made_vocabulary
from thinkguard import ThinkProgram
from thinkguard.demo.run import MODELS

torch = pytest.importorskip("torch", reason="the models are torch's")
pytest.importorskip("transformers", reason="generate() is transformers'")

CALLS = 300  # of a processor, in one arm of a pair


def embedded(setting_of: Any, vocab_size: int) -> tuple[Any, Setting, bool]:
    """(model, setting, whether it samples) of the embedded model"""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODELS / "healthy").float().eval()
    return model, Setting.load(MODELS / "healthy", model.config.vocab_size), True


def random_weights(setting_of: Callable[[int], Setting], vocab_size: int) -> tuple[Any, Setting, bool]:
    """A small Qwen3 with random weights, decoded greedily.

    Drawing from rows of that width takes torch longer on a CPU than the rest of the step, and would hide the guard.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    setting = setting_of(vocab_size)
    config = Qwen3Config(
        vocab_size=setting.width, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, tie_word_embeddings=True, bos_token_id=None, pad_token_id=None,
        eos_token_id=setting.eos_ids[0],
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval(), setting, False


MODELS_ASKED = {"embedded model": embedded, "random weights, 151,936 tokens": random_weights}
ASKED = [("embedded model", 1), ("embedded model", 8), ("random weights, 151,936 tokens", 8)]


@by_clock("generate")
@pytest.mark.parametrize(("model", "batch"), ASKED)
def test_generate(benchmark: Any, setting_of: Any, sizes: Sizes, model: str, batch: int) -> None:
    """The budget was held in every row that was timed."""
    from transformers.utils import logging

    from thinkguard.hf import ThinkLogitsProcessor

    logging.disable_progress_bar()
    new_tokens, budget = (48, 24) if sizes.full else (16, 6)
    served, setting, sampled = MODELS_ASKED[model](setting_of, sizes.vocab_size)
    guard = ThinkLogitsProcessor(setting.program, max_thinking_tokens=budget)
    prompt = setting.encode("What is 123 + 456?" + setting.start + "\n")
    ids = torch.tensor([prompt] * batch)
    arguments = dict(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
        pad_token_id=setting.eos_ids[0], do_sample=sampled, **(dict(top_k=0) if sampled else {}),
    )  # fmt: skip

    def alone(seed: int) -> Any:
        torch.manual_seed(seed)
        with torch.no_grad():
            return served.generate(**arguments)

    def guarded(seed: int) -> Any:
        with guard.attach(served):
            return alone(seed)

    def check(name: str, found: Any) -> None:
        assert found.shape == (batch, len(prompt) + new_tokens)
        for output in found[:, len(prompt) :].tolist() if name == "guarded" else ():
            trace = guard.explain(prompt, output, new_tokens)
            assert trace.thinking_tokens <= budget, trace
            assert trace.think_blocks == 1, trace

    num_pairs = sizes.num_pairs if model == "embedded model" else sizes.num_pairs // 3 or 1
    pairs(benchmark, {"alone": alone, "guarded": guarded}, check, num_pairs)
    benchmark.extra_info.update({"model": model, "batch": batch, "tokens": batch * new_tokens})


@by_clock("generate")
def test_processor_call(benchmark: Any, sizes: Sizes) -> None:
    """Calls of `LogitsProcessorList` at batch 1: the guard, attached, over a processor that returns its scores."""
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

    from thinkguard.hf import ThinkLogitsProcessor
    from thinkguard.hf.attached import AttachedProcessor, without_signature_lookup

    class Returns(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores

    without_signature_lookup(Returns)
    program, num_pairs = ThinkProgram("think", made_vocabulary(sizes.vocab_size, marker_tokens=True)), sizes.num_pairs
    encode = program.vocabulary.encode
    guard = ThinkLogitsProcessor(program, max_thinking_tokens=2**29)
    prompt = encode("<|im_start|>assistant\n<think>\n")
    ids = torch.tensor([prompt + encode(" the") * (2 * CALLS * (num_pairs + 1) + 1)])
    scores, length = torch.randn(1, sizes.vocab_size), len(prompt)
    attached = AttachedProcessor(guard.binding, GenerationConfig(max_length=ids.shape[1] + 100), length)
    lists = {"returns": LogitsProcessorList([Returns()]), "guarded": LogitsProcessorList([attached])}
    lists["guarded"](ids[:, :length], scores)
    place = dict.fromkeys(lists, length)
    views: dict[str, list[Any]] = {}

    def prepare(name: str) -> None:
        views[name] = [ids[:, : place[name] + i + 1] for i in range(CALLS)]
        place[name] += CALLS

    def run(name: str) -> Callable[[int], None]:
        def calls(number: int) -> None:
            processors = lists[name]
            for view in views[name]:
                processors(view, scores)

        return calls

    pairs(benchmark, {name: run(name) for name in lists}, lambda name, nothing: None, num_pairs, prepare)
    assert attached._batch is not None
    assert attached._batch.states[0].thinking_tokens == place["guarded"] - length
    benchmark.extra_info["calls"] = CALLS
