"""Where a reference such as "LLaMA-Factory #7080" leads."""

from __future__ import annotations

import re
from typing import Final

_REPOSITORIES: Final = {
    "1Cat-vLLM": "1CatAI/1Cat-vLLM",
    "Automodel": "NVIDIA-NeMo/Automodel",
    "axolotl": "axolotl-ai-cloud/axolotl",
    "DeepSeek-R1": "deepseek-ai/DeepSeek-R1",
    "functionary": "MeetKai/functionary",
    "gemma-cookbook": "google-gemini/gemma-cookbook",
    "Kimi-Dev": "MoonshotAI/Kimi-Dev",
    "koboldcpp": "LostRuins/koboldcpp",
    "LangChain": "langchain-ai/langchain",
    "LLaMA-Factory": "hiyouga/LlamaFactory",
    "llama.cpp": "ggml-org/llama.cpp",
    "lm-eval": "EleutherAI/lm-evaluation-harness",
    "lmdeploy": "InternLM/lmdeploy",
    "MiniMax-M2": "MiniMax-AI/MiniMax-M2",
    "minimind": "jingyaogong/minimind",
    "ms-swift": "modelscope/ms-swift",
    "NeMo Automodel": "NVIDIA-NeMo/Automodel",
    "ollama": "ollama/ollama",
    "omlx": "jundot/omlx",
    "open-instruct": "allenai/open-instruct",
    "open-r1": "huggingface/open-r1",
    "peft": "huggingface/peft",
    "prime-rl": "PrimeIntellect-ai/prime-rl",
    "Qwen3": "QwenLM/Qwen3",
    "Qwen3.8": "QwenLM/Qwen3.8",
    "SGLang": "sgl-project/sglang",
    "slime": "THUDM/slime",
    "TensorRT-LLM": "NVIDIA/TensorRT-LLM",
    "transformers": "huggingface/transformers",
    "TRL": "huggingface/trl",
    "unsloth": "unslothai/unsloth",
    "verl": "verl-project/verl",
    "vLLM": "vllm-project/vllm",
    "vllm-mlx": "waybarrios/vllm-mlx",
}
_THREAD: Final = re.compile(r"(?P<project>.+?) (?:PR )?#(?P<number>\d+)")
_PAPER: Final = re.compile(r"arXiv (?P<number>\d{4}\.\d{4,5})")


def link_of(reference: str) -> str | None:
    """Return the address of an issue, a pull request or a paper; `None` for what is none, or of an unknown project."""
    if paper := _PAPER.fullmatch(reference):
        return f"https://arxiv.org/abs/{paper['number']}"
    thread = _THREAD.fullmatch(reference)
    if thread is None or thread["project"] not in _REPOSITORIES:
        return None
    kind = "pull" if "PR #" in reference else "issues"
    return f"https://github.com/{_REPOSITORIES[thread['project']]}/{kind}/{thread['number']}"
