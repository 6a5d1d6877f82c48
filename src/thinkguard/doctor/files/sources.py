"""Files of records of any format, as a stream of bounded memory; what is broken does not stop the rest."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from thinkguard.doctor.files.folders import data_files
from thinkguard.doctor.files.json_lines import lines_of, range_of
from thinkguard.doctor.files.json_stream import elements
from thinkguard.doctor.files.json_text import record_of
from thinkguard.doctor.files.kinds import UNREADABLE, Fault, Kind, Lost, kind_of, layout_of, opened_as
from thinkguard.doctor.files.tables import arrow_rows, parquet_rows
from thinkguard.errors import InputError

MAX_BYTES: Final = 64 << 20
_ENDS: Final = 1 << 16  # bytes of a file's beginning, and of its end, that go into its digest
_BOM: Final = b"\xef\xbb\xbf"
_WITHOUT_BOM: Final = "sed -i '1s/^\\xef\\xbb\\xbf//'"


@dataclass(slots=True)
class Raw:
    """One record as it was read, or why there is none."""

    file: str
    line: int  # 1-based: the line of JSON Lines, else the record's number; 0: the file as a whole
    value: Mapping[str, Any] | None
    error: str = ""  # why there is no value
    lost: Lost = "record"  # what that costs


def files_of(paths: Iterable[Path]) -> list[Path]:
    """Return the data files among `paths`, folders searched. InputError if a path does not exist or a folder has none."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"no file or folder {str(path)!r}: give the training data's own path")
        files = data_files(path) if path.is_dir() else [path]
        if not files:
            raise InputError(f"no data in the folder {str(path)!r}: wanted are .json, .jsonl, .parquet or .arrow files")
        found |= dict.fromkeys(files)
    return list(found)


def digest_of(path: Path) -> str:
    """Return a digest of a file's name, size, beginning and end, wherever it lies; "" if it is empty or unreadable."""
    try:
        with _regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(f"{path.name}\0{size}\0".encode(errors="surrogateescape"), digest_size=16)
            digest.update(file.read(_ENDS))
            file.seek(max(size - _ENDS, 0))
            digest.update(file.read(_ENDS))
    except OSError:
        return ""
    return digest.hexdigest() if size else ""


def raw_records(path: Path, *, shard: tuple[int, int] = (0, 1), max_bytes: int = MAX_BYTES) -> Iterator[Raw]:
    """Read a file's records; shard (i, n) is the i-th of n parts, which together hold each record once.

    Plain JSON Lines are split by bytes, Parquet by row groups, anything else by every n-th record. What cannot be read is
    a Raw with an error; a line or record longer than `max_bytes` is one of these, and is never held.
    """
    index, count = shard
    if not 0 <= index < count:
        raise InputError(f"shard={shard}: the first number counts from 0 and has to be below the second")
    name = str(path)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_regular(path))
            kind = kind_of(path, file)
        except OSError as error:
            kind = Kind("", f"cannot be opened: {error.strerror or error}")
        if kind.error:
            if index == 0:
                yield Raw(name, 0, None, kind.error, "file")
        elif kind.name in ("parquet", "arrow"):
            rows = parquet_rows(path, shard) if kind.name == "parquet" else arrow_rows(path, shard)
            for row, value in rows:
                yield Raw(name, row, None, *value) if isinstance(value, Fault) else Raw(name, row, value)
        else:
            yield from _json_records(path, file, kind, shard, max_bytes)


def _regular(path: Path) -> BinaryIO:
    """Open a regular file; OSError for anything else: a pipe would wait for ever, a device never end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("no regular file but a pipe, a device or a folder; write its data to a file first")
    return os.fdopen(descriptor, "rb")


def _json_records(path: Path, file: BinaryIO, kind: Kind, shard: tuple[int, int], max_bytes: int) -> Iterator[Raw]:
    """Read JSON or JSON Lines, compressed or not."""
    name, index = str(path), shard[0]
    number = 0
    try:
        with opened_as(kind.name, file, path) as stream:
            head = stream.read(1 << 16)
        if index == 0 and head.startswith(_BOM):
            yield Raw(name, 0, None, f"begins with a byte order mark, which json.load refuses: {_WITHOUT_BOM}", "nothing")
        layout, wrong = layout_of(path, head)
        if wrong:
            if index == 0:
                yield Raw(name, 0, None, wrong, "file")
            return
        if layout == "lines" and kind.name == "plain":
            read, number = range_of(file, os.fstat(file.fileno()).st_size, shard)
            for raw in _lines(name, read, number, max_bytes, (0, 1)):
                number = raw.line
                yield raw
            return
        with opened_as(kind.name, file, path) as stream:
            if layout == "lines":
                records = _lines(name, stream.read, 1, max_bytes, shard)
            else:
                records = _elements(name, _without_bom(stream.read), max_bytes, shard)
            for raw in records:
                number = raw.line
                yield raw
    except UNREADABLE as error:
        if index == 0 or kind.name == "plain":
            why = str(error)[:160] or type(error).__name__
            yield Raw(name, number + 1, None, f"nothing can be read from here on: {why}", "part")


def _lines(name: str, read: Callable[[int], bytes], number: int, max_bytes: int, shard: tuple[int, int]) -> Iterator[Raw]:
    index, count = shard
    for line, (data, length) in enumerate(lines_of(read, max_bytes), number):
        if line % count != index:
            continue
        if length > max_bytes:
            begins = data[:60].decode(errors="replace")
            yield Raw(name, line, None, f"a line of {length:,} bytes, above {max_bytes:,}, was not read; it begins {begins}")
            continue
        if line == 1:
            data = data.removeprefix(_BOM)
        if data and not data.isspace():
            value = record_of(data, closely=_closely(line))
            yield Raw(name, line, None, value) if type(value) is str else Raw(name, line, value)  # type: ignore[arg-type]


def _elements(name: str, read: Callable[[int], bytes], max_bytes: int, shard: tuple[int, int]) -> Iterator[Raw]:
    index, count = shard
    for number, (data, line, error, parsed, last) in enumerate(elements(read, max_bytes), 1):
        if number % count != index:
            continue
        known = type(parsed) is dict and not _closely(number)
        value = parsed if known else error or record_of(data, closely=_closely(number))
        if isinstance(value, str):
            yield Raw(name, number, None, f"line {line}: {value}", "part" if last else "record")
        else:
            yield Raw(name, number, value)


def _closely(number: int) -> bool:
    """Whether to look for keys that stand twice: a sample will do, for a program doubles all, and looking is slow."""
    return number <= 1024 or number % 16 == 0


def _without_bom(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    begun = False

    def shortened(num_bytes: int) -> bytes:
        nonlocal begun
        data = read(num_bytes)
        data, begun = (data if begun else data.removeprefix(_BOM)), True
        return data

    return shortened
