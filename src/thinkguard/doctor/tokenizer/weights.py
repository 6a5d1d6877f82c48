"""Embedding and output rows of the markers: are there enough rows, and were these ever trained?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from thinkguard.doctor.check import Check
from thinkguard.doctor.tokenizer.adapter import adapter_rows
from thinkguard.doctor.tokenizer.checkpoint import Checkpoint
from thinkguard.doctor.tokenizer.markers import markers_of
from thinkguard.doctor.tokenizer.tensor_rows import Matrix, matrices
from thinkguard.doctor.tokenizer.white_space import white_space
from thinkguard.errors import InputError
from thinkguard.vocabulary import TokenFlag, Vocabulary

INPUT: Final = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight", "embed_in.weight")
OUTPUT: Final = ("lm_head.weight", "embed_out.weight", "output_layer.weight", "output.weight")
_SAMPLE: Final = 2048  # rows at most that the markers' rows are compared with
_MAX_NUMBERS: Final = 1 << 24  # in those rows together
_NEAR: Final = 0.05  # share of other rows' distance from the mean row, or of their norms, below which a row looks fresh
_FRESH: Final = 0.1  # relative distance from a fresh row's norm below which a row looks fresh


class Fresh(NamedTuple):
    """Why a row looks untrained; `sure` if no training leaves a row like that."""

    why: str
    sure: bool


def weight_checks(checkpoint: Checkpoint) -> tuple[Check, ...]:
    """Check F13: embedding-rows and adapter-rows."""
    return embedding_rows(checkpoint), adapter_rows(checkpoint)


def embedding_rows(checkpoint: Checkpoint) -> Check:
    """Compare the vocabulary with the matrices, and the markers' rows with other rows."""
    vocabulary = checkpoint.vocabulary
    if vocabulary is None:
        return Check("embedding-rows", "could not tell", "the vocabulary could not be read (see checkpoint)")
    try:
        found = matrices(checkpoint.path)
    except (InputError, OSError) as error:
        return Check("embedding-rows", "could not tell", str(error))
    if not found:
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in checkpoint.folder.names)
        why = "the weights are pickles, which are not opened: save them as safetensors" if pickled else "no weights here"
        return Check("embedding-rows", "skipped", why)
    tied = bool(_config(checkpoint.config, "tie_word_embeddings"))
    candidates = {label: _choose(found, names) for label, names in (("input", INPUT), ("output", OUTPUT))}
    layers = {label: matrix for label, matrix in candidates.items() if matrix is not None}
    if not layers:
        return Check("embedding-rows", "could not tell", "no matrix has the name of an embedding or an output layer")
    if (check := _too_few(checkpoint, vocabulary, layers)) is not None:
        return check
    sizes = ", ".join(f"{matrix.name} [{matrix.num_rows}, {matrix.width}]" for matrix in layers.values())
    sizes += "" if "output" in layers else ", tied" if tied else ", no output matrix beside it"
    ids = _marker_tokens(checkpoint, vocabulary)
    if not ids:
        return Check("embedding-rows", "ok", f"{sizes} for {vocabulary.num_tokens} tokens; no marker has a row of its own")
    findings: list[str] = []
    sure = False
    try:
        for matrix in layers.values():
            for token_id, fresh in _untrained(matrix, vocabulary, ids, checkpoint.config).items():
                findings.append(f"{matrix.name} row {token_id} ({ids[token_id]!r}) {fresh.why}")
                sure = sure or fresh.sure
    except (InputError, OSError) as error:
        return Check("embedding-rows", "could not tell", f"{sizes}: {error}")
    if findings:
        found_text = f"{len(findings)} rows of the markers look untrained"
        wanted = "rows that training moved: the model has to have seen the markers as tokens"
        return Check("embedding-rows", "problem" if sure else "note", found_text, wanted, evidence=tuple(findings[:6]))
    names = ", ".join(f"{text!r} ({token_id})" for token_id, text in ids.items())
    return Check("embedding-rows", "ok", f"{sizes}; the rows of {names} are like other trained rows")


def _too_few(checkpoint: Checkpoint, vocabulary: Vocabulary, layers: Mapping[str, Matrix]) -> Check | None:
    """Return the problem if tokens have no row, which is an index error, on a GPU a crash; None if sizes fit."""
    texts = {token_id: content for content, token_id in vocabulary.added.items()}
    for matrix in layers.values():
        beyond = sorted(token_id for token_id in texts if token_id >= matrix.num_rows)
        if beyond and white_space(checkpoint)[0].status == "problem":
            return Check("embedding-rows", "skipped", "the tokens are not those of the file (see round-trip)")
        if beyond or vocabulary.num_tokens > matrix.num_rows:
            names = ", ".join(f"{texts[token_id]!r} ({token_id})" for token_id in beyond[:4]) or "ordinary tokens"
            found = f"{matrix.name} has {matrix.num_rows} rows for {vocabulary.num_tokens} tokens: none for {names}"
            wanted = f"at least {vocabulary.num_tokens} rows"
            fix = "model.resize_token_embeddings(len(tokenizer)) before training, then train and save the rows"
            return Check("embedding-rows", "problem", found, wanted, fix)
    declared = _config(checkpoint.config, "vocab_size")
    counts = {matrix.num_rows for matrix in layers.values()}
    if isinstance(declared, int) and declared not in counts:
        rows = " and ".join(f"{matrix.name} has {matrix.num_rows} rows" for matrix in layers.values())
        wanted = "one size: loading refuses the weights otherwise, or leaves rows out"
        fix = f'write "vocab_size": {min(counts)} into config.json, as it was when the weights were saved'
        return Check("embedding-rows", "problem", f"config.json says vocab_size={declared}, {rows}", wanted, fix)
    return None


