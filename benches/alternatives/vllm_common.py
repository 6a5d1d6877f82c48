"""vLLM's own configuration of reasoning, its token ids derived by vLLM itself."""

from __future__ import annotations

from types import SimpleNamespace

from vllm.config.reasoning import ReasoningConfig

from benches.setting import Setting


def reasoning_config(setting: Setting) -> ReasoningConfig:
    """`--reasoning-config` with both strings; with marker tokens also the parser, which names the natural end."""
    parser = "qwen3" if setting.has_marker_tokens else ""  # parsers refuse vocabularies without the tokens
    config = ReasoningConfig(
        reasoning_parser=parser, reasoning_start_str=setting.start, reasoning_end_str=setting.message + setting.end
    )
    model = SimpleNamespace(  # what cached_tokenizer_from_config reads of a ModelConfig
        tokenizer=str(setting.folder), runner_type="generate", tokenizer_mode="hf", tokenizer_revision=None,
        trust_remote_code=False, skip_tokenizer_init=False, hf_config=None,
    )  # fmt: skip
    config.initialize_token_ids(model)  # vllm/config/reasoning.py:76
    return config
