"""Whether the tokenizer that is served is the one of the training: markers, ids, flags, spelling, end of sequence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from thinkguard.doctor.check import Check
from thinkguard.doctor.tokenizer.checkpoint import Checkpoint
from thinkguard.doctor.tokenizer.white_space import probes
from thinkguard.errors import TokenizerError
from thinkguard.formats import ThinkFormat
from thinkguard.vocabulary import TokenFlag, Vocabulary

_TEXTS: Final = (
    "The quick brown fox, 3.14 and 42; naïve café.\n\n\tdef f(x):\n        return x  # y\n",
    "汉字かな交じり文 한국어 العربية Ελληνικά 🙂👩‍🔬 e\u0301 \u00a0\u200b end",
    '<|im_start|>assistant\n<tool_call>\n{"name": "f"}\n</tool_call><|im_end|>\n',
)
_SHOWN: Final = 6


def against_checks(checkpoint: Checkpoint, other: Checkpoint) -> tuple[Check, ...]:
    """Check F14: compare with the tokenizer of `--against`, the one that is served."""
    mine, theirs = checkpoint.vocabulary, other.vocabulary
    if mine is None or theirs is None:
        unread = checkpoint.path if mine is None else other.path
        return (Check("tokenizer-differs", "could not tell", f"the vocabulary of {unread} could not be read"),)
    format = checkpoint.format or other.format
    markers, rest = _added(mine, theirs, _pieces(format, mine, theirs))
    markers += _ends(checkpoint, other)
    spelled, marked = _spelling(mine, theirs, format)
    rest += spelled
    markers += marked
    wanted = "the tokenizer of the training, file for file, under the served model"
    if markers:
        found = f"{len(markers)} differences from {other.path} touch the markers or the end of the text"
        return (Check("tokenizer-differs", "problem", found, wanted, evidence=_few([*markers, *rest])),)
    if rest:
        found = f"{len(rest)} differences from {other.path}, none of them in the markers"
        return (Check("tokenizer-differs", "note", found, wanted, evidence=_few(rest)),)
    return (Check("tokenizer-differs", "ok", f"{other.path} has the same tokens, ids, flags and spelling"),)


def _pieces(format: ThinkFormat | None, *vocabularies: Vocabulary) -> set[str]:
    """Return the added tokens of both vocabularies that are part of a marker."""
    if format is None:
        return set()
    texts = [*format.starts, *format.ends, *format.answer_starts, *format.controls]
    return {token for v in vocabularies for token in v.added if token and any(token in text for text in texts)}


def _added(mine: Vocabulary, theirs: Vocabulary, pieces: set[str]) -> tuple[list[str], list[str]]:
    """Compare the added tokens: (differences in the markers, other differences)."""
    touching: list[str] = []
    others: list[str] = []
    for text in sorted({*mine.added, *theirs.added}):
        here, there = _what(mine, text), _what(theirs, text)
        kept = mine.added.get(text) == theirs.added.get(text) and there.startswith("added")  # special in training only
        if here != there:
            (touching if text in pieces and not kept else others).append(f"{text!r} is {here} here and {there} there")
    return touching, others


def _what(vocabulary: Vocabulary, text: str) -> str:
    token_id = vocabulary.added.get(text)
    if token_id is None:
        return "no added token"
    special = vocabulary.flags[token_id] & TokenFlag.SPECIAL
    return f"{'special' if special else 'added'} token {token_id}"


def _ends(checkpoint: Checkpoint, other: Checkpoint) -> list[str]:
    if checkpoint.eos != other.eos:
        return [f"the end of the text is {checkpoint.eos!r} here and {other.eos!r} there"]
    return []


def _spelling(mine: Vocabulary, theirs: Vocabulary, format: ThinkFormat | None) -> tuple[list[str], list[str]]:
    """Compare ordinary tokens by id, and texts by their ids: (differences elsewhere, differences around the markers)."""
    ordinary: list[str] = []
    shared = min(mine.num_tokens, theirs.num_tokens)
    same = np.array_equal(mine.offsets[: shared + 1], theirs.offsets[: shared + 1]) and np.array_equal(
        mine.text[: mine.offsets[shared]], theirs.text[: theirs.offsets[shared]]
    )
    if not same:
        kept = [i for i in range(shared) if not _either_added(i, mine, theirs)]
        unlike = [i for i in kept if mine.token_bytes(i) != theirs.token_bytes(i)]
        if unlike:
            a, b = (v.token_bytes(unlike[0]).decode("utf-8", "replace") for v in (mine, theirs))
            ordinary.append(f"{len(unlike)} ids spell other text, the first is {unlike[0]}: {a!r} here, {b!r} there")
    if mine.num_tokens != theirs.num_tokens:
        ordinary.append(f"{mine.num_tokens} tokens here, {theirs.num_tokens} there")
    ordinary += _spelled(mine, theirs, _TEXTS)
    return ordinary, _spelled(mine, theirs, probes(format)[:2] if format is not None else ())


def _spelled(mine: Vocabulary, theirs: Vocabulary, texts: Iterable[str]) -> list[str]:
    for text in texts:
        try:
            a, b = mine.encode(text), theirs.encode(text)
        except TokenizerError as error:
            return [str(error)]
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            return [f"{text[:60]!r}: ids part at token {at + 1}, {a[at : at + 4]} here and {b[at : at + 4]} there"]
    return []


def _either_added(token_id: int, *vocabularies: Vocabulary) -> bool:
    return any(v.flags[token_id] & (TokenFlag.ADDED | TokenFlag.UNUSED) for v in vocabularies)


def _few(lines: list[str]) -> tuple[str, ...]:
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return tuple(line[:200] for line in lines[:_SHOWN]) + tuple(more)
