"""How a model family writes reasoning: markers, the white space around them, and what surrounds a turn.

The families are data (`table.json`, described by `table.schema.json`); this file checks and hands them out.
Where several starts and ends are listed and there are as many ends as starts, the n-th end belongs to the n-th start. In a
`paired` format no other end closes what a start opened; elsewhere any does.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from thinkguard.errors import FormatError

_TABLE: Final[dict[str, Any]] = json.loads(Path(__file__).with_name("table.json").read_text(encoding="utf-8"))

DEFAULT_INNER: Final[frozenset[str]] = frozenset(_TABLE["default_inner"])
"""Added tokens that an assistant of any family writes inside its own turn, such as `<tool_call>`; never a boundary."""

TURN_STARTS: Final[tuple[str, ...]] = tuple(_TABLE["turn_starts"])
"""Tokens that chat templates begin a turn, a role or a tool's result with, such as `<|im_start|>`: banned while thinking
where the vocabulary has them, beside those of a family's own `boundaries`. What only ends a turn is mostly EOS."""

_WHITE: Final = " \t\n\r\f\v"
_MAX_WHITE: Final = 4
MAX_MARKER_BYTES: Final = 256
"""Of UTF-8 in one marker, boundary or header: compiling spells all that can follow each of its bytes, which is quadratic."""
_FOR_DETECTION: Final = ("header", "opens")
_FOR_TOOLS: Final = ("tokens", "parsers", "llamafactory")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGrammar:
    """The message grammar of a family whose turns are several messages, each with a header (harmony)."""

    header: str  # forced after a message's end, up to the channel's name: "<|start|>assistant<|channel|>"
    tool_headers: tuple[str, ...]  # what opens a header of free text; spelled like the markers: "<|channel|>commentary"
    body: str  # ends a free header: "<|message|>"; without tool_headers it is never needed
    message_end: str  # "<|end|>"
    call_end: str | None  # ends a tool call and the turn: "<|call|>"
    recipient: str | None  # in a free header, marks a tool call: "to="


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFacts:
    """What is known about a family beside how it writes reasoning, for tools; empty where nothing is known."""

    tokens: Literal["added", "special", "text"] | None = None  # what markers are in published tokenizers, None: not known
    vllm_parsers: tuple[str, ...] = ()  # the names of vLLM's reasoning parsers for it; of several, the model decides
    vllm_reads_text: bool = False  # whether the first finds markers that are spelled in several tokens
    sglang_parsers: tuple[str, ...] = ()
    vllm_tool_parsers: tuple[str, ...] = ()
    llamafactory_templates: tuple[str, ...] = ()  # of those that know reasoning
    thought_words: tuple[str, str] | None = None  # what those write around reasoning, None: LLaMA-Factory's default


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkFormat:
    """How a model family writes reasoning. FormatError for a contradiction, when made."""

    name: str
    starts: tuple[str, ...]  # the guard writes the first
    ends: tuple[str, ...]  # the guard writes the first, or that of the start which was written if they are `paired`
    open_text: str  # starts[0] and the white space that follows it
    close_text: str  # white space, ends[0], white space; an answer opener may follow
    paired: bool = False  # whether what the n-th start opens is closed by the n-th end alone; else any end closes it
    answer_starts: tuple[str, ...] = ()
    answer_ends: tuple[str, ...] = ()  # informative: stripped when an output is explained
    answer_parts: tuple[str, ...] = ()  # what else an answer writes that begins with a control token of a marker
    implicit_ends: tuple[str, ...] = ()  # openers of tool calls, which end the reasoning
    off_text: str | None = None  # what the assistant's turn begins with when thinking is off; None: an empty block
    on_texts: tuple[str, ...] | None = None  # what a prompt without a marker at its end holds if it thinks; None: any does
    turn_ends: tuple[str, ...] = ()  # added tokens that end the turn besides the tokenizer's EOS
    boundaries: tuple[str, ...] | None = None  # None: every added token that is no marker, answer opener or inner
    assistant_headers: tuple[str, ...] = ()  # the turn starts behind the first of these after the last other boundary
    inner: tuple[str, ...] = ()  # added tokens inside a turn, beyond DEFAULT_INNER
    header_text: str = "assistant"  # text between the boundary and the turn, without white space at its end
    controls: tuple[str, ...] = ()  # pieces that must be single added tokens, else it is another family
    channel: ChannelGrammar | None = None
    models: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()  # why detection chose this format

    def __post_init__(self) -> None:
        """Refuse contradictions; see `_check`."""
        _check(self)

    @classmethod
    def from_name(cls, name: str) -> ThinkFormat:
        """Return a family of the table; FormatError with the nearest names, or with the reason of a refusal."""
        if not isinstance(name, str):
            raise FormatError(f"format={name!r} is no name: pass a ThinkFormat, a name such as 'think', or None")
        if name in _TABLE["refused"]:
            raise FormatError(f"format={name!r} is known but cannot be guarded: {_TABLE['refused'][name]}")
        if name not in _TABLE["formats"]:
            near = _near(name, (*cls.names(), *_TABLE["refused"]))
            hint = f"did you mean {', '.join(map(repr, near))}?" if near else "'think' is plain <think>...</think>;"
            raise FormatError(f"format={name!r} is not a known family: {hint} `thinkguard formats` lists all of them")
        return _family(name)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all families that can be guarded, plain "think" first."""
        return tuple(_TABLE["formats"])

    @classmethod
    def refused(cls) -> Mapping[str, str]:
        """Return the families that cannot be guarded, each with the reason and what to do instead."""
        return dict(_TABLE["refused"])


def _near(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three names that begin like this one, or a word of which does, or that differ by a letter or two."""
    plain = {other.replace("_", ""): other for other in known}
    wanted = "".join(char for char in name.lower() if char.isalnum())
    near = [other for short, other in plain.items() if wanted and short.startswith(wanted)]
    near = near or [other for other in plain.values() if len(wanted) > 1 and f"_{wanted}" in other]
    return near[:3] or [plain[short] for short in difflib.get_close_matches(wanted, plain, 3, 0.7)]


