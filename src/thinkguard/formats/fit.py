"""Give a format what a tokenizer's chat template shows: spelling, white space, header text, turn ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from thinkguard.errors import FormatError
from thinkguard.formats.format import DEFAULT_INNER, ThinkFormat
from thinkguard.formats.renders import ANSWER, REASONING, Renders, render
from thinkguard.formats.silence import with_silence
from thinkguard.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Found:
    """What the renders show about a pair of markers; None where they show nothing."""

    start: str | None = None
    end: str | None = None
    open_text: str | None = None
    close_text: str | None = None
    off_text: str | None = None
    header: str | None = None  # from the last user's words to the turn's own text
    opens: bool | None = None  # the default generation prompt ends inside the reasoning


def fit(format: ThinkFormat, vocabulary: Vocabulary, *, renders: Renders | None = None) -> ThinkFormat:
    """Fit a family that was named to a tokenizer: header text, turn ends and silence as its chat template writes them."""
    renders = renders_of(vocabulary, None) if renders is None else renders
    format = spelled(format, Found(), vocabulary.added)
    return with_silence(surrounded(format, read(format, renders).header, vocabulary, renders), renders, vocabulary.added)


def renders_of(vocabulary: Vocabulary, chat_template: str | None) -> Renders:
    """Render the given chat template, or the vocabulary's own; without one there is nothing in the result."""
    source = vocabulary.chat_template if chat_template is None else chat_template
    if not source:
        return Renders("")
    bos, eos = bos_and_eos(vocabulary)
    return render(source, bos_token=bos, eos_token=eos)


def bos_and_eos(vocabulary: Vocabulary) -> tuple[str, str]:
    """Return the texts of the tokens that a template knows as `bos_token` and `eos_token`, "" for none."""
    texts = {token_id: content for content, token_id in vocabulary.added.items()}
    bos, eos = (next((texts[i] for i in ids if i in texts), "") for ids in (vocabulary.bos_ids, vocabulary.eos_ids))
    return bos, eos


def pairs_of(family: ThinkFormat) -> list[tuple[str, str]]:
    """Return which end belongs to which start."""
    if len(family.starts) == len(family.ends):
        return list(zip(family.starts, family.ends, strict=True))
    return [(start, end) for start in family.starts for end in family.ends]


def views_of(format: ThinkFormat) -> tuple[ThinkFormat, ...]:
    """Return the format as it is behind each of its starts, that pair first; itself alone if it is not paired."""
    pairs = dict(pairs_of(format)) if format.paired else {}
    return tuple(respelled(format, start, pairs) for start in pairs) or (format,)


def any_of(markers: Iterable[str]) -> str:
    """Return a regular expression for any of the markers, the longest first; it matches nothing if there are none."""
    return "|".join(map(re.escape, sorted(markers, key=len, reverse=True))) or "(?!)"


def read(family: ThinkFormat, renders: Renders) -> Found:
    """Read white space, header and thinking-off text out of the renders."""
    starts, ends, openers = map(any_of, (family.starts, family.ends, family.answer_starts))
    tail = re.compile(rf"(?:{starts}|{ends}|{openers})(?:\s|{starts}|{ends}|{openers})*\Z")
    header = opening = off = None
    opens: bool | None = None
    for prompt in renders.prompts.values():
        match = tail.search(prompt)
        own = match.group() if match else ""
        header = prompt[: len(prompt) - len(own)] if header is None else header
        closed = re.search(rf"{ends}|{openers}", own) is not None
        if own and closed:
            off = own if off is None else off
        elif own:
            opening = own if opening is None else opening
        opens = bool(own) and not closed if opens is None else opens
    match = re.search(rf"(?:({starts})(\s*))?{REASONING}(\s*)({ends})(\s*(?:(?:{openers})\s*)?){ANSWER}", renders.turn)
    start = end = close = None
    if match:
        start, end = match[1], match[4]
        close = "".join(match.group(3, 4, 5))
        if start and (opening is None or (start + match[2]).startswith(opening)):
            opening = start + match[2]
    if opening is not None:
        start = _first(opening, family.starts)
    elif off is not None:
        start, end = _first(off, family.starts), end or _first(off, family.ends)
    return Found(start, end, opening, close, off, header, opens)


def _first(text: str, markers: Iterable[str]) -> str | None:
    return min((marker for marker in markers if marker in text), key=text.index, default=None)


