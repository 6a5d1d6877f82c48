"""The guard in Hugging Face `generate()`: `generate(logits_processor=[ThinkLogitsProcessor(tokenizer)])`, or attached."""

from thinkguard.hf.processor import ThinkLogitsProcessor

__all__ = ["ThinkLogitsProcessor"]
