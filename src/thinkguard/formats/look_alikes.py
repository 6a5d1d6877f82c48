"""What reads like a marker and is none: `</Think>`, `</ think>`, `</think-step-1>`, `</Wait, let me see:`.

A model that wants a marker where it may not write one writes such a thing instead. Code and markup that a user asked for are
none of these: what is quoted, what stands in a code fence, and a closing tag whose opening tag stands before it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from thinkguard.formats.format import ThinkFormat

_SHOWN: Final = 24  # characters of each
_TAG: Final = re.compile(r"(?P<open>[^\w\s/]+)(?P<slash>/?)(?P<name>[\w:.-]+)(?P<close>[^\w\s]+)")
_QUOTES: Final = "\"'`(["


@cache
def _candidates(format: ThinkFormat) -> re.Pattern[str] | None:
    """Whatever begins like a marker of the form bracket, name, bracket: by its name, or by the slash of an end."""
    tags = [match for text in format.starts + format.ends if (match := _TAG.fullmatch(text))]
    if not tags:
        return None
    opens = "|".join(sorted({re.escape(tag["open"]) for tag in tags}))
    names = "|".join(sorted({re.escape(tag["name"]) for tag in tags}))
    return re.compile(rf"(?:{opens})(?:\s{{0,2}}/?\s{{0,2}}(?:{names})|\s?/\s?(?P<other>[\w:-]*))", re.IGNORECASE)


def look_alikes_in(text: str, format: ThinkFormat) -> tuple[str, ...]:
    """Find the look-alikes in an output's text, each with a little of what follows it, in order."""
    pattern, found = _candidates(format), []
    for match in pattern.finditer(text) if pattern else ():
        at, other = match.start(), match["other"]
        if text.startswith(format.starts + format.ends, at) or text[at - 1 : at] in tuple(_QUOTES):
            continue
        if text.count("```", 0, at) % 2:
            continue
        if other is not None and not _is_look_alike(text, match):
            continue
        found.append(text[at : at + _SHOWN].partition("\n")[0])
    return tuple(found)


def _is_look_alike(text: str, match: re.Match[str]) -> bool:
    """Whether a slash and another name, or none, closes nothing that is open."""
    name, opened = match["other"], match[0].partition("/")[0].strip()
    if not name:
        return not text[match.end() :].strip()[:1].isdigit()  # the end of the text, or a space; `</3` is a broken heart
    if name.isdigit():
        return False
    return re.search(rf"{re.escape(opened)}{re.escape(name)}\b", text[: match.start()]) is None
