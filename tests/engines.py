"""vLLM's engines on a CPU, for tests."""

import gc
import os
from contextlib import contextmanager

import interpreted  # noqa: F401  before vllm
import pytest
import torch
import triton

pytest.importorskip("vllm", reason="the engine tests need vllm, which is not installed")

THINK = "thinkguard.vllm:ThinkLogitsProcessor"


@contextmanager
def engine(model, *, v2, thinkguard=None, processors=(THINK,), **options):
    """An offline engine on one of the two runners; `thinkguard` is the server's configuration."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(v2))
    _speed_up()
    options = {"max_model_len": 512, "max_num_seqs": 8, "enforce_eager": True, "dtype": "float32", "seed": 0} | options
    if thinkguard is not None:
        options["additional_config"] = {"thinkguard": thinkguard}
    llm = LLM(str(model), logits_processors=list(processors), **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


class _WholeRows:
    """V2's sampling kernel, one program for each row of logits in place of one for each 1,024 of them."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(local_argmax, argmax_stride, local_max, *rest, BLOCK_SIZE, **options):
            local_max.fill_(-float("inf"))
            whole = triton.next_power_of_2(grid[1] * BLOCK_SIZE)
            self.kernel[(grid[0], 1)](local_argmax, argmax_stride, local_max, *rest, BLOCK_SIZE=whole, **options)

        return launch


def _speed_up():
    """Spare the interpreter what has nothing to do with us: V1's only kernel, and V2's sampling in small blocks."""
    from vllm.triton_utils.dispatcher import KernelOverride
    from vllm.utils.cpu_triton_utils import _compute_slot_mapping_kernel_impl
    from vllm.v1.worker.block_table import ComputeSlotMappingKernel
    from vllm.v1.worker.gpu.sample import gumbel

    if not isinstance(gumbel._gumbel_sample_kernel, _WholeRows):
        gumbel._gumbel_sample_kernel = _WholeRows(gumbel._gumbel_sample_kernel)
        native = KernelOverride(ComputeSlotMappingKernel.kernel, _compute_slot_mapping_kernel_impl)
        ComputeSlotMappingKernel.kernel = native  # as vLLM does itself on a CPU without Triton


def checkpoint(folder, tokenizer_dir, vocab_size, *, layers=2, seed=0, scale=1.0):
    """A small Qwen3 with random weights and a real tokenizer; saved in `folder`."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab_size, hidden_size=64, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=40960, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
