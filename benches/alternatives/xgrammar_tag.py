"""xgrammar's structural tag with `any_text(max_tokens=...)`, its masks filled and applied by xgrammar, as vLLM V1 does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from typing import Any, ClassVar

import torch
import xgrammar

from benches.alternatives.alternative import started
from benches.setting import Request, Setting


class XgrammarTag:
    """A structural tag for each request."""

    version = metadata.version("xgrammar")
    path = (
        "vllm/v1/structured_output/backend_xgrammar.py:200 accept_token, :242 fill_next_token_bitmask; "
        "vllm/v1/structured_output/utils.py:191 apply_token_bitmask_inplace"
    )
    cannot: ClassVar[dict[str, str]] = {
        "message": "a tag's end does not say whether the model or the limit came to it",
        "utf-8": "its limit counts tokens, wherever they cut a character",
    }

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        info = xgrammar.TokenizerInfo.from_huggingface(
            setting.tokenizer, vocab_size=setting.width, stop_token_ids=setting.eos_ids
        )
        self.tags: dict[tuple[int, bool], str] = {}
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=8, cache_enabled=True)

    def tag(self, request: Request) -> str:
        """What a request brings; the compiler knows it when it comes again."""
        key = request.budget, self.setting.opened(request)
        if key not in self.tags:
            self.tags[key] = self._tag(*key)
        return self.tags[key]

    def _tag(self, budget: int, opened: bool) -> str:
        """Thinking of so many tokens without markers in it, its end, and an answer without markers.

        Where markers are tokens they are matched as tokens: as text, the end could also be spelled out in plain tokens.
        """
        setting = self.setting
        markers = [setting.start, setting.end]
        answer = {"type": "any_text", "excludes": markers}

        def marker(text: str) -> str | dict[str, str]:
            return {"type": "token", "token": text} if text and setting.has_marker_tokens else text

        def block(begin: str) -> dict[str, Any]:
            content = {"type": "any_text", "excludes": markers, "max_tokens": budget}
            return {"type": "tag", "begin": marker(begin), "content": content, "end": marker(setting.end)}

        elements = [block("" if opened else setting.start), answer]
        for _ in range(1, setting.max_blocks):
            again = {"type": "sequence", "elements": [block(setting.start), answer]}
            elements.append({"type": "optional", "content": again})
        return json.dumps({"type": "structural_tag", "format": {"type": "sequence", "elements": elements}})

    def matcher(self, request: Request) -> xgrammar.GrammarMatcher:
        """Start a request, what it generated included."""
        matcher = xgrammar.GrammarMatcher(self.compiler.compile_structural_tag(self.tag(request)))
        for token in request.output:
            assert matcher.accept_token(token), f"{self.setting.decode([token])!r} is refused"
        return matcher

    def start(self, requests: Sequence[Request]) -> XgrammarBatch:
        """Admit requests."""
        return XgrammarBatch(self, requests)


class XgrammarBatch:
    """Matchers and one mask."""

    def __init__(self, how: XgrammarTag, requests: Sequence[Request]) -> None:
        self.how = how
        self.matchers = started(requests, how.matcher, lambda matcher: matcher.fork())
        self.mask = xgrammar.allocate_token_bitmask(len(requests), how.setting.width)
        self.refused: dict[int, int] = {}  # row: token that the matcher did not take; vLLM then fails the request

    def step(self, sampled: Sequence[int] | None, logits: torch.Tensor) -> None:
        """Accept tokens, fill the mask, apply it."""
        if sampled is not None:
            for row, (matcher, token) in enumerate(zip(self.matchers, sampled, strict=True)):
                if not matcher.is_terminated() and not matcher.accept_token(token):
                    self.refused.setdefault(row, token)
        for row, matcher in enumerate(self.matchers):
            if matcher.is_terminated():
                self.mask[row].fill_(-1)
            else:
                matcher.fill_next_token_bitmask(self.mask, row)
        xgrammar.apply_token_bitmask_inplace(logits, self.mask)

    def resume(self, row: int, request: Request) -> None:
        """The matcher lives with the request in the scheduler: it takes each token when it is sampled, and stays."""
        if not self.matchers[row].accept_token(request.output[-1]):
            self.refused.setdefault(row, request.output[-1])
