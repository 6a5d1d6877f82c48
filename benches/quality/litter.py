"""What looks like a marker and is none: a reading of outputs that knows nothing of thinkguard's own.

A reader of chats sees it at once: `</think >`, `</Think>`, `</Wait, let me see:`, `</th` in the middle of a sentence. HTML
that was asked for is none of these: a closing tag whose opening tag stands before it, `<th>` in a table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

START, END = "<think>", "</think>"
_TAG: Final = re.compile(r"<(\s*)(/?)(\s*)([A-Za-z][\w:-]*)?")
_PIECES: Final = tuple(marker[:n] for marker in (START, END) for n in range(len(marker) - 1, 0, -1))
"""What a marker may break off at."""


@dataclass(frozen=True, slots=True)
class Split:
    """An output's text, cut at its markers."""

    thinking: str
    answer: str
    num_starts: int
    num_ends: int


def split(text: str, opened: bool = False) -> Split:
    """Cut an output: what stands between the first start (or the beginning, if the prompt opened) and the first end, and
    what stands behind the last end; without an end all of it is thinking if a start was seen, else all is answer.
    """
    starts, ends = text.count(START), text.count(END)
    if ends:
        thinking = text.partition(END)[0]
        return Split(thinking.rpartition(START)[2], text.rpartition(END)[2], starts, ends)
    if starts or opened:
        return Split(text.partition(START)[2] if starts else text, "", starts, ends)
    return Split("", text, starts, ends)


def look_alikes(text: str, context: str = "") -> list[str]:
    """Return the look-alikes of a stretch of text that holds no whole marker, each with a little of what follows it.

    context: what stands before the stretch, the question included; tags that it opens may be closed in the stretch.
    """
    whole = context + "\n" + text
    found = []
    for match in _TAG.finditer(whole, len(context) + 1):
        if _is_look_alike(match, whole):
            found.append(whole[match.start() : match.start() + 24].partition("\n")[0])
    return found


def _is_look_alike(match: re.Match[str], whole: str) -> bool:
    lead, slash, space, name = match[1], match[2], match[3], match[4] or ""
    before, rest = whole[: match.start()], whole[match.end() :]
    plain = name.lower()
    if plain.startswith("think"):
        return True  # no whole marker stands here: it is spelled otherwise, or breaks off
    if slash:
        if not name:
            return not rest.strip() or bool(space) or rest.startswith(("<", ">"))  # `</3` is a broken heart
        return bool(lead or space) or not re.search(rf"<{re.escape(name)}\b", before)
    if plain == "t":
        return not lead and (not rest or rest.startswith("\n"))  # `i<t` is a comparison
    if plain and plain != "th" and "think".startswith(plain):
        return not lead
    if plain == "th":
        return not rest.startswith((">", " ")) or not re.search(r"<(table|tr|thead)\b", whole)
    return False


def dangling(text: str) -> str:
    """Return the piece of a marker that a stretch of text ends in, "" if none."""
    shown = text.rstrip()
    return next((piece for piece in _PIECES if shown.endswith(piece)), "")
