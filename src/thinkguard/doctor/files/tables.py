"""The rows of Parquet and Arrow files, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from thinkguard.doctor.files.kinds import Fault

_BATCH_BYTES: Final = 8 << 20
_MOST_ROWS: Final = 1024


def parquet_rows(path: Path, shard: tuple[int, int]) -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
    """Yield (row, record or what is wrong with it) of a Parquet file; row 0 for the file as a whole."""
    pa = _pyarrow(path)
    import pyarrow.parquet as pq

    index, count = shard
    try:
        file = pq.ParquetFile(path, memory_map=True, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        if index == 0:
            yield 0, _whole("Parquet", error)
        return
    with file:
        row, whole_groups = 1, file.metadata.num_row_groups >= count
        for group in range(file.metadata.num_row_groups):
            about = file.metadata.row_group(group)
            if not whole_groups or group % count == index:
                part = (0, 1) if whole_groups else shard
                batches = file.iter_batches(batch_size=_rows_of(about.total_byte_size, about.num_rows), row_groups=[group])
                yield from _rows(pa, batches, row, part, about.num_rows)
            row += about.num_rows


def arrow_rows(path: Path, shard: tuple[int, int]) -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
    """Yield (row, record or what is wrong with it) of an Arrow file or stream; row 0 for the file as a whole."""
    pa = _pyarrow(path)
    index, _ = shard
    with pa.memory_map(str(path)) as source:
        try:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        except (pa.ArrowException, OSError) as error:
            if index == 0:
                yield 0, _whole("Arrow", error)
            return
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        yield from _rows(pa, _sliced(batches), 1, shard, None)


def _rows(
    pa: Any, batches: Iterator[Any], row: int, shard: tuple[int, int], num_rows: int | None
) -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
    """Yield the rows of every n-th batch; `row` is the first one's number, `num_rows` how many there should be."""
    index, count = shard
    number, last = 0, row + (num_rows or 0)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            if index == 0:
                rest = f"{last - row:,} rows" if num_rows else "the rows after it"
                yield row, Fault(f"this row and {rest} cannot be read: {_first_line(error)}", "part")
            return
        if batch is None:
            return
        if number % count == index:
            yield from _records(pa, batch, row)
        row, number = row + batch.num_rows, number + 1


def _records(pa: Any, batch: Any, row: int) -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
    """Yield a batch's rows; a batch that cannot be read is halved until the broken rows are alone."""
    try:
        batch.validate(full=True)
        values = batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError, KeyError) as error:
        if batch.num_rows == 1:
            yield row, Fault(f"this row cannot be read: {_first_line(error)}")
        else:
            half = batch.num_rows // 2
            yield from _records(pa, batch.slice(0, half), row)
            yield from _records(pa, batch.slice(half), row + half)
        return
    yield from enumerate(values, row)


def _sliced(batches: Iterator[Any]) -> Iterator[Any]:
    """Cut batches so that none of their parts is large."""
    for batch in batches:
        size = _rows_of(batch.nbytes, batch.num_rows)
        for start in range(0, batch.num_rows, size):
            yield batch.slice(start, size)


def _rows_of(num_bytes: int, num_rows: int) -> int:
    return max(1, min(_MOST_ROWS, num_rows * _BATCH_BYTES // max(num_bytes, 1)))


def _whole(format: str, error: Exception) -> Fault:
    return Fault(f"cannot be read as {format}: {_first_line(error)}; write it again, or download it again", "file")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise ImportError(f"reading {path.name} needs pyarrow: pip install 'thinkguard[doctor]'") from error
    return pyarrow