def respelled(family: ThinkFormat, start: str, alternatives: Mapping[str, str]) -> ThinkFormat:
    """Put the pair of markers that begins with `start` first, in the texts as well."""
    if start == family.starts[0]:
        return family
    end = alternatives[start]
    swap = {family.starts[0]: start, family.ends[0]: end}
    texts: dict[str, Any] = {}
    for field in ("open_text", "close_text", "off_text"):
        text = getattr(family, field)
        texts[field] = text and re.sub(any_of(swap), lambda match: swap[match.group()], text)
    starts = (start, *(other for other in family.starts if other != start))
    ends = (end, *(other for other in family.ends if other != end))
    return replace(family, starts=starts, ends=ends, **texts)


def spelled(family: ThinkFormat, found: Found, added: Mapping[str, int]) -> ThinkFormat:
    """Give a family the spelling and the white space that the template shows, or the spelling that is a token."""
    alternatives = dict(pairs_of(family))
    start = found.start if found.start in alternatives else None
    if start is None and family.starts[0] not in added:
        start = next((other for other in family.starts if other in added), None)
    family = respelled(family, start or family.starts[0], alternatives)
    if family.channel is not None:
        return family
    shown = {"open_text": found.open_text, "close_text": found.close_text, "off_text": found.off_text}
    changes: dict[str, Any] = {field: text for field, text in shown.items() if text is not None}
    bare = changes.get("open_text") == family.starts[0] != family.open_text
    if bare and "close_text" not in changes:
        changes["close_text"] = family.ends[0]  # a family that writes no newline after the start writes none before
    try:
        return replace(family, **changes)
    except FormatError:  # a template that puts something else there: keep the family's own texts
        return family


def surrounded(format: ThinkFormat, header: str | None, vocabulary: Vocabulary, renders: Renders) -> ThinkFormat:
    """Take header text, turn ends and, where the family's own are not in it, the opener of a tool call from the renders."""
    changes: dict[str, Any] = {}
    added = [content for content in vocabulary.added if content.strip()]
    if header is not None:
        listed = [anchor for anchor in format.assistant_headers if anchor in header]
        listed = listed or [anchor for anchor in format.boundaries or () if anchor in header]
        anchors = listed or [content for content in added if content in header]
        if anchors:
            behind = max(header.rindex(anchor) + len(anchor) for anchor in anchors)
            changes["header_text"] = header[behind:].strip()
            if not listed and not format.assistant_headers:
                changes["boundaries"] = None
        elif role := next((line.strip() for line in reversed(header.split("\n")) if line.strip()), ""):
            changes["header_text"] = ""  # roles in plain text: the last line of the header is a boundary itself
            changes["boundaries"] = (*(format.boundaries or ()), role)
        else:
            changes["header_text"] = ""
    ends = format.turn_ends if format.channel else (*format.turn_ends, *_turn_ends(format, added, renders))
    changes["turn_ends"] = tuple(end for end in dict.fromkeys(ends) if end in vocabulary.added)
    if format.channel is None and (opener := _other_opener(format, renders.call)):
        changes["implicit_ends"] = (*format.implicit_ends, opener)
    return replace(format, **changes)


def _other_opener(format: ThinkFormat, call: str) -> str | None:
    """Return the first opener in a rendered tool call that any family lists, None if it holds one of the format's own.

    A template that calls tools in another way than its family, or whose family is not known to call any.
    """
    if any(opener in call for opener in format.implicit_ends):
        return None
    families = map(ThinkFormat.from_name, ThinkFormat.names())
    known = {opener for family in families for opener in family.implicit_ends if opener in call}
    markers = (*format.starts, *format.ends, *format.answer_starts, *format.implicit_ends)
    apart = (opener for opener in known if not any(opener in other or other in opener for other in markers))
    return min(apart, key=lambda opener: (call.index(opener), -len(opener)), default=None)


def _turn_ends(format: ThinkFormat, added: Iterable[str], renders: Renders) -> list[str]:
    """Return the added token that follows the answer in an assistant's turn, when it is last and when it is not."""
    tokens = any_of(added)
    own = format.starts + format.ends + format.answer_starts + format.answer_ends
    skipped = re.compile(rf"\A(?:\s|{any_of(format.answer_ends)})*")
    ends = []
    for text in (renders.turn, renders.earlier):
        behind = text.rpartition(ANSWER)[2] if ANSWER in text else ""
        token = re.match(tokens, skipped.sub("", behind, count=1))
        if token and token.group() not in DEFAULT_INNER and not any(token.group() in marker for marker in own):
            ends.append(token.group())
    return ends
