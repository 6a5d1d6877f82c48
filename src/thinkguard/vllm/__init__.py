"""The guard in vLLM: `--logits-processors thinkguard.vllm:ThinkLogitsProcessor`, on either model runner."""

from thinkguard.vllm.processor import ThinkLogitsProcessor

__all__ = ["ThinkLogitsProcessor"]
