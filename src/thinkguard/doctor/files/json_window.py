"""The part of a JSON stream that is being looked at: steps over strings and values, holds one record at most."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

CHUNK: Final = 1 << 20
_TOKEN: Final = re.compile(rb'"[^"\\\n]*(?:\\.[^"\\\n]*)*"|["{}\[\]]')
_REACH: Final = 1 << 14  # bytes of a string that are matched at once: the matcher remembers every escape in it
_BLANK: Final = re.compile(rb"[\s,]*")
_OPENING: Final = {ord("}"): ord("{"), ord("]"): ord("[")}
_DEEPEST: Final = 10_000
_QUOTE, _BACKSLASH = ord('"'), ord("\\")


class BrokenError(Exception):
    """The text cannot be followed any further."""


class Window:
    """A stretch of text, read on as needed; `at` is the place that is looked at."""

    def __init__(self, read: Callable[[int], bytes], max_bytes: int) -> None:
        self.read, self.max_bytes = read, max_bytes
        self.text = b""
        self.at = 0
        self._line, self._counted = 1, 0  # the line of the byte at `_counted`

    def more(self, keep: int) -> int:
        """Read on and forget what is before `keep`; returns how many bytes were forgotten. BrokenError at the end."""
        chunk = self.read(max(CHUNK, len(self.text) - keep))  # doubling, so that a long record is copied twice at most
        if not chunk:
            raise BrokenError("the file ends in the middle of this record, it was cut off")
        self._line += self.text.count(b"\n", self._counted, keep) if keep > self._counted else 0
        self._counted = max(self._counted, keep) - keep
        self.text = self.text[keep:] + chunk
        self.at -= keep
        return keep

    def more_or_end(self) -> bool:
        """Read on; returns whether there was more."""
        try:
            self.more(max(self.at, 0))
        except BrokenError:
            return False
        return True

    def here(self) -> int:
        """Return the line that is being looked at."""
        if self.at > self._counted:
            self._line += self.text.count(b"\n", self._counted, self.at)
            self._counted = self.at
        return self._line

    def excerpt(self) -> str:
        """Return the next 60 bytes on one line, as evidence."""
        return self.text[max(self.at, 0) :][:60].decode(errors="replace").replace("\n", " ")

    def indent(self) -> bytes | None:
        """Return the blanks before this place, if nothing else stands before it on its line."""
        start = self.text.rfind(b"\n", 0, self.at)
        before = self.text[start + 1 : self.at]
        return before if start >= 0 and not before.strip() else None

    def next_byte(self) -> bytes:
        """Step over blanks and commas; b"" at the end of the stream."""
        while True:
            found = _BLANK.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text):
                return self.text[self.at : self.at + 1]
            if not self.more_or_end():
                return b""

    def string(self, at: int, keep: int, held: bool) -> tuple[int, int, bool]:
        """Step over the string whose text begins at `at`; returns (its end, keep, held).

        The text from `keep` on is held in memory if `held`; places move as the text before them is forgotten.
        """
        while True:
            end = self.text.find(b'"', at)
            stop = end if end >= 0 else len(self.text)
            if self.text.find(b"\n", at, stop) >= 0:
                raise BrokenError("a text without its closing quote")
            odd = stop > at and self.text[stop - 1] == _BACKSLASH and self._odd(at, stop)
            if end >= 0 and not odd:
                return end + 1, keep, held
            if end >= 0:
                at = end + 1
                continue
            at = stop - odd
            held = held and at - keep <= self.max_bytes
            moved = self.more(keep if held else at)
            at, keep = at - moved, keep - moved

    def _odd(self, start: int, stop: int) -> bool:
        """Whether an odd number of backslashes stands before `stop`."""
        piece = self.text[start:stop]
        return bool((len(piece) - len(piece.rstrip(b"\\"))) % 2)

    def value(self, depth: int = 0) -> bytes | None:
        """Step over an object or a list; returns its text, None if that is too long. At depth 1, leave the object around."""
        at = keep = self.at
        held = depth == 0
        opened = bytearray(b"{" * depth)
        while True:
            found = _TOKEN.search(self.text, at, at + _REACH)
            if found is None:
                at = min(at + _REACH, len(self.text))
                if at == len(self.text):
                    held = held and at - keep <= self.max_bytes
                    moved = self.more(keep if held else at)
                    at, keep = at - moved, keep - moved
                continue
            start, at = found.span()
            byte = self.text[start]
            if byte == _QUOTE:
                if at == start + 1:  # too long for a match, or not all of it is here
                    at, keep, held = self.string(at, keep, held)
            elif byte not in _OPENING:
                opened.append(byte)
                if len(opened) > _DEEPEST:
                    raise BrokenError(f"nested deeper than {_DEEPEST:,} levels")
            elif not opened or opened.pop() != _OPENING[byte]:
                raise BrokenError(f"a {chr(byte)} that closes nothing")
            elif not opened:
                self.at = at
                return self.text[keep:at] if held and at - keep <= self.max_bytes else None

    def find_again(self, mark: bytes) -> bool:
        """Go to the last byte of the next `mark`, which stands before each record; returns whether there is one."""
        at = max(self.at, 0)
        while (found := self.text.find(mark, at)) < 0:
            at = max(0, len(self.text) - len(mark))
            self.at = at
            if not self.more_or_end():
                return False
            at = 0
        self.at = found + len(mark) - 1
        return True
