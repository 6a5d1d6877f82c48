"""Decode throughput of a guarded model against the same one unguarded, in pairs, each run behind the other in turn.

The model is a Qwen3 of 0.6 billion random weights with a vocabulary of real width; its thinking is cut by the budget near
the end of every run, so that the guard is seen to work in the runs that are timed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_common import WIDTH, NotMeasured, Result, row, spread

ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@dataclass(frozen=True)
class Sizes:
    """A model and how long it runs; tests have little of everything."""

    batch: int = 32
    tokens: int = 128
    pairs: int = 10
    width: int = WIDTH
    hidden: int = 1024
    layers: int = 28
    heads: int = 16
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16

    @property
    def budget(self) -> int:
        return self.tokens * 3 // 4


def tokenizer(width: int) -> Any:
    """ChatML over bytes, <think> and </think> as tokens, and ids up to `width` that no text is encoded with."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"word{i}" for i in range(width - len(ADDED) - len(pieces))]
    made = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_tokens([AddedToken(name, special=name.startswith("<|"), normalized=False) for name in ADDED])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


def model(sizes: Sizes) -> Any:
    """A Qwen3 with random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=sizes.width, hidden_size=sizes.hidden, intermediate_size=3 * sizes.hidden,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=max(sizes.heads // 2, 1),
        head_dim=sizes.hidden * 2 // sizes.heads, max_position_embeddings=4096, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=sizes.width - 3, pad_token_id=sizes.width - 5,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(sizes.device):
        return Qwen3ForCausalLM(config).to(sizes.dtype).eval()


def prompt_of(tok: Any, index: int) -> list[int]:
    question = f"Question {index:04d}: how are you?"
    messages = [{"role": "user", "content": question}]
    return list(tok.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))


def check_output(guard: Any, sizes: Sizes, prompt: list[int], output: list[int]) -> None:
    """The thinking was closed, once, within its budget."""
    added = guard.program.vocabulary.added
    end = output.index(added["<|im_end|>"]) + 1 if added["<|im_end|>"] in output else len(output)
    trace = guard.explain(prompt, output[:end], sizes.tokens)
    assert not trace.violations, trace
    assert trace.thinking_tokens <= sizes.budget, trace
    assert output[:end].count(added["</think>"]) == 1, trace


def paired(runs: dict[str, Callable[[], Any]], pairs: int, num_tokens: int) -> Result:
    """Time "unguarded" and "guarded" in pairs of changing order; tokens a second, and the ratio with its 95 % interval."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for pair in range(pairs):
        for name in list(runs)[:: 1 if pair % 2 else -1]:
            begin = time.perf_counter()
            runs[name]()
            taken[name].append(time.perf_counter() - begin)
    ratios = np.array(taken["unguarded"]) / np.array(taken["guarded"])
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    found: Result = {name: spread([num_tokens / t for t in seconds], "tokens per second") for name, seconds in taken.items()}
    found["guarded over unguarded"] = {
        "mean": round(float(ratios.mean()), 5), "low": round(float(low), 5), "high": round(float(high), 5),
        "median": round(float(np.median(ratios)), 5), "pairs": pairs, "interval": "95 %, bootstrap of the mean",
        "asked": 0.995,
    }  # fmt: skip
    return found


# --- generate() ---


def huggingface(quick: bool, sizes: Sizes | None = None) -> Iterator[Result]:
    """`generate()` with a static cache, the forward pass as it is, and, if there is time, compiled."""
    sizes = sizes or Sizes(tokens=64 if quick else 128, pairs=4 if quick else 10)
    yield row("decode: generate(), static cache", partial(generating, sizes, compiled=False))


def huggingface_compiled(quick: bool) -> Iterator[Result]:
    sizes = Sizes(tokens=64 if quick else 128, pairs=4 if quick else 12)
    yield row("decode: generate(), static cache, compiled", partial(generating, sizes, compiled=True))


