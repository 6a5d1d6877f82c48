"""What a tokenizer does to the markers: tokens, special flags, doubles, white space, and the copies of the template."""

from __future__ import annotations

from typing import Any

import numpy as np

from thinkguard.doctor.check import LOST, Check, Status
from thinkguard.doctor.tokenizer.checkpoint import Checkpoint
from thinkguard.doctor.tokenizer.files import added_tokens
from thinkguard.doctor.tokenizer.markers import Marker, markers_of, pieces
from thinkguard.doctor.tokenizer.splits import marker_tokens
from thinkguard.doctor.tokenizer.template_copies import template_copies
from thinkguard.doctor.tokenizer.white_space import white_space
from thinkguard.errors import TokenizerError
from thinkguard.vocabulary import TokenFlag, Vocabulary


def tokenizer_checks(checkpoint: Checkpoint) -> tuple[Check, ...]:
    """Make every check of one tokenizer; comparing two is `against_checks`."""
    return (
        marker_tokens(checkpoint),
        marker_special(checkpoint),
        marker_duplicate(checkpoint),
        marker_one_sided(checkpoint),
        *white_space(checkpoint),
        template_copies(checkpoint),
    )


def marker_special(checkpoint: Checkpoint) -> Check:
    """Check F11: does decode(skip_special_tokens=True) delete the markers?"""
    markers = markers_of(checkpoint)
    if isinstance(markers, str):
        return Check("marker-special", "could not tell", markers)
    format, vocabulary = checkpoint.format, checkpoint.vocabulary
    assert format is not None
    assert vocabulary is not None
    if all(marker.kind == "text" for marker in markers):
        return Check("marker-special", "not applicable", "the markers are ordinary text, which no decoder skips")
    text = f"{format.open_text}reasoning{format.close_text}answer"
    try:
        decoded = _skipped(checkpoint, text)
    except TokenizerError as error:
        return Check("marker-special", "could not tell", str(error))
    lost = [marker for marker in markers if marker.special or marker.text not in decoded]
    if not lost:
        return Check("marker-special", "ok", "decode(skip_special_tokens=True) keeps both markers")
    left, right = LOST
    excerpt = text
    for marker in lost:
        for token_id in marker.special or marker.ids:
            piece = vocabulary.token_bytes(token_id).decode("utf-8", "replace")
            excerpt = excerpt.replace(piece, left + piece + right)
    evidence = (f"{excerpt!r} is decoded as {decoded!r}",)
    if format.controls:
        found = f"decode(skip_special_tokens=True) deletes {_named(lost)}, by design of {format.name}"
        return Check(
            "marker-special",
            "note",
            found,
            fix="ask for skip_special_tokens=False wherever the raw text is read, and use the family's own parser",
            evidence=evidence,
        )
    found = (
        f"{_named(lost)} registered as special tokens; skip_special_tokens=True, the default of vLLM and most pipelines, "
        f"deletes {'it' if len(lost) == 1 else 'them'}"
    )
    wanted = "added tokens that are not special"
    return Check("marker-special", "problem", found, wanted, evidence=evidence)


def marker_duplicate(checkpoint: Checkpoint) -> Check:
    """Check F12: does a marker have several token ids?"""
    markers = markers_of(checkpoint)
    if isinstance(markers, str):
        return Check("marker-duplicate", "could not tell", markers)
    vocabulary = checkpoint.vocabulary
    assert vocabulary is not None
    findings, evidence = [], []
    status: Status = "note"
    for marker in markers:
        declared = _declared(checkpoint, marker.text)
        ids = sorted({*same_bytes(vocabulary, marker.text.encode()), *(token_id for _, token_id in declared)})
        if len(ids) > 1:
            findings.append(f"{marker.text!r} has ids {', '.join(map(str, ids))}")
            evidence += [f"{marker.text!r} is {token_id} in {place}" for place, token_id in declared]
            evidence.append(f"encode({marker.text!r}) gives {list(marker.ids)}")
            if any((token_id,) != marker.ids for _, token_id in declared):
                status = "problem"
    if findings:
        wanted = "one id per marker: what the model learned to write is what a parser looks for"
        return Check("marker-duplicate", status, "; ".join(findings), wanted, evidence=tuple(evidence))
    return Check("marker-duplicate", "ok", "no marker has a second id")


def marker_one_sided(checkpoint: Checkpoint) -> Check:
    """Check F12: is only one of the markers a token of its own?"""
    markers = markers_of(checkpoint)
    if isinstance(markers, str):
        return Check("marker-one-sided", "could not tell", markers)
    vocabulary = checkpoint.vocabulary
    assert vocabulary is not None
    if {marker.kind for marker in markers} != {"token", "text"}:
        return Check("marker-one-sided", "ok", "start and end are alike: both tokens, or both text")
    whole, split = sorted(markers, key=lambda marker: marker.kind == "text")
    found = f"{whole.text!r} is token {whole.ids[0]}, {split.text!r} is {len(split.ids)} ordinary tokens"
    wanted = "both as tokens of their own, or both as text; parsers by id refuse the one and miss the other"
    evidence = (f"{split.text!r}: {pieces(vocabulary, split.ids)}",)
    return Check("marker-one-sided", "problem", found, wanted, evidence=evidence)


def same_bytes(vocabulary: Vocabulary, spelling: bytes) -> list[int]:
    """Return every token that spells exactly these bytes."""
    lengths = np.diff(vocabulary.offsets)
    alike = np.flatnonzero(lengths == len(spelling)).tolist()
    return [token_id for token_id in alike if vocabulary.token_bytes(token_id) == spelling]


def _declared(checkpoint: Checkpoint, text: str) -> list[tuple[str, int]]:
    """Return the ids that the folder's own files give to a token, each with the file."""
    listed = added_tokens(checkpoint.path / "tokenizer.json") if checkpoint.folder.has("tokenizer.json") else []
    found = [("tokenizer.json", int(token["id"])) for token in listed if token.get("content") == text]
    for file, key in (("tokenizer_config.json", "added_tokens_decoder"), ("added_tokens.json", None)):
        entries: Any = checkpoint.folder.value(file)
        entries = entries.get(key, {}) if key else entries
        for name, value in entries.items() if isinstance(entries, dict) else ():
            content, token_id = (value.get("content"), name) if isinstance(value, dict) else (name, value)
            if content == text and str(token_id).isdecimal():
                found.append((file, int(token_id)))
    return found


def _skipped(checkpoint: Checkpoint, text: str) -> str:
    """Encode, and decode with special tokens skipped: by the tokenizer itself, else by the vocabulary's flags."""
    tokenizer, vocabulary = checkpoint.tokenizer, checkpoint.vocabulary
    if tokenizer is not None:
        return str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True))
    assert vocabulary is not None
    kept = [token_id for token_id in vocabulary.encode(text) if not vocabulary.flags[token_id] & TokenFlag.SPECIAL]
    return b"".join(map(vocabulary.token_bytes, kept)).decode("utf-8", "replace")


def _named(markers: list[Marker]) -> str:
    return " and ".join(repr(marker.text) for marker in markers)
