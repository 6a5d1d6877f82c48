"""Whether a tokenised row that holds several conversations can tell where one ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from thinkguard.doctor.records.record import Hit
from thinkguard.vocabulary import Vocabulary

_BOUNDS: Final = ("seq_lengths", "cu_seqlens", "cu_seq_lens", "sequence_ids", "sequence_id", "document_ids", "length")


def packed_hit(raw: Mapping[str, Any], ids: npt.NDArray[np.int64], vocabulary: Vocabulary) -> Hit | None:
    """Return a hit if a row holds several conversations and no column says where one ends, else None.

    Conversations are counted by BOS tokens, or by a beginning with a system text that recurs; packing that leaves neither
    is not noticed. A column says where one ends by restarting positions, by a mask that numbers them, or by lengths.
    """
    num = _conversations(ids, vocabulary)
    if num < 2:
        return None
    if any(raw.get(name) is not None and np.size(raw[name]) > 1 for name in _BOUNDS):
        return None
    attention, positions = _column(raw, "attention_mask"), _column(raw, "position_ids")
    if attention is not None and attention.size and attention.max() > 1:
        return None
    found = f"{num} conversations in {ids.size} tokens"
    if positions is None:
        return Hit("packed-rows", "no column says where one ends", f"{found}, ⟦no position_ids⟧")
    if positions.size != ids.size:
        return Hit("packed-rows", "position_ids of another length", f"{found}, ⟦{positions.size}⟧ position_ids")
    restarts = int((positions[1:] <= positions[:-1]).sum())
    if restarts + 1 >= num:
        return None
    return Hit("packed-rows", "positions do not restart", f"{found}, position_ids 0 … ⟦{int(positions[-1])}⟧")


def _column(raw: Mapping[str, Any], name: str) -> npt.NDArray[np.int64] | None:
    try:
        values = np.asarray(raw.get(name), np.int64)
    except (TypeError, ValueError, OverflowError):
        return None
    return values if values.ndim == 1 else None


def _conversations(ids: npt.NDArray[np.int64], vocabulary: Vocabulary) -> int:
    """Count the conversations of a row by what each begins with."""
    begins = np.isin(ids, vocabulary.bos_ids)
    begins[1:] &= ids[1:] != ids[:-1]  # a doubled BOS is another matter
    if vocabulary.bos_ids and begins[0]:
        if set(vocabulary.bos_ids) & set(vocabulary.eos_ids):
            begins[1:] = False  # one token for both: it ends the turns as well
        return int(begins.sum())
    head = _head(ids, vocabulary)
    if not head:
        return 1
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(head)) if ids.size >= len(head) else ids[:0, None]
    return int((windows == np.asarray(head)).all(axis=1).sum())


def _head(ids: npt.NDArray[np.int64], vocabulary: Vocabulary) -> list[int]:
    """Return the tokens up to the role of a system turn that begins the row; empty if none does."""
    text, head = b"", []
    for token_id in ids[:8].tolist():
        text += vocabulary.token_bytes(token_id)
        head.append(token_id)
        if b"system" in text:
            return head
    return []
