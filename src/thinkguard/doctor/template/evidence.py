"""Excerpts of renders, for people: sentinels have readable names, and what was lost stands between ⟦ and ⟧."""

from __future__ import annotations

import re

from thinkguard.doctor.check import LOST
from thinkguard.doctor.template.probes import CALLED, CUT, RESULT, TAIL, answer, question, thought
from thinkguard.doctor.template.readings import Readings
from thinkguard.formats.fit import any_of

_WIDTH = 200
_WORDS = {
    **{question(n): f"QUESTION{'' if n == 1 else n}" for n in (2, 1)},
    **{thought(n): f"REASONING{'' if n == 1 else n}" for n in (2, 1)},
    **{answer(n): f"ANSWER{'' if n == 1 else n}" for n in (2, 1)},
    TAIL: "TAIL",
    CUT: "",
    RESULT: "RESULT",
    CALLED: "VALUE",
}


def excerpt(text: str) -> str:
    """Spell a render on one line of at most 200 characters, each sentinel by what it stands for: QUESTION, REASONING."""
    for word, name in _WORDS.items():
        text = text.replace(word, name)
    text = text.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")
    if len(text) <= _WIDTH:
        return text
    spot = text.find(LOST[0])
    start = min(max(0, spot - 40), len(text) - _WIDTH + 2) if spot >= 0 else 0
    cut = text[start : start + _WIDTH - 2]
    return f"{'…' if start else ''}{cut}{'…' if start + len(cut) < len(text) else ''}"


def exchange(text: str, n: int = 1) -> str:
    """Return a render's n-th exchange: from the n-th user's words up to the next user's."""
    return question(n) + text.partition(question(n))[2].partition(question(n + 1))[0]


def mark_lost(readings: Readings, wanted: str, text: str) -> str:
    """Excerpt a render that lacks a part of the `wanted` text; the part stands between ⟦ and ⟧ where it should have been."""
    markers = re.finditer(any_of((*readings.format.starts, *readings.format.ends)), wanted)
    inside = {at for match in markers for at in range(match.start() + 1, match.end())}  # no marker is cut in two

    def tells(piece: str) -> bool:  # a piece without a sentinel may come from anywhere in the render
        return any(word in piece for word in _WORDS)

    fronts = (wanted[:end] for end in range(len(wanted), 0, -1) if end not in inside)
    front = next((piece for piece in fronts if piece in text and tells(piece)), "")
    behind = text.index(front) + len(front)
    rest = wanted[len(front) :]
    tails = (rest[start:] for start in range(len(rest)) if len(front) + start not in inside)
    tail = next((piece for piece in tails if piece in text[behind:] and tells(piece)), "")
    at = text.index(tail, behind) if tail else behind
    gone = rest.removesuffix(tail)
    if not gone or not (front or tail):
        return excerpt(text)
    return excerpt(f"{text[:at]}{LOST[0]}{gone}{LOST[1]}{text[at:]}")


def mark_missing(readings: Readings, name: str, gone: str) -> str:
    """Excerpt a probe's turn that lacks the text `gone`; it stands between ⟦ and ⟧ where the assistant's words begin."""
    text = exchange(readings.text(name))
    header = exchange(readings.text("prompt/by default")).removesuffix(readings.opening())
    if not text.startswith(header) or gone in text:
        return excerpt(text)
    return excerpt(f"{header}{LOST[0]}{gone}{LOST[1]}{text[len(header) :]}")


def mark_added(readings: Readings, name: str) -> str:
    """Excerpt a probe's turn; its empty block, or its end without a start, stands between ⟦ and ⟧."""
    text = exchange(readings.text(name))
    starts, ends = any_of(readings.format.starts), any_of(readings.format.ends)
    block = re.search(rf"(?:{starts})\s*(?:{ends})", text) or re.search(rf"(?:{ends})", text)
    if block is None:
        return excerpt(text)
    return excerpt(f"{text[: block.start()]}{LOST[0]}{block.group()}{LOST[1]}{text[block.end() :]}")


def mark_spot(text: str, spot: str) -> str:
    """Excerpt a render; the first occurrence of `spot` stands between ⟦ and ⟧."""
    return excerpt(text.replace(spot, f"{LOST[0]}{spot}{LOST[1]}", 1) if spot else text)


def error_excerpt(error: str) -> str:
    """Spell what a template raised."""
    return f"raised {excerpt(error)}"


def differences(a: str, b: str) -> tuple[str, str]:
    """Return an excerpt of each of two renders; what differs stands between ⟦ and ⟧."""
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    tail = 0
    while tail < min(len(a), len(b)) - at and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    first, second = (
        f"{text[:at]}{LOST[0]}{text[at : len(text) - tail]}{LOST[1]}{text[len(text) - tail :]}" for text in (a, b)
    )
    return excerpt(first), excerpt(second)
