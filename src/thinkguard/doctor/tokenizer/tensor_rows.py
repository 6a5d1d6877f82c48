"""Rows of matrices in safetensors files, read one by one: headers and slices, never a whole tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from thinkguard.errors import InputError

_INDEX: Final = "model.safetensors.index.json"
_MAX_HEADER: Final = 100 << 20  # bytes, as in the format's own readers
_BYTES: Final = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8), **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}  # fmt: skip
READABLE: Final = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Matrix:
    """A tensor of two dimensions in a file."""

    name: str
    file: Path
    dtype: str
    num_rows: int
    width: int
    offset: int  # of its first byte in the file

    def rows(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Read some rows: [len(ids), width]. InputError for a dtype that is not in READABLE, such as a quantised one."""
        if self.dtype not in READABLE:
            raise InputError(f"{self.name} is stored as {self.dtype}, which its rows cannot be read from")
        size = self.width * _BYTES[self.dtype]
        found = np.empty((len(ids), self.width), np.float32)
        with self.file.open("rb") as file:
            for at, row in enumerate(ids):
                if not 0 <= row < self.num_rows:
                    raise InputError(f"{self.name} has no row {row}: it has {self.num_rows}")
                file.seek(self.offset + row * size)
                found[at] = _numbers(file.read(size), self.dtype)
        return found


def _numbers(data: bytes, dtype: str) -> npt.NDArray[Any]:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])


def matrices(folder: Path, files: Sequence[str] | None = None) -> list[Matrix]:
    """Return every matrix of a checkpoint's safetensors files, sharded or not; or of the given files.

    InputError that names the file for a shard that is missing, and for a header that is broken or promises more bytes
    than the file has.
    """
    names = _shards(folder) if files is None else list(files)
    return [matrix for name in names for matrix in _header(folder / name)]


def _shards(folder: Path) -> list[str]:
    if not (folder / _INDEX).is_file():
        return sorted(path.name for path in folder.glob("model*.safetensors"))
    try:
        places = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({Path(str(name)).name for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{_INDEX} cannot be read ({type(error).__name__}: {error}); fetch it again") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{_INDEX} names {missing[0]}, which is not there ({len(missing)} of {len(names)} missing)")
    return names


def _header(path: Path) -> list[Matrix]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= min(_MAX_HEADER, size - 8):
            raise InputError(f"{path.name}: no safetensors header in its {size} bytes; fetch it again (git lfs pull)")
        text = file.read(length)
    try:
        entries: Mapping[str, Any] = json.loads(text)
        return [
            _matrix(path, name, entry, 8 + length, size)
            for name, entry in entries.items()
            if name != "__metadata__" and len(entry["shape"]) == 2
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name}: broken safetensors header ({type(error).__name__}: {error})") from error


def _matrix(path: Path, name: str, entry: Mapping[str, Any], start: int, size: int) -> Matrix:
    num_rows, width = (int(number) for number in entry["shape"])
    begin, end = (int(number) for number in entry["data_offsets"])
    dtype = str(entry["dtype"])
    wanted = num_rows * width * _BYTES.get(dtype, 0)
    if min(num_rows, width, begin) < 0 or start + end > size or (wanted and end - begin != wanted):
        raise InputError(f"{path.name}: {name} does not fit into the file's {size} bytes; it was cut short: fetch it again")
    return Matrix(name, path, dtype, num_rows, width, start + begin)
