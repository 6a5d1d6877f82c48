"""Text for a page: nothing in it is markup, nothing in it stays invisible.

Evidence holds whatever the data hold: `<think>`, scripts, lone surrogates, marks that turn the direction of text around.
"""

from __future__ import annotations

import re
import unicodedata
from html import escape
from typing import Final

from thinkguard.doctor.check import LOST

MOST_SHOWN: Final = 4000  # characters of one piece of evidence
_HIDDEN: Final = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U0001bca0-\U0001bca3\U000e0000-\U000e0fff]"
)
_LOST: Final = re.compile(f"{LOST[0]}([^{LOST[0]}{LOST[1]}]*){LOST[1]}")
_CODE: Final = re.compile(r"`([^`\n]+)`")
_BEGINNINGS: Final = r"thinkguard (?:doctor|audit|explain|formats)|vllm serve|pip install|llamafactory-cli \w+|python3? -m"
_COMMAND: Final = re.compile(
    r"`(?P<ticked>[^`\n]+[ (][^`\n]+(?=`\.?$))`"  # the last thing said
    rf"|(?<![\w`])(?P<bare>(?:{_BEGINNINGS}) [^`\n]+?)(?=[,;]? [a-z]+ [a-z]+ [a-z]|[,;] [a-z]|\. |\.?$)"
)
_PASTED: Final = re.compile(rf"(?:{_BEGINNINGS}) |[\[{{]|--|ThinkPolicy\(")


def visible(text: str) -> str:
    """Spell what nobody would see: control characters, zero-width and direction marks, halves of a surrogate pair."""
    return _HIDDEN.sub(lambda match: _name_of(match[0]), text)


def _name_of(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"[U+{code:04X}]"


def prose_html(text: str) -> str:
    """Escape a sentence; what stands between backticks becomes code."""
    parts = _CODE.split(visible(text))
    return "".join(f"<code>{escape(part)}</code>" if i % 2 else escape(part) for i, part in enumerate(parts))


def fix_html(text: str) -> str:
    """Escape a remedy; commands in it are code, and the one that it ends with stands in a line of its own."""
    pieces = []
    start = 0
    for found in _COMMAND.finditer(text):
        command = f"<code>{escape(visible(found['ticked'] or found['bare']))}</code>"
        pieces.append(prose_html(text[start : found.start()]))
        start = found.end()
        if text[start:] in ("", "."):
            pieces.append(f"<pre class=command>{command}</pre>")
            start = len(text)
        else:
            pieces.append(command)
    return "".join([*pieces, prose_html(text[start:])])


def is_pasted(text: str) -> bool:
    """Tell whether a fact is something to paste: a command, JSON, a call."""
    return _PASTED.match(text) is not None


def evidence_html(text: str) -> str:
    """Escape evidence; lost spots are marked, and invisible characters are named."""
    text = _shortened(text)
    parts = _LOST.split(text)
    return "".join(f"<mark>{_visible_html(part)}</mark>" if i % 2 else _visible_html(part) for i, part in enumerate(parts))


def _visible_html(text: str) -> str:
    pieces = []
    start = 0
    for match in _HIDDEN.finditer(text):
        name = unicodedata.name(match[0], "").lower()
        title = f' title="{escape(name)}"' if name else ""
        pieces += [escape(text[start : match.start()]), f"<span class=hidden{title}>{_name_of(match[0])}</span>"]
        start = match.end()
    return "".join([*pieces, escape(text[start:])])


def _shortened(text: str) -> str:
    """Keep what stands around the first lost spot of a text that is too long."""
    if len(text) <= MOST_SHOWN:
        return text
    spot = _LOST.search(text)
    first = 0 if spot is None else max(0, min(spot.start() - MOST_SHOWN // 4, len(text) - MOST_SHOWN))
    excerpt = text[first : first + MOST_SHOWN]
    if spot is not None and first <= spot.start() < first + MOST_SHOWN < spot.end():
        excerpt += LOST[1]
    before = f"[{first:,} characters] … " if first else ""
    after = len(text) - first - MOST_SHOWN
    return before + excerpt + (f" … [{after:,} characters more]" if after > 0 else "")
