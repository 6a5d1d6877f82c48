"""Finding markers in a text from left to right, and characters that are not finished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from proof.structure import WHITE


class Place(NamedTuple):
    """Where a scan stands: behind which marker, in which half-written one, how far in the white space behind a start."""

    within: str = "before"  # "reasoning", "answer"
    half: str = ""
    space: int | None = None


@dataclass(frozen=True)
class Scan:
    """Markers, found from left to right without overlaps."""

    starts: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    openers: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()  # openers of tool calls: they end the reasoning, and belong to the answer
    quotes: bool = False  # whether starts and ends in an answer mean nothing
    heads: bool = False  # whether a header follows an end, and not the answer

    def behind(self, marker: str) -> str:
        """What begins behind a marker."""
        if marker in self.starts:
            return "reasoning"
        return "before" if self.heads and marker in self.ends else "answer"

    def begun(self, half: str) -> str:
        """The longest end of a text that begins a marker."""
        markers = (*self.starts, *self.ends, *self.openers, *self.calls)
        while half and not any(one.startswith(half) and one != half for one in markers):
            half = half[1:]
        return half

    def read(self, place: Place, piece: bytes, space: str) -> tuple[Place, list[str], bool]:
        """(place behind a token, markers completed, whether a visible byte stands behind the last)."""
        found: list[str] = []
        visible, half, within, gap = False, place.half, place.within, place.space
        for letter in map(chr, piece):  # markers are ASCII
            half += letter
            quoted = self.quotes and within == "answer"
            meant = self.openers if quoted else (*self.starts, *self.ends, *self.openers)
            meant = (*meant, *self.calls) if within == "reasoning" else meant
            done = [one for one in meant if half.endswith(one)]
            visible = visible or ord(letter) not in WHITE
            if gap is not None:
                gap = gap + 1 if space.startswith(letter, gap) else None
            if done:
                longest = max(done, key=len)
                found.append(longest)
                half, visible = "", longest in self.calls
                within = self.behind(longest)
                gap = 0 if longest in self.starts else None
            else:
                half = self.begun(half)
        return Place(within, half, gap), found, visible


def unfinished(text: bytes) -> bytes:
    """The beginning of a UTF-8 character that a text ends in and that can still be finished; empty if there is none."""
    for length in (1, 2, 3):
        tail = text[-length:]
        if len(tail) == length and any(is_utf8(tail + rest) for rest in _RESTS):
            return tail
    return b""


def read_bytes(begun: bytes, follows: bool, piece: bytes) -> tuple[bytes, bool, bool]:
    """(character begun behind a token, whether it follows a whole one, whether the token broke one that did)."""
    cut = bool(begun) and follows and not piece
    for byte in piece:
        grown = begun + bytes([byte])
        if is_utf8(grown):
            begun, follows = b"", True
        elif unfinished(grown) == grown:
            begun = grown
        else:
            cut = cut or (bool(begun) and follows)
            begun, follows = unfinished(grown), not begun
    return begun, follows, cut


_RESTS = [bytes([byte]) + b"\x80" * more for byte in (0x80, 0xBF) for more in range(3)]


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
