"""What a file holds, told by its first bytes and not by its name."""

from __future__ import annotations

import zlib
from contextlib import AbstractContextManager, nullcontext
from lzma import LZMAError
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple

from thinkguard.doctor.files.json_text import loads

Layout = Literal["lines", "document"]
Lost = Literal["record", "part", "file", "nothing"]
"""What an error costs: one record, a part of a file, the file, or nothing: a byte order mark is skipped."""
_MAGIC: Final = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",
    b"\x1f\x8b": "gz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bz2",
}
_OTHER: Final = {
    b"PK\x03\x04": "a ZIP archive: unpack it first",
    b"SQLite format 3": "an SQLite database: export its table as JSON Lines",
    b"\x89HDF": "an HDF5 file: export it as JSON Lines",
    b"ustar": "a tar archive: unpack it first",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: git lfs pull",
    b"<!DOCTYPE html": "a web page, not data: download the file itself",
    b"<html": "a web page, not data: download the file itself",
}
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
_LINES: Final = (".jsonl", ".ndjson")
UNREADABLE: Final = (OSError, EOFError, zlib.error, LZMAError)
"""What reading a stream may raise: errors of the disk, and of decompressing."""


class Fault(NamedTuple):
    """Something that cannot be read."""

    error: str
    lost: Lost = "record"


class Kind(NamedTuple):
    """How to open a file, or why it cannot be read."""

    name: str  # "plain", "gz", "zst", "xz", "bz2", "parquet" or "arrow"
    error: str = ""


def kind_of(path: Path, file: BinaryIO) -> Kind:
    """Tell a file's kind; the file is left at its beginning."""
    head = file.read(512)
    file.seek(0)
    if not head:
        return Kind("", "is empty")
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return Kind(name)
    for magic, what in _OTHER.items():
        if head.startswith(magic) or (magic == b"ustar" and head[257:262] == magic):
            return Kind("", f"is {what}")
    if path.suffix in (".arrow", ".parquet"):  # an old stream, which has no mark, or broken, which its reader will say
        return Kind(path.suffix[1:])
    if head.startswith(_UTF16) or head[1::2][:8] == bytes(8) or head[::2][:8] == bytes(8):
        if head.strip(b"\0"):
            return Kind("", "is UTF-16, which trainers do not read: iconv -f UTF-16 -t UTF-8")
        return Kind("", "begins with NUL bytes: it was cut off by a crash, write it again")
    return Kind("plain")


def opened_as(kind: str, file: BinaryIO, path: Path) -> AbstractContextManager[Any]:
    """Return a stream of what a file holds, decompressed; the file itself stays open."""
    file.seek(0)
    if kind == "plain":
        return nullcontext(file)
    if kind == "zst":
        try:
            import pyarrow as pa
        except ImportError as error:
            raise ImportError(f"reading {path.name} needs pyarrow: pip install 'thinkguard[doctor]'") from error
        return pa.input_stream(str(path), compression="zstd")  # type: ignore[no-any-return]
    if kind == "gz":
        import gzip

        return gzip.open(file)
    if kind == "xz":
        import lzma

        return lzma.open(file)
    import bz2

    return bz2.open(file)


def layout_of(path: Path, head: bytes) -> tuple[Layout, str]:
    """Tell JSON Lines from a JSON document by the text's beginning; or ("lines", why it is neither)."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    suffixes = path.suffixes
    named_lines = any(suffix in _LINES for suffix in suffixes)
    if not text:
        return "lines", "" if len(head) == 1 << 16 else "holds nothing but blanks"
    if text[:1] not in b"{[":
        if named_lines or ".json" in suffixes or b"\n{" in text:
            return "lines", ""
        return "lines", f"is neither JSON, JSON Lines, Parquet nor Arrow: it begins with {text[:40]!r}"
    first, newline, rest = text.partition(b"\n")
    first = first.rstrip()
    if first in (b"{", b"["):
        return "document", ""
    if not newline:
        return ("lines" if named_lines and text[:1] == b"{" else "document"), ""
    try:
        value = loads(first)
    except (ValueError, RecursionError):
        spans_lines = first.endswith((b"{", b"[", b",", b":")) and not named_lines
        return ("document" if spans_lines or text[:1] == b"[" else "lines"), ""
    alone = not rest.strip() and not (named_lines and isinstance(value, dict))
    return ("document" if alone else "lines"), ""
