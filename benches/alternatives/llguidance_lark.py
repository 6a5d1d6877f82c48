"""llguidance with a Lark grammar of `[max_tokens=N]`, its masks filled and applied by llguidance, as SGLang does.

Where the marker is a token, the grammar ends the thinking with that token. Where it is text, no grammar was found that says
"at most N tokens, then the marker, unless it came by itself". What its documentation has for a marker that is a string is
taken, `suffix=`, which leaves the marker out at the limit; `stop=` wants the host to take tokens back, and a lexeme that
excludes the marker cannot be followed by it before the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import llguidance
import llguidance.hf
import llguidance.torch
import torch

from benches.alternatives.alternative import started
from benches.setting import Request, Setting


class LlguidanceLark:
    """A grammar for each request."""

    version = llguidance.__version__
    path = (
        "sglang/srt/constrained/llguidance_backend.py accept_token -> LLMatcher.consume_tokens, "
        ":79 fill_next_token_bitmask_par, apply_vocab_mask -> llguidance.torch.apply_token_bitmask_inplace"
    )
    cannot: ClassVar[dict[str, str]] = {
        "message": "a rule's end does not say whether the model or the limit came to it",
        "utf-8": "its limit counts tokens, wherever they cut a character",
        "text markers": "a token limit and a natural end in text do not go into one grammar",
    }

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.tokenizer = llguidance.hf.from_tokenizer(setting.tokenizer, setting.width)  # EOS is the tokenizer's, as in vLLM
        self.executor = llguidance.LLExecutor(1)  # as many threads as torch has here
        self.templates: dict[tuple[int, bool], llguidance.LLMatcher] = {}

    def grammar(self, limit: int, opened: bool) -> str:
        """Thinking of so many tokens, its end, and an answer without markers."""
        setting = self.setting
        no_marker = r"/(?s:.*)/ & ~/(?s:.*)<\/?think>(?s:.*)/"
        answer = f"answer: NO_MARKER\nNO_MARKER: {no_marker}\n"
        if setting.has_marker_tokens:
            start, end = setting.start, setting.end
            thinking = f"thinking[max_tokens={limit}]: NO_MARKER\n" if limit else ""
            body = f"{'thinking ' if limit else ''}{end}"
        else:
            start, end = f'"{setting.start}"', f'"{setting.end}"'
            body = "thinking"
            thinking = f"thinking[suffix={end}, max_tokens={limit}]: /(?s:.*)/\n"
            if not limit:
                body, thinking = end, ""
        opening = "" if opened else start
        again = f"({start} {body} answer)?" * (setting.max_blocks - 1)
        return f"%llguidance {{}}\nstart: {opening} {body} answer {again}\n{thinking}{answer}"

    def matcher(self, request: Request) -> llguidance.LLMatcher:
        """Start a request, what it generated included: a copy of what its grammar was compiled to, as in SGLang."""
        key = request.budget, self.setting.opened(request)
        if key not in self.templates:
            self.templates[key] = llguidance.LLMatcher(self.tokenizer, self.grammar(*key), log_level=0)
            assert not self.templates[key].is_error(), self.templates[key].get_error()
        matcher = self.templates[key].deep_copy()
        if request.output:
            assert matcher.consume_tokens(request.output), matcher.get_error()
        return matcher

    def start(self, requests: Sequence[Request]) -> LlguidanceBatch:
        """Admit requests."""
        return LlguidanceBatch(self, requests)


class LlguidanceBatch:
    """Matchers and one mask."""

    def __init__(self, how: LlguidanceLark, requests: Sequence[Request]) -> None:
        self.how = how
        self.matchers = started(requests, how.matcher, lambda matcher: matcher.deep_copy())
        self.mask = llguidance.torch.allocate_token_bitmask(len(requests), how.setting.width)
        self.refused: dict[int, str] = {}

    def step(self, sampled: Sequence[int] | None, logits: torch.Tensor) -> None:
        """Consume tokens, fill the mask, apply it."""
        if sampled is not None:
            for row, (matcher, token) in enumerate(zip(self.matchers, sampled, strict=True)):
                if not matcher.is_stopped() and not matcher.consume_token(token):
                    self.refused.setdefault(row, matcher.get_error())
        self.mask.fill_(-1)
        rows = [(matcher, row) for row, matcher in enumerate(self.matchers) if not matcher.is_stopped()]
        if rows:
            llguidance.torch.fill_next_token_bitmask_par(self.how.executor, rows, self.mask)
        llguidance.torch.apply_token_bitmask_inplace(logits, self.mask)

    def resume(self, row: int, request: Request) -> None:
        """The matcher lives with the request in the scheduler: it takes each token when it is sampled, and stays."""
        if not self.matchers[row].consume_token(request.output[-1]):
            self.refused.setdefault(row, self.matchers[row].get_error())
