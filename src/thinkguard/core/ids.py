"""What is no token id, in words: the slow half of reading ids, which the compiled half asks where it meets no plain int."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkguard.errors import InputError
from thinkguard.policy import shown

MOST_ID = 2**31 - 1
"""The largest token id."""


def index_of(name: str, value: Any) -> int:
    """Return a whole number as Python's own, whatever library it is of; InputError for anything else, bools too."""
    is_bool = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    if not is_bool and not getattr(value, "ndim", 0):
        try:
            return operator.index(value)
        except TypeError:
            pass
    holds, wanted = ("holds", "one row of whole numbers") if name.endswith("s") else ("is", "a whole number")
    raise InputError(f"{name} {holds} {shown(value)}, a {type(value).__name__}: wanted {wanted}, as token ids are")


def row_of(name: str, ids: Any) -> npt.NDArray[np.integer[Any]]:
    """Return ids that are no list or tuple as an array; InputError for what is not one row of whole numbers."""
    try:
        array = np.asarray(ids.tolist() if hasattr(ids, "tolist") and not isinstance(ids, np.ndarray) else ids)
    except (TypeError, ValueError, RuntimeError) as error:  # torch's own, for a tensor without values, is a RuntimeError
        raise InputError(f"{name} is a {type(ids).__name__} that cannot be read: {error}") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(
            f"{name} has shape {list(array.shape)} and type {array.dtype}: wanted one row of whole numbers, token ids"
        )
    return array if array.size else np.empty(0, np.int64)


def no_id(name: str, value: int) -> InputError:
    """Say that a whole number is no token id."""
    holds = "holds" if name.endswith("s") else "is"
    return InputError(
        f"{name} {holds} {shown(value)}, which is no token id (0 to {MOST_ID}): leave out padding marks such as -100"
    )


def count_of(name: str, value: Any, meaning: str, most: int | None = None) -> int:
    """Return a count or an index that a caller gives; InputError for what is no whole number, or out of range."""
    try:
        count = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = -1
    if count < 0 or (most is not None and count > most):
        raise InputError(f"{name}={shown(value)}: must be {meaning}")
    return count


def eos_ids_of(ids: Iterable[int] | int) -> tuple[int, ...]:
    """Return the ids of an EOS set, each once and in their order; a single one may stand for itself."""
    if isinstance(ids, (str, bytes)):
        raise InputError(f"eos_token_ids={shown(ids)}: wanted token ids, whole numbers")
    if hasattr(ids, "tolist"):  # an array or a tensor, of any number of dimensions
        ids = ids.tolist()
    some = ids if isinstance(ids, Iterable) else (ids,)
    found = tuple(dict.fromkeys(one if type(one) is int else index_of("eos_token_ids", one) for one in some))
    for one in found:
        if not 0 <= one <= MOST_ID:
            raise no_id("eos_token_ids", one)
    return found
