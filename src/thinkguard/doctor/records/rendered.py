"""Texts that a chat template has rendered already, parted into turns again at the headers that templates write."""

from __future__ import annotations

import re
from typing import Final

from thinkguard.doctor.records.record import Turn
from thinkguard.doctor.records.turns import ROLES

_HEADERS: Final = (
    re.compile(r"<\|im_start\|>([\w/]+)\n?"),
    re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n{0,2}"),
    re.compile(r"<start_of_turn>(\w+)\n?"),
    re.compile(r"<｜(User|Assistant)｜>"),
    re.compile(r"<\|(system|user|assistant|observation)\|>\n?"),
)
_ENDS: Final = re.compile(
    r"(?:<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<｜end▁of▁sentence｜>|<\|end\|>|<\|endoftext\|>)?\s*$"
)


def turns_of_text(text: str) -> list[Turn]:
    """Part a rendered conversation into turns; a text without headers is one assistant turn.

    What follows a header of no known role (`<|im_start|>think`) stays with the turn before, header and all.
    """
    for header in _HEADERS:
        found = [match for match in header.finditer(text) if match.group(1).lower() in ROLES]
        if found:
            break
    else:
        return [Turn("assistant", text)]
    turns: list[Turn] = []
    for index, match in enumerate(found):
        end = found[index + 1].start() if index + 1 < len(found) else len(text)
        role, part = ROLES[match.group(1).lower()], text[match.end() : end]
        if role != "assistant" or index + 1 < len(found):
            part = part.rstrip()
        ends = _ENDS.search(part)
        turns.append(Turn(role, part[: ends.start()] if ends else part))
    return turns
