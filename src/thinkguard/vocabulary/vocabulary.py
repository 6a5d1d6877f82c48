"""Token id -> bytes and flags, whatever library the tokenizer comes from.

The bytes are those that `decode(skip_special_tokens=False)` writes for a token in the middle of a sequence. What a
decoder does to the *whole* text (SentencePiece drops one leading space) is no property of a token and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkguard.errors import InputError, TokenizerError
from thinkguard.vocabulary import readers, tokenizer_files
from thinkguard.vocabulary.readers import Encoder, Reading

_WORD = "A"  # any word, for spelling what stands in front of one


class TokenFlag(IntFlag):
    """What a token is besides its bytes; the values are pinned, C reads them."""

    ADDED = 1  # an added token
    SPECIAL = 2  # dropped by decode(skip_special_tokens=True)
    BYTE = 4  # a `<0xNN>` token of a vocabulary that falls back to bytes
    DUPLICATE = 8  # a BYTE token whose byte another token spells too
    UNUSED = 16  # an id that spells nothing, because no token has it


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Vocabulary:
    """Token id -> bytes and flags.

    Immutable and shared; copies are the object itself. A pickle leaves the tokenizer behind: what comes out of it
    cannot `encode`, unless it was made by `from_parts` without `encode`.
    """

    text: npt.NDArray[np.uint8]  # [total], all tokens' bytes one after the other
    offsets: npt.NDArray[np.int64]  # [num_tokens + 1]; token t spells text[offsets[t]:offsets[t + 1]]
    flags: npt.NDArray[np.uint8]  # [num_tokens], TokenFlag
    added: Mapping[str, int]  # content -> id, every added token
    eos_ids: tuple[int, ...]
    bos_ids: tuple[int, ...]
    pad_ids: tuple[int, ...]
    chat_template: str | None
    _encoders: tuple[Encoder, ...] | None  # tried in order, on text without added tokens; None: lost in a pickle
    _cache: dict[str, Any] = field(default_factory=dict)  # of `encode`, filled on first use

    @property
    def num_tokens(self) -> int:
        """The highest id + 1, unused ids included."""
        return len(self.flags)

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token spells; empty for an unused id. InputError for an id out of range."""
        if not 0 <= token_id < self.num_tokens:
            raise InputError(f"token_id={token_id} is out of range: this vocabulary has ids 0 to {self.num_tokens - 1}")
        return self.text[self.offsets[token_id] : self.offsets[token_id + 1]].tobytes()

    def encode(self, text: str) -> list[int]:
        """Spell `text` as the continuation of another text, the way the tokenizer would.

        No BOS, EOS or dummy prefix space; an added token's content becomes its id, and white space beside it stays.
        The ids spell exactly `text.encode()` (added tokens by their content) without DUPLICATE tokens. Where the
        tokenizer's own spelling does not, the longest ordinary tokens are taken from the left, the lowest id on ties.
        TokenizerError if no tokens spell the text, or after a pickle.
        """
        if self._encoders is None:
            raise TokenizerError(
                "this vocabulary came out of a pickle, which leaves the tokenizer behind, so it cannot encode text; "
                "encode before pickling, or read the tokenizer again with Vocabulary.from_tokenizer"
            )
        if "added" not in self._cache:
            contents = sorted(filter(None, self.added), key=len, reverse=True)
            self._cache["added"] = re.compile("(" + "|".join(map(re.escape, contents)) + ")") if contents else None
        pattern = self._cache["added"]
        token_ids: list[int] = []
        for index, part in enumerate(pattern.split(text) if pattern else [text]):
            if index % 2:
                token_ids.append(self.added[part])
            elif part:
                token_ids += self._spell(part, self._encoders)
        return token_ids

    def encode_bytes(self, data: bytes, *, before_text: bool = False) -> list[int]:
        """`encode` for bytes, which may begin or end inside a character; those are spelled by the longest tokens.

        With `before_text` they are spelled as where a word comes behind them: there some tokenizers write two line breaks
        as two tokens, which at a text's end are one, and a model has only ever seen the former in front of its answer.
        """
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return self._longest_match(data)
        if before_text and data:
            token_ids, length = self._encode_in_front_of_a_word(text), 0
            for index, token_id in enumerate(token_ids):
                length += len(self.token_bytes(token_id))
                if length == len(data):
                    return token_ids[: index + 1]
        return self.encode(text)

    def _encode_in_front_of_a_word(self, text: str) -> list[int]:
        try:
            return self.encode(text + _WORD)
        except TokenizerError:  # a vocabulary that does not have the word's letter
            return []

    def _spell(self, part: str, encoders: tuple[Encoder, ...]) -> list[int]:
        wanted, spelled_by = part.encode(), self.text.data
        for encoder in encoders:
            ids = np.fromiter(encoder(part), np.int64)
            if len(ids) and (ids.min() < 0 or ids.max() >= self.num_tokens):
                continue
            ends = zip(self.offsets[ids].tolist(), self.offsets[ids + 1].tolist(), strict=True)
            doubles = (self.flags[ids] & TokenFlag.DUPLICATE.value).any()
            if not doubles and b"".join([spelled_by[begin:end] for begin, end in ends]) == wanted:
                return ids.tolist()  # type: ignore[no-any-return]
        return self._longest_match(wanted)

    def _longest_match(self, wanted: bytes) -> list[int]:
        """Take the longest token at each byte, among those after which the rest can still be spelled."""
        if "index" not in self._cache:
            unfit = TokenFlag.ADDED | TokenFlag.SPECIAL | TokenFlag.DUPLICATE | TokenFlag.UNUSED
            text, offsets = self.text.tobytes(), self.offsets.tolist()
            ordinary = np.flatnonzero((self.flags & unfit) == 0)[::-1].tolist()  # downwards: the lowest id stays
            index = {text[offsets[i] : offsets[i + 1]]: i for i in ordinary}
            lengths: dict[bytes, set[int]] = {}  # of the tokens with these first two bytes: of all others none can match
            for piece in index:
                lengths.setdefault(piece[:2], set()).add(len(piece))
            self._cache["index"] = index, {head: sorted(some, reverse=True) for head, some in lengths.items()}
        index, lengths_of = self._cache["index"]
        none: list[int] = []
        ends = [-1] * len(wanted) + [len(wanted)]  # where the token that starts here ends; -1: no way on from here
        for start in reversed(range(len(wanted))):
            head = wanted[start : start + 2]
            for length in (*lengths_of.get(head, none), *lengths_of.get(head[:1], none)):
                end = start + length
                if end <= len(wanted) and ends[end] >= 0 and wanted[start:end] in index:
                    ends[start] = end
                    break
        if ends[0] < 0:
            raise TokenizerError(f"no tokens of this vocabulary spell {wanted!r}")
        token_ids, start = [], 0
        while start < len(wanted):
            token_ids.append(index[wanted[start : ends[start]]])
            start = ends[start]
        return token_ids

    @classmethod
    def from_tokenizer(cls, tokenizer: object) -> Vocabulary:
        """Read a tokenizer of any known kind; a Vocabulary is returned as it is.

        Known are: a Hugging Face tokenizer (fast, SentencePiece or tiktoken), a `tokenizers.Tokenizer`, a
        `tiktoken.Encoding`, mistral_common's tokenizers, an object that holds one of these as `.tokenizer` (a
        processor), and the path of a tokenizer.json, of a tekken.json, or of a directory with one of them.
        TokenizerTypeError for anything else, TokenizerError for a tokenizer whose tokens have no bytes of their own
        (WordPiece).
        """
        if isinstance(tokenizer, Vocabulary):
            return tokenizer
        if isinstance(tokenizer, (str, Path)):
            return _build(tokenizer_files.read(Path(tokenizer)))
        return _build(readers.read(tokenizer))

    @classmethod
    def from_parts(
        cls,
        pieces: Sequence[bytes],
        *,
        added: Mapping[str, int] | None = None,
        special: Iterable[int] = (),
        eos_ids: Iterable[int] = (),
        bos_ids: Iterable[int] = (),
        pad_ids: Iterable[int] = (),
        byte_ids: Iterable[int] = (),
        chat_template: str | None = None,
        encode: Encoder | None = None,
    ) -> Vocabulary:
        """Build a vocabulary from what each id spells.

        pieces: one per id, b"" for an unused id; an added token whose piece is empty or missing spells its content.
        byte_ids: the `<0xNN>` tokens, given by the one byte that they spell.
        encode: the vocabulary's own spelling, called with text that holds no added token; without it, and where it
        does not reproduce the text, `Vocabulary.encode` takes the longest tokens. TokenizerError for ids out of range.
        """
        added = dict(added or {})
        spelled = list(pieces) + [b""] * (max(added.values(), default=-1) + 1 - len(pieces))
        for content, token_id in added.items():
            if token_id < 0:
                raise TokenizerError(f"added token {content!r} has id {token_id}; ids start at 0")
            spelled[token_id] = spelled[token_id] or content.encode()
        byte_ids = list(byte_ids)
        for token_id in byte_ids:
            if not 0 <= token_id < len(spelled) or len(spelled[token_id]) != 1:
                raise TokenizerError(f"byte_ids has {token_id}, whose piece is not a single byte")
        text, lengths = readers.joined(spelled)
        return _build(
            Reading(
                text=text,
                lengths=lengths,
                added=added,
                special=list(special),
                byte_ids=byte_ids,
                eos_ids=tuple(eos_ids),
                bos_ids=tuple(bos_ids),
                pad_ids=tuple(pad_ids),
                chat_template=chat_template,
                encoders=() if encode is None else (encode,),
            )
        )

    def __copy__(self) -> Vocabulary:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Vocabulary:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = (self.text, self.offsets, self.flags)
        ids = (self.eos_ids, self.bos_ids, self.pad_ids)
        return _seal, (*arrays, dict(self.added), *ids, self.chat_template, None if self._encoders else self._encoders)

    def __repr__(self) -> str:
        return f"Vocabulary(num_tokens={self.num_tokens}, added={len(self.added)}, eos_ids={self.eos_ids})"


