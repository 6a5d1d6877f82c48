"""The laboratory: real models that `make lab` of a checkout prepares in the user's cache, and how they are asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

STORY_MODEL: Final = "think-text"
"""The model that the demonstration tells its story with."""
STORY_FILES: Final = ("stamp", "records.jsonl", "questions.json", "model.safetensors")


def folder() -> Path:
    """The laboratory's folder, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "thinkguard" / "lab"


def has_story() -> bool:
    """Whether the demonstration's real model is there, with its records and questions."""
    return all((folder() / STORY_MODEL / name).is_file() for name in STORY_FILES)


def generate(
    model: Any, prompts: Sequence[Sequence[int]], pad: int, max_new_tokens: int, **arguments: Any
) -> list[list[int]]:
    """Answer prompts of any length in one batch, greedily; returns the output ids of each, up to and with its EOS `pad`."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, **arguments
        )
    outputs: list[list[int]] = out[:, width:].tolist()
    return [output[: output.index(pad) + 1] if pad in output else output for output in outputs]
