"""SGLang's thinking-budget logits processor, through SGLang's own `apply_custom_logit_processor`.

A request reaches it as an object with `origin_input_ids` and `output_ids`, arrays as SGLang keeps them. SGLang's scheduler
may run a step ahead of `output_ids` (overlap scheduling); here they are always up to date, the best case.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch

from benches.alternatives import sglang_source
from benches.alternatives.alternative import Cannot
from benches.setting import Request, Setting

_FAMILIES: Final = ("Glm4Moe", "Qwen3", "DeepSeekR1", "Inkling")


@dataclass(eq=False)  # as objects of SGLang's Req are compared
class Req:
    """What the processor reads of a request."""

    origin_input_ids: array[int]
    output_ids: array[int]


@dataclass
class Entry:
    """sglang/srt/sampling/sampling_batch_info.py:42"""

    processor: object
    rows: list[int]
    indices: torch.Tensor


class Info:
    """What apply_custom_logit_processor reads of a SamplingBatchInfo."""

    device = torch.device("cpu")

    def __init__(self, entry: Entry, params: list[dict[str, Any]]) -> None:
        self.custom_logit_processor, self.custom_params = {0: entry}, params

    def __len__(self) -> int:
        return len(self.custom_params)


class SglangProcessor:
    """The subclass that SGLang has for the vocabulary, or one made as its documentation says."""

    version = sglang_source.version()
    path = "sglang/srt/layers/sampler.py:144 and :1019 apply_custom_logit_processor -> sampling/custom_logit_processor.py:93"
    cannot: ClassVar[dict[str, str]] = {
        "text markers": "its markers are one token id each",
        "message": "it forces a newline and the end marker, nothing else",
        "ban EOS": "EOS is not its business",
        "one block": "the budget is per block; a new block is allowed",
        "spelled end": "it looks for token ids, whatever plain tokens spell",
        "utf-8": "it knows tokens, not their bytes",
    }

    def __init__(self, setting: Setting) -> None:
        if not setting.has_marker_tokens:
            raise Cannot(self.cannot["text markers"])
        module = sglang_source.custom_logit_processor()
        ids = (setting.start_ids[0], setting.end_ids[0], setting.encode("\n")[-1])
        own = [getattr(module, f"{family}ThinkingBudgetLogitProcessor") for family in _FAMILIES]
        names = ("THINKING_START_TOKEN_ID", "THINKING_END_TOKEN_ID", "NEW_LINE_TOKEN_ID")
        fitting = [cls for cls in own if tuple(getattr(cls, name) for name in names) == ids]
        made = type("ThinkingBudget", (module.ThinkingBudgetLogitProcessor,), dict(zip(names, ids, strict=True)))
        self.processor = (fitting[0] if fitting else made)()
        self.apply = sglang_source.function(
            "sglang/srt/layers/sampler.py", "apply_custom_logit_processor", torch=torch, logger=logging.getLogger(__name__)
        )

    def start(self, requests: Sequence[Request]) -> SglangBatch:
        """Admit requests."""
        return SglangBatch(self, requests)


class SglangBatch:
    """Requests with their custom parameters."""

    def __init__(self, how: SglangProcessor, requests: Sequence[Request]) -> None:
        self.how = how
        self.reqs = [Req(request.ids, array("q", request.output)) for request in requests]
        num = len(requests)
        params = [{"thinking_budget": one.budget, "__req__": req} for one, req in zip(requests, self.reqs, strict=True)]
        self.info = Info(Entry(how.processor, list(range(num)), torch.arange(num)), params)

    def step(self, sampled: Sequence[int] | None, logits: torch.Tensor) -> None:
        """Append tokens, and call SGLang."""
        if sampled is not None:
            for req, token in zip(self.reqs, sampled, strict=True):
                req.output_ids.append(token)
        self.how.apply(logits, self.info)

    def resume(self, row: int, request: Request) -> None:
        """A retracted request keeps both arrays (schedule_batch.py:2049 Req.reset_for_retract): nothing is lost."""
        self.reqs[row].output_ids.extend(request.output[len(self.reqs[row].output_ids) :])
