"""Decode throughput of a guarded model beside the same one unguarded: `generate()`, and vLLM's offline engine.

The model is a Qwen3 of 0.6 billion random weights with a vocabulary of real width; its thinking is cut by the budget near
the end of every run, so that the guard is seen to work in the runs that are timed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benches.gpu.common import Sizes, imported
from benches.measuring import by_clock, pairs
from benches.setting import Setting
from thinkguard import ThinkPolicy

pytestmark = by_clock("gpu")
ASKED = 1.005
"""Seconds of guarded runs over those of unguarded ones, at most: what the project set out for."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}  # fmt: skip
Outputs = list[list[int]]


@dataclass(frozen=True)
class Load:
    """A model and how long it runs; tests have little of everything."""

    batch: int = 32
    tokens: int = 128
    pairs: int = 10
    hidden: int = 1024
    layers: int = 28
    heads: int = 16
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16

    @property
    def budget(self) -> int:
        return self.tokens * 3 // 4


@pytest.fixture(scope="module")
def load(sizes: Sizes) -> Load:
    return Load(tokens=sizes.tokens, pairs=sizes.pairs, device=sizes.device)


@pytest.fixture(scope="module")
def served(load: Load) -> Load:
    """What engines, which batch more, are given."""
    return replace(load, batch=4 * load.batch, tokens=2 * load.tokens)


@pytest.fixture(scope="module")
def setting(setting_of: Callable[[int], Setting], sizes: Sizes) -> Setting:
    return setting_of(sizes.width)


@pytest.fixture(scope="module")
def lm(load: Load, setting: Setting) -> Any:
    pytest.importorskip("transformers", reason="the model is transformers'")
    return model(load, setting)


@pytest.fixture(scope="module")
def engines_of(served: Load, setting: Setting, lm: Any, tmp_path_factory: Any) -> Iterator[Callable[[], dict[str, Any]]]:
    """Return a function that starts vLLM's engines, each in processes of its own; it is called where there is vLLM."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield cache(partial(engines, stack, tmp_path_factory.mktemp("served") / "model", served, setting, lm))


@pytest.mark.parametrize("compiled", [False, True], ids=["as it is", "compiled"])
def test_generate(benchmark: Any, load: Load, setting: Setting, lm: Any, compiled: bool) -> None:
    generate_in_pairs(benchmark, load, setting, lm, compiled=compiled)
    benchmark.extra_info.update({"host": "generate()", "compiled": compiled})


@pytest.mark.parametrize("temperature", [0.6, 0.0])
def test_vllm(
    request: pytest.FixtureRequest, benchmark: Any, served: Load, setting: Setting, engines_of: Any, temperature: float
) -> None:
    """vLLM copies a step's logits to float32 as soon as a request edits or scales them.

    At temperature 0.6 it does so for both engines, in a greedy step for the guarded one alone.
    """
    about = {"host": "vLLM V2", "temperature": temperature}
    imported(request, "thinkguard.vllm", **about)
    serve_in_pairs(benchmark, served, setting, engines_of(), temperature)
    benchmark.extra_info.update(about)


def model(load: Load, setting: Setting) -> Any:
    """A Qwen3 with random weights; EOS does not end what it generates."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=setting.width, hidden_size=load.hidden, intermediate_size=3 * load.hidden,
        num_hidden_layers=load.layers, num_attention_heads=load.heads, num_key_value_heads=max(load.heads // 2, 1),
        head_dim=load.hidden * 2 // load.heads, max_position_embeddings=4096, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=setting.eos_ids[0], pad_token_id=setting.eos_ids[0],
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(load.device):
        made = Qwen3ForCausalLM(config).to(load.dtype).eval()
    made.generation_config.eos_token_id = None
    return made


def engines(stack: ExitStack, folder: Path, load: Load, setting: Setting, lm: Any, **options: Any) -> dict[str, Any]:
    """Start an engine without the guard, and one with it."""
    from vllm import LLM

    shutil.copytree(setting.folder, folder)
    lm.save_pretrained(folder)
    shared = dict(
        model=str(folder), dtype=str(load.dtype).removeprefix("torch."), max_model_len=1024, max_num_seqs=load.batch,
        seed=0, gpu_memory_utilization=0.3, **options,
    )  # fmt: skip
    guard = {"format": "think", "max_thinking_tokens": load.budget}
    ours = {"logits_processors": ["thinkguard.vllm:ThinkLogitsProcessor"], "additional_config": {"thinkguard": guard}}
    found = {}
    for name, more in (("unguarded", {}), ("guarded", ours)):
        found[name] = LLM(**shared, **more)
        stack.callback(found[name].llm_engine.engine_core.shutdown)
    return found


def prompts_of(load: Load, setting: Setting) -> list[list[int]]:
    chat = "<|im_start|>user\nQuestion {:04d}: how are you?<|im_end|>\n<|im_start|>assistant\n" + setting.start + "\n"
    return [setting.encode(chat.format(number)) for number in range(load.batch)]


def generate_in_pairs(benchmark: Any, load: Load, setting: Setting, lm: Any, *, compiled: bool) -> None:
    """Benchmark `generate()` with a static cache."""
    from thinkguard.hf import ThinkLogitsProcessor

    guard = ThinkLogitsProcessor(setting.program, max_thinking_tokens=load.budget)
    prompts = prompts_of(load, setting)
    ids = torch.tensor(prompts, device=load.device)
    options = dict(
        max_new_tokens=load.tokens, do_sample=False, cache_implementation="static", disable_compile=not compiled,
        pad_token_id=setting.eos_ids[0],
    )  # fmt: skip

    def unguarded(number: int) -> Outputs:
        outputs: Outputs = lm.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, ids.shape[1] :].tolist()
        return outputs  # which waits for the device

    def guarded(number: int) -> Outputs:
        with guard.attach(lm):
            return unguarded(number)

    found = in_pairs(benchmark, load, setting, prompts, {"unguarded": unguarded, "guarded": guarded})
    assert bool(guard.binding.device_tables) == (load.device != "cpu"), "the kernels were not used"
    free, held = found["unguarded"][0], found["guarded"][0]
    benchmark.extra_info |= {
        "parameters": sum(parameter.numel() for parameter in lm.parameters()),
        "outputs that the guard changed": sum(a != b for a, b in zip(free, held, strict=True)),
        "same again": all(again == held for again in found["guarded"]),
    }