def generating(sizes: Sizes, compiled: bool) -> Result:
    """Throughput of `generate()` over random weights, with a guard attached and without."""
    from thinkguard.hf import ThinkLogitsProcessor

    tok, lm = tokenizer(sizes.width), model(sizes)
    guard = ThinkLogitsProcessor(tok, vocab_size=sizes.width, max_thinking_tokens=sizes.budget)
    assert guard.program.format.name, "no format was detected"
    prompts = [prompt_of(tok, i) for i in range(sizes.batch)]
    ids = torch.tensor(prompts, device=sizes.device)
    options = dict(
        max_new_tokens=sizes.tokens, do_sample=False, cache_implementation="static", disable_compile=not compiled,
        eos_token_id=None, pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    lm.generation_config.eos_token_id = None  # every run has all of its tokens

    def unguarded() -> Any:
        output = lm.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return output[:, ids.shape[1] :].tolist()  # waits for the device

    def guarded() -> Any:
        with guard.attach(lm):
            return unguarded()

    free, held = unguarded(), guarded()  # compiles
    unguarded(), guarded()
    found = paired({"unguarded": unguarded, "guarded": guarded}, sizes.pairs, sizes.batch * sizes.tokens)
    again = guarded()
    for prompt, output in zip(prompts, again, strict=True):
        assert len(output) == sizes.tokens, len(output)
        check_output(guard, sizes, prompt, output)
    num_parameters = sum(parameter.numel() for parameter in lm.parameters())
    shape = {"parameters": num_parameters, "batch": sizes.batch, "tokens": sizes.tokens, "width": sizes.width}
    changed = sum(a != b for a, b in zip(free, held, strict=True))
    return shape | {"outputs that the guard changed": changed, "same again": again == held, **found}


# --- vLLM ---


def vllm(quick: bool, sizes: Sizes | None = None, **options: Any) -> Iterator[Result]:
    """vLLM's offline engine, with the processor and without, both alive, sampled and greedy."""
    sizes = sizes or Sizes(batch=128, tokens=256, pairs=4 if quick else 10)
    what = "decode: vLLM, temperature {}"
    engines: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        started = row("engines", partial(_start, engines, Path(folder), sizes, options))
        for temperature in (0.6,) if quick else (0.6, 0.0):
            if engines:
                yield row(what.format(temperature), partial(serving, engines, sizes, temperature))
            else:
                yield {**started, "what": what.format(temperature)}


def _start(engines: dict[str, Any], folder: Path, sizes: Sizes, options: dict[str, Any]) -> Result:
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
    try:
        from vllm import LLM

        from thinkguard.vllm import ThinkLogitsProcessor
    except ImportError as error:
        raise NotMeasured(f"no vLLM: {error}") from None
    except Exception as error:
        if type(error).__name__ != "UnsupportedError":
            raise
        raise NotMeasured(str(error)) from None
    tok, lm = tokenizer(sizes.width), model(sizes)
    lm.save_pretrained(folder)
    tok.save_pretrained(folder)
    del lm
    if sizes.device == "cuda":
        torch.cuda.empty_cache()
    shared = dict(
        model=str(folder), dtype=str(sizes.dtype).removeprefix("torch."), max_model_len=1024, max_num_seqs=sizes.batch,
        seed=0, gpu_memory_utilization=0.3, **options,
    )  # fmt: skip
    guard = {"thinkguard": {"max_thinking_tokens": sizes.budget}}
    unguarded = LLM(**shared)
    name = f"{ThinkLogitsProcessor.__module__}:{ThinkLogitsProcessor.__name__}"
    guarded = LLM(logits_processors=[name], additional_config=guard, **shared)
    engines.update(unguarded=unguarded, guarded=guarded, tokenizer=tok)
    return {}


def serving(engines: dict[str, Any], sizes: Sizes, temperature: float) -> Result:
    """Throughput of both engines over the same prompts.

    vLLM copies a step's logits to float32 as soon as a request edits or scales them: at temperature 0.6 for both engines,
    in a greedy step for the guarded one alone.
    """
    from vllm import SamplingParams

    tok = engines["tokenizer"]
    prompts = [prompt_of(tok, i) for i in range(sizes.batch)]
    params = SamplingParams(max_tokens=sizes.tokens, ignore_eos=True, temperature=temperature, seed=None)

    def run(engine: Any) -> list[list[int]]:
        outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    runs = {name: partial(run, engines[name]) for name in ("unguarded", "guarded")}
    for name in (*runs, *runs):
        runs[name]()
    found = paired(runs, sizes.pairs, sizes.batch * sizes.tokens)
    end = tok.convert_tokens_to_ids("</think>")
    for output in runs["guarded"]():
        assert len(output) == sizes.tokens, len(output)
        assert output.count(end) == 1, output
        assert output.index(end) <= sizes.budget + 8, output
    return {"requests": sizes.batch, "tokens": sizes.tokens, "width": sizes.width, **found}
