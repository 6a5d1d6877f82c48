"""Whether a prompt that ends without a marker thinks: what a chat template shows when it is told to think, and not to.

Many templates open the reasoning, or write an empty block, in every prompt; others leave a prompt as it is, behind a tool's
result at least, and say it in the system message or nowhere at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from thinkguard.formats.format import ThinkFormat
from thinkguard.formats.renders import ECHO, RESULT, SYSTEM, TOGGLES, USER, Renders, label_of

_LEAST: Final = 48  # characters of a text that says that thinking is on, where it is the beginning of a longer line
_SAID: Final = (USER, SYSTEM, RESULT)

Prompts = list[tuple[str, str]]
"""(situation, whole prompt)"""


def with_silence(format: ThinkFormat, renders: Renders, added: Iterable[str]) -> ThinkFormat:
    """Say of a format what the renders show of a prompt that ends without a marker; without renders it stays as it is."""
    if not any(renders.chats.values()):
        return format
    texts = _on_texts(format, renders, [content for content in added if content.strip()])
    if texts is None or not format.evidence:
        return replace(format, on_texts=texts)
    shown = f"thinks only if it holds {', '.join(map(repr, texts))}" if texts else "may be one that is not to think"
    evidence = (*format.evidence, f"a prompt that ends without a marker {shown}")
    return replace(format, on_texts=texts, evidence=evidence)


def _on_texts(format: ThinkFormat, renders: Renders, added: list[str]) -> tuple[str, ...] | None:
    """`ThinkFormat.on_texts` of a template that was rendered."""
    on, off = _told(renders.chats)
    if not any(_is_silent(format, prompt) for _, prompt in off):
        return None
    others = [prompt for _, prompt in off]
    texts: list[str] = []
    for _, prompt in on:
        if _is_silent(format, prompt) and not any(text in prompt for text in texts):
            text = _shown(prompt, others, added)
            texts += [] if text is None else [text]
    return tuple(texts)


def _told(chats: Mapping[str, Mapping[str, str]]) -> tuple[Prompts, Prompts]:
    """Return the prompts in which thinking was turned on, and the others; both empty where no switch has an effect.

    What a template writes by default is on if it is what one of the switches writes, and so is off; if it is neither, the
    template leaves the choice to the model. A prompt that comes of on and of off shows nothing.
    """
    on: Prompts = []
    off: Prompts = []
    for turns_on, turns_off in TOGGLES:
        labels = label_of(turns_on), label_of(turns_off)
        if any(_has_effect(prompts, *labels) and not _echoes(turns_off, prompts) for prompts in chats.values()):
            told_on, told_off = ([(place, p[label]) for place, p in chats.items() if label in p] for label in labels)
            on += told_on
            off += told_off
    by_default = [(place, prompts[label_of({})]) for place, prompts in chats.items() if label_of({}) in prompts]
    off += [chat for chat in by_default if off and chat not in on]
    return [chat for chat in on if chat not in off], off


def _has_effect(prompts: Mapping[str, str], on: str, off: str) -> bool:
    """Whether a template that takes both switches writes something else for the one than for the other."""
    return on in prompts and off in prompts and prompts[on] != prompts[off]


def _echoes(switch: Mapping[str, Any], prompts: Mapping[str, str]) -> bool:
    """Whether a template writes down whatever a switch says, as "Reasoning: none": that turns nothing off."""
    ((name, value),) = switch.items()
    return prompts.get(label_of({name: ECHO}), "").replace(ECHO, str(value)) == prompts[label_of(switch)]


def _is_silent(format: ThinkFormat, prompt: str) -> bool:
    """Whether a prompt ends in no marker, with no more than white space behind it."""
    ends = (*format.starts, *format.ends, *format.answer_starts, *([format.off_text] if format.off_text else []))
    return not prompt.rstrip().endswith(tuple(text.rstrip() for text in ends))


def _shown(prompt: str, others: list[str], added: list[str]) -> str | None:
    """Return a text that the prompt holds and no other one does: an added token, for people write none, else a line."""

    def is_own(text: str) -> bool:
        return bool(text) and not any(text in other for other in others) and not any(word in text for word in _SAID)

    tokens = [content for content in added if content in prompt and is_own(content)]
    if tokens:
        return max(tokens, key=len)
    parted = re.split("|".join(["\n", *map(re.escape, sorted(added, key=len, reverse=True))]), prompt)
    line = max(filter(is_own, map(str.strip, parted)), default=None, key=len)
    if line is None:
        return None
    heads = (line[: match.start()] for match in re.finditer(" ", line) if match.start() >= _LEAST)
    return next(filter(is_own, heads), line)