@cache
def _family(name: str) -> ThinkFormat:
    entry = _TABLE["formats"][name]
    merged = {**_TABLE["formats"].get(entry.get("like"), {}), **entry}
    others = ("like", *_FOR_DETECTION, *_FOR_TOOLS)
    values: dict[str, Any] = {key: value for key, value in merged.items() if key not in others}
    if "channel" in values:
        values["channel"] = ChannelGrammar(**_frozen(values["channel"]))
    return ThinkFormat(name=name, **_frozen(values))


def _frozen(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def prompt_of(name: str) -> tuple[str | None, bool | None]:
    """Return how a family's template begins an assistant turn, and whether it opens the reasoning by itself."""
    entry = _TABLE["formats"][name]
    return entry.get("header"), entry.get("opens")


@cache
def facts_of(name: str) -> FamilyFacts:
    """Return what is known about a family beside how it writes; about a format that is not in the table, nothing."""
    entry = _TABLE["formats"].get(name, {})
    parsers, trainer = entry.get("parsers", {}), entry.get("llamafactory", {})
    words = trainer.get("thought_words")
    return FamilyFacts(
        tokens=entry.get("tokens"),
        vllm_parsers=tuple(parsers.get("vllm", ())),
        vllm_reads_text=parsers.get("vllm_reads_text", False),
        sglang_parsers=tuple(parsers.get("sglang", ())),
        vllm_tool_parsers=tuple(parsers.get("vllm_tools", ())),
        llamafactory_templates=tuple(trainer.get("templates", ())),
        thought_words=words and (words[0], words[1]),
    )


def _refuse(format: ThinkFormat, field: str, rule: str, remedy: str) -> FormatError:
    return FormatError(f"format {format.name!r}: {field}={getattr(format, field)!r} {rule}; {remedy}")


def _check(format: ThinkFormat) -> None:
    """Raise FormatError with field, value, rule and remedy for the first contradiction."""
    for field in ("name", "open_text", "close_text"):
        if not isinstance(getattr(format, field), str) or not getattr(format, field):
            raise _refuse(format, field, "is not a string with something in it", "give it as text")
    for field in (*_TUPLES, *_OPTIONAL):
        value = getattr(format, field)
        if field in _OPTIONAL and value is None:
            continue
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            raise _refuse(format, field, "is not a tuple of strings", "write ('</think>',) with the comma")
        if not all(value):
            raise _refuse(format, field, "holds an empty string, which is found everywhere", "remove it")
        if any(not item.isascii() and item.encode("utf-8", "ignore").decode() != item for item in value):
            raise _refuse(format, field, "holds half a surrogate pair, which no token spells", "write the character")
    for field in ("starts", "ends"):
        if not getattr(format, field):
            raise _refuse(format, field, "is empty", "list at least one marker")
    _check_pairs(format)
    _check_lengths(format)
    _check_markers(format)
    _check_texts(format)
    if format.header_text != format.header_text.rstrip():
        raise _refuse(format, "header_text", "ends in white space, which is skipped anyway", "strip it")
    if format.assistant_headers and not format.boundaries:
        rule = "needs boundaries: a header is looked for after the last of them"
        raise _refuse(format, "assistant_headers", rule, "list what ends the turns before")
    if format.channel is not None and format.channel.message_end not in format.ends:
        raise _refuse(format, "channel", "has a message_end that is not among ends", "add it to ends")


def _texts(format: ThinkFormat) -> Iterator[tuple[str, str]]:
    """Yield (field, text) of all that an automaton looks for or that is spelled by tokens."""
    for field in _MARKERS:
        yield from ((field, text) for text in getattr(format, field) or ())
    yield from (("off_text", format.off_text or ""), ("header_text", format.header_text))
    for part in fields(format.channel) if format.channel else ():
        value = getattr(format.channel, part.name)
        yield from (("channel", text) for text in (value if isinstance(value, tuple) else (value or "",)))


def _check_pairs(format: ThinkFormat) -> None:
    if not isinstance(format.paired, bool):
        raise _refuse(format, "paired", "is neither True nor False", "say whether each start has an end of its own")
    if format.paired and len(format.starts) != len(format.ends):
        rule = f"needs as many ends as starts, and there are {len(format.ends)} for {len(format.starts)}"
        raise _refuse(format, "paired", rule, "list the n-th start's end as the n-th, or leave paired out")
    if format.paired and format.channel is not None:
        rule = "does not go with a channel, whose messages all have one end"
        raise _refuse(format, "paired", rule, "leave one of them out")


def _check_lengths(format: ThinkFormat) -> None:
    for field, text in _texts(format):
        length = len(text.encode("utf-8", "surrogatepass"))
        if length > MAX_MARKER_BYTES:
            raise FormatError(
                f"format {format.name!r}: {field} holds {text[:40]!r}..., {length} bytes of UTF-8, and at most "
                f"{MAX_MARKER_BYTES} can be looked for; name a shorter text, such as its first line"
            )


def _check_markers(format: ThinkFormat) -> None:
    seen: dict[str, str] = {}
    for field in ("starts", "ends", "answer_starts", "implicit_ends"):
        for marker in getattr(format, field):
            if marker in seen:
                rule = f"repeats {marker!r}, which is already in {seen[marker]}"
                raise _refuse(format, field, rule, "a marker has one meaning: list it once")
            for other, where in seen.items():
                if marker in other or other in marker:
                    rule = f"holds {marker!r}, which overlaps {other!r} in {where}: one contains the other"
                    raise _refuse(format, field, rule, "list the shorter marker alone")
            seen[marker] = field


def _check_texts(format: ThinkFormat) -> None:
    start, end = format.starts[0], format.ends[0]
    white = format.open_text.removeprefix(start)
    if not format.open_text.startswith(start) or white.strip(_WHITE) or len(white) > _MAX_WHITE:
        rule = f"is not starts[0] followed by at most {_MAX_WHITE} bytes of ASCII white space"
        raise _refuse(format, "open_text", rule, f"write {start + chr(10)!r} or {start!r}")
    if format.close_text.count(end) != 1:
        rule = f"does not hold ends[0], {end!r}, exactly once"
        raise _refuse(format, "close_text", rule, f"write {chr(10) + end + chr(10)!r} or {end!r}")
    before, after = format.close_text.split(end)
    if before.strip(_WHITE) or len(before) > _MAX_WHITE:
        rule = f"has other text before ends[0] than at most {_MAX_WHITE} bytes of ASCII white space"
        raise _refuse(format, "close_text", rule, "words before the marker belong into the policy's close_message")
    for opener in format.answer_starts:
        after = after.replace(opener, "", 1)
    if after.strip(_WHITE):
        rule = "has text behind ends[0] that is neither white space nor one of answer_starts"
        raise _refuse(format, "close_text", rule, f"list {after.strip(_WHITE)!r} in answer_starts, or remove it")
    off = format.off_text
    if off is not None and not any(marker in off for marker in format.ends + format.answer_starts):
        raise _refuse(format, "off_text", "holds no end and no answer opener", "write None for an empty block")


def describe(format: ThinkFormat) -> str:
    """Spell a format as aligned `field  value` lines, leaving out what is at its default."""
    rows = []
    for field in fields(format):
        value = getattr(format, field.name)
        if field.default is not MISSING and value == field.default:
            continue
        if isinstance(value, ChannelGrammar):
            rows += [(f"channel.{part.name}", getattr(value, part.name)) for part in fields(value)]
        else:
            rows.append((field.name, value))
    width = max(len(name) for name, _ in rows)
    plain = {"name", "models", "evidence"}
    lines = []
    for name, value in rows:
        items = list(value) if isinstance(value, tuple) else [value]
        spelled = [item if name in plain else json.dumps(item, ensure_ascii=False) for item in items]
        separator = "\n" + " " * (width + 2) if name in plain else "  "
        lines.append(f"{name:{width}}  {separator.join(spelled) or 'none'}")
    return "\n".join(lines)


_MARKERS: Final = ("starts", "ends", "answer_starts", "implicit_ends", "boundaries", "assistant_headers")
_TUPLES: Final = (
    *("starts", "ends", "answer_starts", "answer_ends", "answer_parts", "implicit_ends", "turn_ends", "assistant_headers"),
    *("inner", "controls", "models", "evidence"),
)
_OPTIONAL: Final = ("boundaries", "on_texts")
