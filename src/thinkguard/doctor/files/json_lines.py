"""JSON Lines by byte ranges: a part of a file has the lines that begin in it; lines that are too long are not held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

CHUNK: Final = 1 << 20


def lines_of(read: Callable[[int], bytes], max_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Split a stream into (line, its length in bytes); of a line longer than `max_bytes` only the beginning is kept."""
    held: list[bytes] = []
    length = 0

    def finished() -> tuple[bytes, int]:
        line = b"".join(held)
        return (line if length <= max_bytes else line[:CHUNK]), length

    while chunk := read(CHUNK):
        first, *rest = chunk.split(b"\n")
        length += len(first)
        if length <= max_bytes or not held:
            held.append(first)
        elif len(held) > 1:  # too long by now: only its beginning is shown
            del held[1:]
        if not rest:
            continue
        yield finished()
        last = rest.pop()
        for line in rest:
            yield line, len(line)
        held, length = [last], len(last)
    if length:
        yield finished()


def range_of(file: BinaryIO, size: int, shard: tuple[int, int]) -> tuple[Callable[[int], bytes], int]:
    """Return (a reader of the lines that begin in one of n equal parts of a file, the number of the first of them)."""
    index, count = shard
    start, stop = size * index // count, size * (index + 1) // count
    number = 1
    file.seek(0)
    while (at := file.tell()) < start:
        number += file.read(min(CHUNK, start - at)).count(b"\n")
    if start:  # a line that begins before the part belongs to the part before
        file.seek(start - 1)
        if file.read(1) != b"\n":
            number += 1
            while (line := file.readline(CHUNK)) and not line.endswith(b"\n"):
                continue

    def read(num_bytes: int) -> bytes:
        at = file.tell()
        if at < stop:
            return file.read(min(num_bytes, stop - at))
        if at <= start:
            return b""
        file.seek(at - 1)
        if file.read(1) == b"\n":
            return b""
        return file.readline(num_bytes)  # the rest of the last line, which begins before the end of the part

    return read, number
