"""The records of a JSON array, or of objects that span lines, one by one without holding the document.

A record's end is found by brackets and quotes alone. Faster, it is guessed: the text that stood between the records before
is searched for, and what lies before it is the record if it parses. A broken record costs itself alone, if the next one can
be found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final, NamedTuple

from thinkguard.doctor.files import json_text
from thinkguard.doctor.files.json_window import BrokenError, Window

_AHEAD: Final = 1 << 16  # bytes in which a wrapper has to name its array
_WRAPPERS: Final = b'"data" "train" "rows" "records" "examples" "instances" "samples" "items" "dataset"'.split()
_RECORD_KEYS: Final = b'"messages" "conversations" "conversation" "prompt" "instruction" "question" "input" "text"'.split()
_QUOTED: Final = re.compile(rb'"[^"\\\n]*(?:\\.[^"\\\n]*)*"|[{}\[\]]')
_LIST_NEXT: Final = re.compile(rb"\s*:\s*\[\s*[{\]]")
_FIRST_KEY: Final = re.compile(rb'\{\s*"[^"\\\n]{0,64}"')
_LONGEST_GAP: Final = 64
_GUESSES: Final = 8  # wrong guesses, after which every end is found by brackets
_SCALAR: Final = re.compile(rb"[^\s,\]}]*")


class Element(NamedTuple):
    """The text of one record, or the error that kept it from being read."""

    data: bytes
    line: int  # of the file, where the record begins
    error: str = ""
    value: Any = None  # if it was parsed already
    last: bool = False  # of an error: whether nothing after it is read


def elements(read: Callable[[int], bytes], max_bytes: int) -> Iterator[Element]:
    """Find the records of a JSON document: of an array, of an array under a known key, or objects one after another."""
    window = Window(read, max_bytes)
    while byte := window.next_byte():
        if byte == b"[":
            window.at += 1
            if not (yield from _array(window)):
                return
        elif byte == b"{" and _enter_wrapper(window):
            if not (yield from _array(window)):
                return
            try:
                window.value(depth=1)
            except BrokenError as error:
                yield Element(b"", window.here(), str(error), last=True)
                return
        elif byte == b"{":
            line = window.here()
            try:
                yield _element(window, line)
            except BrokenError as error:
                yield _broken(line, f"{error}: {window.excerpt()}")
                return
        else:
            yield _broken(window.here(), f"neither an object nor a list: {window.excerpt()}")
            return


def _array(window: Window) -> Generator[Element, None, bool]:
    """Yield the records of a list whose bracket was stepped over; returns whether what follows it can be read."""
    indent = window.indent() if window.next_byte() else None
    seam, wrong = b"", 0  # what stands between two records, from bracket to first key; how often that was misleading
    while (byte := window.next_byte()) != b"]":
        line = window.here()
        if seam and byte == b"{":
            if element := _guess(window, seam, line):
                yield element
                continue
            wrong += window.text.find(seam, window.at) >= 0
        if not byte:
            yield Element(b"", line, "the list is not closed: the file was cut off", last=True)
            return False
        try:
            yield _element(window, line) if byte in (b"{", b"[") else _scalar(window, line)
        except BrokenError as error:
            message = f"{error}: {window.excerpt()}"
            if indent is None or not window.find_again(b"\n" + indent + b"{"):
                yield _broken(line, message)
                return False
            yield Element(b"", line, message)
        seam = _seam(window) if wrong < _GUESSES else b""
    window.at += 1
    return True


def _seam(window: Window) -> bytes:
    """Return the text from the bracket that ends a record here through the next record's first key; b"" if none."""
    text, end = window.text, window.at
    start = text.find(b"{", end, end + _LONGEST_GAP)
    key = _FIRST_KEY.match(text, start) if start >= 0 and not text[end:start].strip(b", \t\r\n") else None
    return text[end - 1 : key.end()] if key and end and text[end - 1 : end] == b"}" else b""


def _guess(window: Window, seam: bytes, line: int) -> Element | None:
    """Take the text up to the next seam for the record, if it parses; None if it does not."""
    end = window.text.find(seam, window.at) + 1
    if not end or end - window.at > window.max_bytes:
        return None
    data = window.text[window.at : end]
    try:
        value = json_text.loads(data)
    except (ValueError, RecursionError):
        return None
    window.at = end
    return Element(data, line, "", value)


def _element(window: Window, line: int) -> Element:
    data = window.value()
    if data is None:
        return Element(b"", line, f"longer than {window.max_bytes:,} bytes: no training record, so it was not read")
    return Element(data, line)


def _broken(line: int, message: str) -> Element:
    return Element(b"", line, f"{message}; nothing after it is read: mend it, then look again", last=True)


def _scalar(window: Window, line: int) -> Element:
    """Step over what is no record: a string, a number."""
    start = window.at
    if window.text[start : start + 1] == b'"':
        window.at, start, held = window.string(start + 1, start, True)
        return Element(window.text[start : window.at] if held else b'""', line)
    found = _SCALAR.match(window.text, start)
    window.at = max(found.end() if found else 0, start + 1)
    return Element(window.text[start : window.at], line)


def _enter_wrapper(window: Window) -> bool:
    """Go into the array of a document such as {"version": 1, "data": [...]}; returns whether there is one."""
    if len(window.text) - window.at < _AHEAD:
        window.more_or_end()
    depth = 0
    for found in _QUOTED.finditer(window.text, window.at, window.at + _AHEAD):
        token = found.group()
        if token[0] != 34:
            depth += 1 if token in (b"{", b"[") else -1
            if depth == 0:
                return False
        elif depth == 1:
            if token in _RECORD_KEYS and window.text[found.end() : found.end() + 1] == b":":
                return False
            if token in _WRAPPERS and (following := _LIST_NEXT.match(window.text, found.end())):
                window.at = following.end() - 1
                return True
    return False