def _build(reading: Reading) -> Vocabulary:
    """Compute the flags of a reading, check its ids, and freeze it."""
    lengths = reading.lengths
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    named = {
        "special": reading.special,
        "eos_ids": reading.eos_ids,
        "bos_ids": reading.bos_ids,
        "pad_ids": reading.pad_ids,
    }
    for name, token_ids in named.items():
        for token_id in token_ids:
            if not 0 <= token_id < len(lengths):
                raise TokenizerError(f"{name} has {token_id}; this vocabulary has ids 0 to {len(lengths) - 1}")
    flags = np.zeros(len(lengths), np.uint8)
    flags[list(reading.added.values())] |= TokenFlag.ADDED.value
    flags[list(reading.special)] |= TokenFlag.SPECIAL.value
    flags[(lengths == 0) & (flags == 0)] = TokenFlag.UNUSED.value
    single = lengths == 1
    first = np.zeros(len(lengths), np.uint8)  # a token's byte, where it is its only one
    first[single] = reading.text[offsets[:-1][single]]
    is_byte = np.zeros(len(lengths), np.bool_)
    is_byte[list(reading.byte_ids)] = True
    elsewhere = np.unique(first[single & ~is_byte & ((flags & TokenFlag.SPECIAL) == 0)])
    flags[is_byte] |= TokenFlag.BYTE.value
    flags[is_byte & np.isin(first, elsewhere)] |= TokenFlag.DUPLICATE.value
    ids = (reading.eos_ids, reading.bos_ids, reading.pad_ids)
    return _seal(reading.text, offsets, flags, reading.added, *ids, reading.chat_template, reading.encoders)


def _seal(
    text: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    flags: npt.NDArray[np.uint8],
    added: Mapping[str, int],
    eos_ids: tuple[int, ...],
    bos_ids: tuple[int, ...],
    pad_ids: tuple[int, ...],
    chat_template: str | None,
    encoders: tuple[Encoder, ...] | None,
) -> Vocabulary:
    """Make the arrays read-only and wrap them up; also what a pickle calls."""
    for array in (text, offsets, flags):
        array.flags.writeable = False
    frozen = MappingProxyType(dict(added))
    return Vocabulary(text, offsets, flags, frozen, eos_ids, bos_ids, pad_ids, chat_template, encoders)
