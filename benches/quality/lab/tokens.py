"""Markers as single tokens: the model that thinks in text tags, given a token for each and taught to use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from benches.quality.lab.teach import teach
from benches.quality.tasks.draw import Shown

MARKERS: Final = ("<think>", "</think>")


def with_tokens(model: Any, tokenizer: Any) -> Any:
    """Add the markers to the tokenizer in place; return the model with rows for them, its logits' weights its own.

    Read, a marker begins as the mean of the tokens that spell it; written, as the first of these, with which the model would
    have begun it.
    """
    import torch
    from tokenizers import AddedToken
    from transformers import LlamaConfig, LlamaForCausalLM

    pieces = [tokenizer.encode(marker, add_special_tokens=False) for marker in MARKERS]
    tokenizer.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in MARKERS])
    fields = model.config.to_dict() | {"vocab_size": len(tokenizer), "tie_word_embeddings": False}
    state = model.state_dict()
    read, written = state["model.embed_tokens.weight"], state["lm_head.weight"]
    state["model.embed_tokens.weight"] = torch.cat([read, torch.stack([read[ids].mean(0) for ids in pieces])])
    state["lm_head.weight"] = torch.cat([written, torch.stack([written[ids[0]] for ids in pieces])])
    grown = LlamaForCausalLM(LlamaConfig(**fields))
    grown.load_state_dict(state)
    return grown.eval()


def teach_tokens(model: Any, tokenizer: Any, examples: Sequence[Shown], *, passes: int, rate: float) -> str:
    """Teach the model in place to read and write the markers as tokens; returns a line that says how it went."""
    learning = tokenizer.convert_tokens_to_ids(list(MARKERS))
    return teach(model, tokenizer, examples, passes=passes, rate=rate, learning=learning, seed=1)
