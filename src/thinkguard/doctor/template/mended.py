"""Chat templates with a part of their own for training texts, around the body that stays as it was.

The prompt's part is the old body, word for word. In the training part the markers in what an assistant said are hidden
behind characters that mean nothing, the old body writes its text, and the markers are put back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from thinkguard.doctor.template.probes import FIELDS
from thinkguard.formats import ThinkFormat

Scope = Literal["none", "earlier", "all"]

_HIDDEN: Final = 0xFDD0  # the first of 32 characters that Unicode promises never to assign
_BEGIN, _END = 0xFDEE, 0xFDEF  # two of them, around what {% generation %} marks
_GENERATION: Final = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")

_TEMPLATE: Final = """\
{#- Training texts keep their reasoning; prompts are written as before. Made by thinkguard doctor --fix-template. -#}
{%- if add_generation_prompt +%}@BODY@{%+ else -%}
@SWITCH@@MACRO@{%- set kept = namespace(messages=[], last=-1) -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}{%- set kept.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- set hide = message.role == 'assistant' and @HIDE@ -%}
    {%- set turn = namespace(rest={}, reasoning='', content=message.content, parts=[]) -%}
    {%- for key, value in message.items() -%}
        {%- if key in @MOVED@ and (value is string or value is none) -%}
            {%- set turn.reasoning = turn.reasoning or value or '' -%}
        {%- elif key != 'content' -%}
            {%- set turn.rest = dict(turn.rest, **{key: value}) -%}
        {%- endif -%}
    {%- endfor -%}
    {%- if message.role != 'assistant' or not (hide or turn.reasoning) -%}
        {%- set kept.messages = kept.messages + [message] -%}
        {%- continue -%}
    {%- endif -%}
    {%- set turn.content = turn.content or '' -%}
    {%- if turn.content is string and turn.content.strip().startswith(@START@) -%}
        {%- set turn.reasoning = '' -%}
    {%- endif -%}
@RENAME@    {%- if turn.reasoning and turn.content is string -%}
        {%- set turn.content = @OPEN@ + turn.reasoning + @CLOSE@ + turn.content -%}
    {%- elif turn.reasoning -%}
        {%- set turn.content = [{'type': 'text', 'text': @OPEN@ + turn.reasoning + @CLOSE@}] + turn.content -%}
    {%- endif -%}
@HIDING_PART@    {%- set kept.messages = kept.messages + [dict(turn.rest, content=turn.content)] -%}
{%- endfor -%}
{%- set messages = kept.messages -%}
{%- set written +%}@CAPTURED@{%+ endset -%}
@SHOWING@@WRITE@{%- endif -%}
"""
_RENAME: Final = """\
    {%- if turn.reasoning and not hide -%}
        {%- set turn.rest = dict(turn.rest, @READ@=turn.reasoning) -%}
        {%- set turn.reasoning = '' -%}
    {%- endif -%}
"""
_HIDING_PART: Final = """\
    {%- if hide and turn.content is string -%}
        {%- set turn.content = turn.content@HIDING@ -%}
    {%- elif hide -%}
        {%- for part in turn.content -%}
            {%- set text = part.text -%}
            {%- if part.type == 'thinking' -%}
                {%- set said = part.thinking if part.thinking is string else part.thinking | join(attribute='text') -%}
                {%- set text = @OPEN@ + said + @CLOSE@ -%}
                {%- set turn.parts = turn.parts + [{'type': 'text', 'text': text@HIDING@}] -%}
            {%- elif text is string -%}
                {%- set turn.parts = turn.parts + [dict(part, text=text@HIDING@)] -%}
            {%- else -%}
                {%- set turn.parts = turn.parts + [part] -%}
            {%- endif -%}
        {%- endfor -%}
        {%- set turn.content = turn.parts -%}
    {%- endif -%}
"""
_WRITE: Final = "{{- written -}}\n"
_WRITE_MARKED: Final = f"""\
{{%- for piece in written.split('\\u{_BEGIN:x}') -%}}
    {{%- set pair = piece.split('\\u{_END:x}') -%}}
    {{%- if pair | length > 1 -%}}
        {{%- generation -%}}{{{{- pair[0] -}}}}{{%- endgeneration -%}}{{{{- pair[1] -}}}}
    {{%- else -%}}
        {{{{- piece -}}}}
    {{%- endif -%}}
{{%- endfor -%}}
"""
_MACRO: Final = f"""\
{{%- macro thinkguard_generation() -%}}
    {{{{- '\\u{_BEGIN:x}' -}}}}{{{{ caller() }}}}{{{{- '\\u{_END:x}' -}}}}
{{%- endmacro -%}}
"""


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to keep reasoning in training texts."""

    hide: Scope  # in which turns the markers are hidden from the old body
    unread: tuple[str, ...] = ()  # fields that the old body does not read
    read: str = ""  # what unread fields are renamed to in turns whose markers stay visible; "": they join the content
    drop: str = ""  # what the old body writes in front of a turn without reasoning; left out of turns with reasoning
    switch: str = ""  # a variable of the template that is set for training: "clear_thinking=False"

    def __str__(self) -> str:
        """Say what the strategy changes."""
        changes = []
        if self.switch:
            changes.append(f"its own switch {self.switch} is set")
        if self.hide != "none":
            where = "every turn" if self.hide == "all" else "earlier turns"
            changes.append(f"markers are hidden from the old body in {where}")
        if self.unread:
            where = f"renamed to {self.read}" if self.read and self.hide != "all" else "put into the content"
            changes.append(f"{', '.join(self.unread)} {where}")
        if self.drop:
            changes.append(f"{self.drop!r} left out in front of reasoning")
        return " and ".join(changes) or "as it is"


def mended_source(source: str, format: ThinkFormat, strategy: Strategy) -> str:
    """Return the mended template's source."""
    body = re.sub(r"(?:\r\n|\r|\n)\Z", "", source, count=1)  # jinja2 leaves out the last newline of a file,
    body = re.sub(r"\A[ \t]+(?=\{[%#](?!\+))", "", body)  # and with lstrip_blocks what is in front of the first tag
    marked = _GENERATION.search(body) is not None
    captured = _GENERATION.sub(_called, body) if marked else body
    hides = {"none": "false", "earlier": "loop.index0 < kept.last", "all": "true"}
    every, unread = _spell(list(FIELDS)), _spell(list(strategy.unread))
    moved = {"none": unread, "earlier": f"({every} if hide else {unread})", "all": every}
    drops = [(strategy.drop + between, between) for between in ("", *([chr(_BEGIN)] if marked else []))]
    showing = _dropping(drops, format) if strategy.drop else ""
    showing += _replacing((hidden, marker) for marker, hidden in _pairs(format))
    hidden_turns = strategy.hide != "none"
    pieces = {
        "SWITCH": _set(strategy.switch),
        "MACRO": _MACRO if marked else "",
        "HIDING_PART": _HIDING_PART if hidden_turns else "",
        "RENAME": _RENAME if strategy.read and strategy.hide != "all" else "",
        "SHOWING": f"{{%- set written = written{showing} -%}}\n" if hidden_turns else "",
        "WRITE": _WRITE_MARKED if marked else _WRITE,
        "HIDE": hides[strategy.hide],
        "MOVED": moved[strategy.hide],
        "READ": strategy.read,
        "START": _spell(format.starts[0]),
        "OPEN": _spell(format.open_text),
        "CLOSE": _spell(format.close_text),
        "HIDING": _replacing(_pairs(format)),
    }
    text = _TEMPLATE
    for name, value in pieces.items():
        text = text.replace(f"@{name}@", value)
    first, _, rest = text.partition("@BODY@")
    before, _, behind = rest.partition("@CAPTURED@")
    return first + body + before + captured + behind


def _called(match: re.Match[str]) -> str:
    """Write a {% generation %} tag as a call of the macro that stands in for it, with the same white space."""
    before, end, after = match.groups()
    return f"{{%{before} {'endcall' if end else 'call thinkguard_generation()'} {after}%}}"


def _pairs(format: ThinkFormat) -> list[tuple[str, str]]:
    markers = sorted({*format.starts, *format.ends}, key=lambda marker: (-len(marker), marker))
    return [(marker, chr(_HIDDEN + index)) for index, marker in enumerate(markers)]


def _replacing(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f".replace({_spell(old)}, {_spell(new)})" for old, new in pairs)


def _dropping(drops: Sequence[tuple[str, str]], format: ThinkFormat) -> str:
    starts = [hidden for marker, hidden in _pairs(format) if marker in format.starts]
    return _replacing((old + start, new + start) for old, new in drops for start in starts)


def _set(switch: str) -> str:
    name, _, value = switch.partition("=")
    return f"{{%- set {name} = {value.lower()} -%}}\n" if switch else ""


def _spell(value: str | list[str]) -> str:
    """Spell a string, or a list of them, as jinja2 reads it; outside ASCII only the hidden characters are escaped."""
    if isinstance(value, list):
        return f"[{', '.join(map(_spell, value))}]"
    value = re.sub(r"[\\']", r"\\\g<0>", value)
    for char, name in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        value = value.replace(char, name)
    hidden = "".join(f"\\u{ord(char):04x}" if 0xFDD0 <= ord(char) <= 0xFDEF else char for char in value)
    return f"'{hidden}'"
