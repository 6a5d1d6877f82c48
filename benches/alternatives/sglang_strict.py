"""SGLang's strict thinking (`--enable-strict-thinking`, `max_thinking_tokens`): a wrapper that masks as grammars do.

Each step is the host's: the token accepted, a mask allocated, each row filled, the mask applied by xgrammar's CPU op.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import xgrammar

from benches.alternatives import sglang_source
from benches.alternatives.alternative import started
from benches.setting import Request, Setting


def _same(mask: torch.Tensor, device: object) -> torch.Tensor:
    return mask


class SglangStrict:
    """The wrapper without a grammar in it."""

    version = sglang_source.version()
    path = (
        "sglang/srt/managers/scheduler_components/batch_result_processor.py:865 accept_token; "
        "sampling/sampling_batch_info.py:382 update_regex_vocab_mask, :446 grammar_mask.apply; "
        "constrained/reasoner_grammar_backend.py:262 fill_vocab_mask; constrained/xgrammar_backend.py:130 apply_vocab_mask"
    )
    cannot: ClassVar[dict[str, str]] = {
        "message": "it forces the end marker's tokens, nothing before them",
        "one block": "behind the end nothing is masked",
        "second block": "behind the end nothing is masked",
        "utf-8": "it knows tokens, not their bytes",
        "spelled end": "it looks for token ids, whatever plain tokens spell",
        "unopened": "it takes the first output token for thinking, whether or not the thinking was opened",
    }

    def __init__(self, setting: Setting) -> None:
        self.object = sglang_source.reasoner_grammar().ReasonerGrammarObject
        self.filter, self.width, self.end_ids = sglang_source.token_filter(), setting.width, setting.end_ids
        parser = "sglang/srt/parser/reasoning_parser.py"
        names = sglang_source.literal(parser, "Qwen3Detector", "think_excluded_tokens")
        spelled = [setting.encode(name) for name in names]
        # Where the qwen3 parser's markers are no tokens it does not fit: deepseek-r1's does, without exclusions, and
        # then SGLANG_MAX_THINK_TOKENS has to be set, else a request's budget is not looked at.
        self.excluded = [ids[0] for ids in spelled] if all(len(ids) == 1 for ids in spelled) else None

    def _allocate(self, vocab_size: int, batch_size: int, device: object) -> torch.Tensor:
        shape = xgrammar.get_bitmask_shape(batch_size, vocab_size)
        return torch.full(shape, -1, dtype=xgrammar.bitmask_dtype)  # xgrammar_backend.py:66, without a GPU nothing is pinned

    @staticmethod
    def _apply(logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
        xgrammar.apply_token_bitmask_inplace(logits, vocab_mask, backend="cpu")

    def grammar(self, request: Request) -> Any:
        """Start a request, what it generated included."""
        made = self.object(
            None, self.end_ids, self.excluded, request.budget, True, self.filter, self._allocate, _same, self._apply
        )
        made.maybe_init_reasoning(True)
        for token in request.output:
            made.accept_token(token)
        return made

    def start(self, requests: Sequence[Request]) -> SglangStrictBatch:
        """Admit requests."""
        return SglangStrictBatch(self, requests)


class SglangStrictBatch:
    """Wrappers, one for each request."""

    def __init__(self, how: SglangStrict, requests: Sequence[Request]) -> None:
        self.how = how
        self.grammars = started(requests, how.grammar, lambda grammar: grammar.copy())

    def step(self, sampled: Sequence[int] | None, logits: torch.Tensor) -> None:
        """Accept tokens, fill the mask, apply it."""
        if sampled is not None:
            for grammar, token in zip(self.grammars, sampled, strict=True):
                grammar.accept_token(token)
        first = self.grammars[0]
        mask = first.allocate_vocab_mask(vocab_size=self.how.width, batch_size=len(self.grammars), device="cpu")
        entries = [(row, g) for row, g in enumerate(self.grammars) if not g.finished and not g.is_terminated()]
        for row, grammar in entries:  # BaseGrammarObject.fill_vocab_mask_batched
            grammar.fill_vocab_mask(mask, row)
        mask = first.move_vocab_mask(mask, "cpu")
        first.apply_vocab_mask(logits=logits, vocab_mask=mask)

    def resume(self, row: int, request: Request) -> None:
        """The wrapper stays with a retracted request; it takes each token when it is sampled."""
        self.grammars[row].accept_token(request.output[-1])