def _marker_tokens(checkpoint: Checkpoint, vocabulary: Vocabulary) -> dict[int, str]:
    """Return the added tokens that markers are made of, id -> text."""
    markers = markers_of(checkpoint)
    if isinstance(markers, str):
        return {}
    ids = [token_id for marker in markers if marker.kind != "text" for token_id in marker.ids]
    kept = [i for i in ids if vocabulary.flags[i] & TokenFlag.ADDED or any(m.ids == (i,) for m in markers)]
    return {i: vocabulary.token_bytes(i).decode("utf-8", "replace") for i in dict.fromkeys(kept)}


def _untrained(
    matrix: Matrix, vocabulary: Vocabulary, ids: Mapping[int, str], config: Mapping[str, Any]
) -> dict[int, Fresh]:
    """Return the rows that look untrained, id -> why. Padding rows, which no token has, show what a fresh row looks like."""
    sample, padding = _others(vocabulary, matrix.num_rows, matrix.width, ids)
    rows, others = matrix.rows(list(ids)), matrix.rows(sample)
    if not np.isfinite(rows).all():
        broken = [token_id for token_id, row in zip(ids, rows, strict=True) if not np.isfinite(row).all()]
        return {token_id: Fresh("holds NaN or infinity", True) for token_id in broken}
    others = others[np.isfinite(others).all(axis=1) & others.any(axis=1)]
    if len(others) < 8:
        raise InputError(f"{matrix.name} has too few trained rows to compare with")
    norms, usual = np.linalg.norm(rows, axis=1), np.linalg.norm(others, axis=1)
    mean = others.mean(axis=0)
    apart = float(np.median(np.linalg.norm(others - mean, axis=1)))
    blank = matrix.rows(padding) if padding else np.empty((0, matrix.width), np.float32)
    found: dict[int, Fresh] = {}
    for at, token_id in enumerate(ids):
        twin = next((i for b, i in enumerate(ids) if b != at and np.array_equal(rows[at], rows[b])), None)
        if norms[at] <= 1e-6 * np.median(usual):
            found[token_id] = Fresh("is zero", True)
        elif twin is not None:
            found[token_id] = Fresh(f"is the same as row {twin}", True)
        elif len(blank) and any(np.array_equal(rows[at], row) for row in blank):
            found[token_id] = Fresh("is the same as a row that no token has", True)
        elif np.linalg.norm(rows[at] - mean) < min(_NEAR * apart, 0.5 * norms[at]):
            found[token_id] = Fresh("is the mean of the other rows, as resizing makes it", True)
        elif (why := _like_fresh(float(norms[at]), usual, np.linalg.norm(blank, axis=1), matrix.width, config)) is not None:
            found[token_id] = Fresh(why, False)
    return found


def _like_fresh(
    norm: float,
    usual: npt.NDArray[np.floating[Any]],
    blank: npt.NDArray[np.floating[Any]],
    width: int,
    config: Mapping[str, Any],
) -> str | None:
    """Say why a row looks untrained by its norm; None if it does not, or if the norm is one that trained rows have."""
    low, high = np.percentile(usual, (1, 99))
    std = _config(config, "initializer_range")
    fresh = std * width**0.5 if isinstance(std, (int, float)) else None
    if low <= norm <= high:
        return None
    if fresh and abs(norm - fresh) < _FRESH * fresh:
        return f"has norm {norm:.3g}, that of a fresh row; trained rows have {low:.3g} to {high:.3g}"
    if len(blank) and blank.min() <= norm <= blank.max():
        return f"has norm {norm:.3g} like rows that no token has; trained rows have {low:.3g} to {high:.3g}"
    if norm < _NEAR * low:
        return f"has norm {norm:.3g}, next to nothing beside the {low:.3g} to {high:.3g} of trained rows"
    return None


def _others(vocabulary: Vocabulary, num_rows: int, width: int, ids: Mapping[int, str]) -> tuple[list[int], list[int]]:
    """Return rows to compare with: (ordinary tokens', spread evenly over the vocabulary; those that no token has)."""
    unlike = TokenFlag.ADDED | TokenFlag.SPECIAL | TokenFlag.UNUSED
    ordinary = np.flatnonzero((vocabulary.flags[:num_rows] & unlike) == 0)
    unused = [*np.flatnonzero(vocabulary.flags[:num_rows] & TokenFlag.UNUSED), *range(vocabulary.num_tokens, num_rows)]
    num = max(64, min(_SAMPLE, _MAX_NUMBERS // max(width, 1)))
    return _evenly(ordinary.tolist(), num), _evenly([int(i) for i in unused if int(i) not in ids], 64)


def _evenly(values: Sequence[int], num: int) -> list[int]:
    if len(values) <= num:
        return list(values)
    return [values[at] for at in np.linspace(0, len(values) - 1, num).astype(int).tolist()]


def _choose(found: Sequence[Matrix], names: Sequence[str]) -> Matrix | None:
    """Return the matrix with the first of the names that there is; of several the largest, the language model's."""
    for name in names:
        fitting = [m for m in found if m.name == name or m.name.endswith(f".{name}")]
        if fitting:
            return max(fitting, key=lambda matrix: matrix.num_rows)
    return None


def _config(config: Mapping[str, Any], name: str) -> Any:
    """Look a setting up; a multimodal model has it in its text part."""
    for key in ("text_config", "llm_config", "language_config"):
        part = config.get(key)
        if isinstance(part, Mapping) and name in part:
            return part[name]
    return config.get(name)
