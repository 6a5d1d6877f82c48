"""In how many ways a marker's text splits into tokens, depending on the text beside it."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Final

from thinkguard.doctor.check import LOST, Check
from thinkguard.doctor.tokenizer.checkpoint import Checkpoint
from thinkguard.doctor.tokenizer.markers import Marker, markers_of, pieces
from thinkguard.errors import TokenizerError
from thinkguard.formats import facts_of
from thinkguard.vocabulary import Vocabulary

# What stands beside markers in training texts and outputs; "" is the text's edge.
LEFT: Final = ("", "\n", "\n\n", " ", ".", ".\n", "x", "5", ")", "}", "$", "`", "。", "好", "\t")
RIGHT: Final = ("", "\n", "\n\n", " ", "\n\n\n", "x", "The", " the", "5", "$", "*", "**", "<", "好", "\\")
_SHOWN: Final = 4


def marker_tokens(checkpoint: Checkpoint) -> Check:
    """Check F10: is each marker one token, and does its text always split alike?"""
    markers = markers_of(checkpoint)
    if isinstance(markers, str):
        return Check("marker-tokens", "could not tell", markers)
    vocabulary, format = checkpoint.vocabulary, checkpoint.format
    assert vocabulary is not None
    assert format is not None
    if {marker.kind for marker in markers} == {"token", "text"}:
        return Check("marker-tokens", "skipped", "only one of the markers is a token (see marker-one-sided)")
    if all(marker.kind == "token" for marker in markers):
        counts = ", ".join(f"{marker.text!r} is token {marker.ids[0]}" for marker in markers)
        return Check("marker-tokens", "ok", counts)
    spans = {marker: splits(vocabulary, marker.text) for marker in markers}
    num = len(LEFT) * len(RIGHT)
    counts = ", ".join(_count(marker, len(spans[marker])) for marker in markers)
    if all(len(found) == 1 for found in spans.values()) and all(marker.kind != "text" for marker in markers):
        return Check("marker-tokens", "ok", f"{counts} in each of {num} contexts")
    design = _design(format.name, markers)
    if checkpoint.assumed:
        design = "this model has no markers of its own, so they would be ordinary text"
    torn = [line for marker in markers for line in _torn(vocabulary, marker)]
    evidence = [line for marker in markers for line in _spellings(vocabulary, marker, spans[marker])]
    found = f"{counts} over {num} contexts; {design}"
    return Check("marker-tokens", "note", found, evidence=(*evidence, *torn[:1]))


def _design(name: str, markers: tuple[Marker, Marker]) -> str:
    """Say what the markers are in the family's published models, if that is known."""
    tokens = facts_of(name).tokens
    if tokens == "special" and any(marker.kind == "pieces" for marker in markers):
        return "markers are special tokens and ordinary text in this family"
    if tokens is None:
        return f"whether {name} has tokens of its own for them is not known"
    if tokens == "text":
        return "markers are ordinary text in this family"
    return f"{name} has tokens of its own for them, this vocabulary has not"


def splits(vocabulary: Vocabulary, marker: str) -> Counter[tuple[int, ...]]:
    """Count the token spans that cover a marker over all contexts, commonest first."""
    found: Counter[tuple[int, ...]] = Counter()
    for left, right in product(LEFT, RIGHT):
        try:
            found[covering(vocabulary, left, marker, right)] += 1
        except TokenizerError:
            continue  # a vocabulary without a token for one of these characters never meets it
    return Counter(dict(found.most_common()))


def covering(vocabulary: Vocabulary, left: str, marker: str, right: str) -> tuple[int, ...]:
    """Return the tokens that cover a marker between two texts. TokenizerError, where the texts cannot be encoded."""
    start, end = len(left.encode()), len((left + marker).encode())
    span, at = [], 0
    for token_id in vocabulary.encode(left + marker + right):
        behind = at + len(vocabulary.token_bytes(token_id))
        if at < end and behind > start:
            span.append(token_id)
        at = behind
    return tuple(span)


def _count(marker: Marker, num: int) -> str:
    tokens = "1 token" if len(marker.ids) == 1 else f"{len(marker.ids)} tokens"
    return f"{marker.text!r} is {tokens}" if num == 1 else f"{marker.text!r} is {tokens} on its own and splits in {num} ways"


def _spellings(vocabulary: Vocabulary, marker: Marker, spans: Counter[tuple[int, ...]]) -> list[str]:
    spellings = [pieces(vocabulary, span) for span in list(spans)[:_SHOWN]]
    return [f"{marker.text!r}: " + " or ".join(spellings)] if spellings else []


def _torn(vocabulary: Vocabulary, marker: Marker) -> list[str]:
    """Return evidence of texts that have other ids when they are cut behind the marker, as a prompt is."""
    found = []
    for rest in RIGHT[1:]:
        try:
            apart = vocabulary.encode(marker.text) + vocabulary.encode(rest)
            joint = vocabulary.encode(marker.text + rest)
        except TokenizerError:
            continue
        if apart != joint:
            left, right = LOST
            cut = pieces(vocabulary, tuple(apart))
            found.append(f"cut behind the marker: {cut}, in one: {left}{pieces(vocabulary, tuple(joint))}{right}"[:200])
    return found