def serve_in_pairs(benchmark: Any, load: Load, setting: Setting, running: Mapping[str, Any], temperature: float) -> None:
    """Benchmark engines over the same prompts."""
    from vllm import SamplingParams

    prompts = prompts_of(load, setting)
    params = SamplingParams(max_tokens=load.tokens, ignore_eos=True, temperature=temperature, seed=None)

    def asked(engine: Any, number: int) -> Outputs:
        outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    in_pairs(benchmark, load, setting, prompts, {name: partial(asked, engine) for name, engine in running.items()})


def in_pairs(
    benchmark: Any, load: Load, setting: Setting, prompts: Sequence[list[int]], runs: Mapping[str, Callable[[int], Outputs]]
) -> dict[str, list[Outputs]]:
    """Benchmark "guarded" beside "unguarded". Returns the outputs of every run; all of them were checked."""
    found: dict[str, list[Outputs]] = {name: [] for name in runs}

    def check(name: str, outputs: Outputs) -> None:
        found[name].append(outputs)
        for prompt, output in zip(prompts, outputs, strict=True):
            assert len(output) == load.tokens, len(output)
            if name == "guarded":
                check_closed(load, setting, prompt, output)

    pairs(benchmark, runs, check, load.pairs)
    benchmark.extra_info |= {"batch": load.batch, "tokens": load.batch * load.tokens, "width": setting.width, "asked": ASKED}
    return found


def check_closed(load: Load, setting: Setting, prompt: list[int], output: list[int]) -> None:
    """The thinking was closed, once, within its budget."""
    (eos,), (end,) = setting.eos_ids, setting.end_ids
    said = output[: output.index(eos) + 1] if eos in output else output
    policy = ThinkPolicy(max_thinking_tokens=load.budget)
    trace = setting.program.explain(prompt, said, policy, max_tokens=load.tokens)
    assert not trace.violations, trace
    assert trace.thinking_tokens <= load.budget, trace
    assert said.count(end) == 1, trace
