"""The markers of a checkpoint's format as its vocabulary spells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from thinkguard.doctor.tokenizer.checkpoint import Checkpoint
from thinkguard.errors import TokenizerError
from thinkguard.vocabulary import TokenFlag, Vocabulary

Kind = Literal["token", "pieces", "text"]


@dataclass(frozen=True, slots=True)
class Marker:
    """One marker, as it is spelled on its own."""

    text: str
    side: Literal["start", "end"]
    ids: tuple[int, ...]
    kind: Kind  # "token": one; "pieces": several, added tokens among them; "text": ordinary tokens
    special: tuple[int, ...]  # those of its ids that decode(skip_special_tokens=True) drops


def markers_of(checkpoint: Checkpoint) -> tuple[Marker, Marker] | str:
    """Return the format's start and end, or why they cannot be looked at."""
    vocabulary, format = checkpoint.vocabulary, checkpoint.format
    if vocabulary is None:
        return "the vocabulary could not be read (see checkpoint)"
    if format is None:
        return "which markers the model uses is not known: name its format with --format"
    try:
        return _marker(vocabulary, format.starts[0], "start"), _marker(vocabulary, format.ends[0], "end")
    except TokenizerError as error:
        return str(error)


def pieces(vocabulary: Vocabulary, ids: tuple[int, ...]) -> str:
    """Spell tokens one by one, for people: `'</' 'think' '>'`."""
    return " ".join(repr(vocabulary.token_bytes(token_id).decode("utf-8", "replace")) for token_id in ids)


def _marker(vocabulary: Vocabulary, text: str, side: Literal["start", "end"]) -> Marker:
    ids = tuple(vocabulary.encode(text))
    flags = [int(vocabulary.flags[token_id]) for token_id in ids]
    added = any(flag & (TokenFlag.ADDED | TokenFlag.SPECIAL) for flag in flags)
    kind: Kind = "token" if len(ids) == 1 else "pieces" if added else "text"
    special = tuple(token_id for token_id, flag in zip(ids, flags, strict=True) if flag & TokenFlag.SPECIAL)
    return Marker(text, side, ids, kind, special)
