"""One JSON record: parsed as fast as this machine can, refused in words that say what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_TYPES: Final = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}
_SHOWN: Final = 30  # bytes of context on either side of an error


class _StrictError(ValueError):
    """Something that Python's reader would let pass."""


def record_of(data: bytes, *, closely: bool = True) -> Mapping[str, Any] | str:
    """Parse one record; a str says why that fails. Only `closely` finds a key that stands twice in one object."""
    try:
        value = loads(data)
    except (ValueError, RecursionError) as error:
        return _why(data, error)
    if type(value) is not dict:
        return f"a record has to be an object, this is {_TYPES.get(type(value), 'null')}: {_excerpt(data, 0)}"
    if closely and data.count(b'"') != 2 * _num_strings(value) and (key := _doubled_key(data, value)):
        return f"the key {key!r} stands twice in one object: readers keep the last one, or refuse; keep one of them"
    return value


def strict_loads(data: bytes) -> Any:
    """Parse with the standard library what `orjson.loads` would, and raise ValueError for what it would not."""
    text = data.decode()
    value = json.loads(text, parse_constant=_refuse)
    if _SURROGATE.search(data):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _refuse(constant: str) -> Any:
    raise _StrictError(f"{constant} is no JSON")


def _fastest() -> Callable[[bytes], Any]:
    try:
        import orjson
    except ImportError:
        return strict_loads
    return orjson.loads


loads: Callable[[bytes], Any] = _fastest()


def _num_strings(value: Any) -> int:
    """Count keys and strings of a parsed value; a list that begins with a number is taken to hold numbers."""
    count, pending = 0, [value]
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind is str:
            count += 1
        elif kind is dict:
            count += len(item)
            pending += item.values()
        elif kind is list and item and type(item[0]) not in (int, float):
            pending += item
    return count


def _doubled_key(data: bytes, value: Any) -> str:
    """Name a key that one object holds twice; "" if none does.

    Each key and string has one pair of quotes that are not escaped. More pairs than parsed keys and strings mean that a
    value was overwritten; only then is the text read again, by a slower reader.
    """
    bare = data.replace(b"\\\\", b"")
    if bare.count(b'"') - bare.count(b'\\"') <= 2 * _num_strings(value):
        return ""
    doubled: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        doubled.extend(key for key in set(keys) if keys.count(key) > 1)

    try:
        json.loads(data, object_pairs_hook=look)
    except RecursionError:  # deeper than this reader can go, and already parsed by one that can
        return ""
    return doubled[0] if doubled else ""


def _why(data: bytes, error: Exception) -> str:
    """Say what is wrong with text that could not be parsed, and what to do."""
    if b"\0" in data:
        return "NUL bytes: UTF-16 without its mark (iconv -f UTF-16 -t UTF-8), or a file cut off by a crash"
    try:
        text = data.decode()
    except UnicodeDecodeError as wrong:
        byte = f"0x{data[wrong.start]:02x}"
        return (
            f"byte {byte} at column {wrong.start + 1} is no UTF-8: {_excerpt(data, wrong.start)}; if the file is Latin-1, "
            "convert it with iconv -f CP1252 -t UTF-8"
        )
    if isinstance(error, RecursionError) or "recursion" in str(error).lower():
        return "nested deeper than 1,000 levels: a record has no need of that"
    if _SURROGATE.search(data) and "surrogate" in str(error).lower():
        place = _SURROGATE.search(data)
        return f"half of a surrogate pair: {_excerpt(data, place.start() if place else 0)}; write the character, or U+FFFD"
    try:
        json.loads(text, parse_constant=_refuse)
    except _StrictError as wrong_constant:
        return f"{wrong_constant}: write null"
    except json.JSONDecodeError as wrong_text:
        return _syntax_fault(text, wrong_text)
    except RecursionError:
        return "nested deeper than 1,000 levels: a record has no need of that"
    return f"no JSON: {error}"


def _syntax_fault(text: str, error: json.JSONDecodeError) -> str:
    data, start = text.encode(), len(text[: error.pos].encode())
    if text.lstrip().startswith(("{'", "[{'")):
        return f"Python's own notation, not JSON: {_excerpt(data, start)}; write the file with json.dumps"
    if not text[error.pos :].strip() or error.msg.startswith("Unterminated string"):
        return f"ends before the record does: {_excerpt(data, len(data))}; it was cut off, or a text holds a raw line end"
    if error.msg == "Extra data":
        return f"more than one value: {_excerpt(data, start)}; each record needs a line of its own"
    return f"no JSON at column {error.pos + 1} ({error.msg}): {_excerpt(data, start)}"


def _excerpt(data: bytes, at: int) -> str:
    """Return the text around a byte; the byte itself stands behind ⟦."""
    before = data[max(0, at - _SHOWN) : at].decode(errors="replace").lstrip("\ufffd")
    after = data[at : at + _SHOWN].decode(errors="replace").rstrip("\ufffd") or "end"
    return f"{before}⟦{after}⟧".replace("\n", " ")
