"""Whether a LoRA adapter trains and saves the rows of the tokens that its tokenizer adds to the base's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from thinkguard.doctor.check import Check
from thinkguard.doctor.tokenizer.checkpoint import Checkpoint
from thinkguard.doctor.tokenizer.markers import markers_of
from thinkguard.doctor.tokenizer.tensor_rows import Matrix, matrices
from thinkguard.errors import InputError, TokenizerError
from thinkguard.vocabulary import Vocabulary

_FILE: Final = "adapter_model.safetensors"
_LAYERS: Final = ("embed_tokens", "lm_head", "wte", "word_embeddings", "tok_embeddings", "embed_in", "embed_out", "output")


def adapter_rows(checkpoint: Checkpoint) -> Check:
    """Check F13 for an adapter: does it train and save the rows of added tokens?"""
    settings = checkpoint.folder.value("adapter_config.json")
    if not settings:
        return Check("adapter-rows", "not applicable", "the folder holds no adapter")
    markers = markers_of(checkpoint)
    if isinstance(markers, str):
        return Check("adapter-rows", "could not tell", markers)
    ids = {token_id: marker.text for marker in markers if marker.kind == "token" for token_id in marker.ids}
    if not ids:
        return Check("adapter-rows", "not applicable", "the markers are no tokens of their own, so they need no rows")
    base_name = str(settings.get("base_model_name_or_path") or "")
    base = _base(checkpoint.path, base_name)
    added = {i: text for i, text in ids.items() if base is None or base.added.get(text) != i}
    if not added:
        return Check("adapter-rows", "ok", f"the base {base_name!r} has the markers already, under the same ids")
    try:
        saved = matrices(checkpoint.path, [_FILE]) if checkpoint.folder.has(_FILE) else []
    except (InputError, OSError) as error:
        return Check("adapter-rows", "could not tell", str(error))
    trained = _trained(settings, saved, set(added))
    if trained:
        return Check("adapter-rows", "ok", f"the adapter trains the markers' rows: {trained}")
    names = " and ".join(f"{text!r} ({token_id})" for token_id, text in added.items())
    modules, targets = settings.get("modules_to_save"), _short(settings.get("target_modules"))
    evidence = (f"modules_to_save={modules!r}, target_modules={targets}",)
    if base is None:
        found = f"the adapter trains no rows for {names}; right only if {base_name!r}, not on this machine, has them"
        return Check("adapter-rows", "could not tell", found, evidence=evidence)
    found = f"{names} are new to the base {base_name!r}, and the adapter neither trains nor saves their rows"
    wanted = "embedding and output rows of added tokens among what the adapter trains"
    return Check("adapter-rows", "problem", found, wanted, evidence=evidence)


def _trained(settings: Mapping[str, Any], saved: list[Matrix], ids: set[int]) -> str:
    """Return what trains the rows of these ids, in words; "" if nothing does."""
    indices = settings.get("trainable_token_indices")
    lists = indices.values() if isinstance(indices, Mapping) else [indices]
    if any(isinstance(part, list) and ids <= set(part) for part in lists):
        return "trainable_token_indices"
    for field in ("modules_to_save", "target_modules"):
        listed = settings.get(field)
        for name in listed if isinstance(listed, list) else [listed]:
            if isinstance(name, str) and name.rpartition(".")[2] in _LAYERS:
                return f"{field} has {name!r}"
    for matrix in saved:
        if any(f".{layer}." in f".{matrix.name}" for layer in _LAYERS) and matrix.num_rows > max(ids):
            return f"{_FILE} holds {matrix.name} [{matrix.num_rows}, {matrix.width}]"
    return ""


def _base(folder: Path, name: str) -> Vocabulary | None:
    """Read the base's vocabulary; None if it lies neither in a folder of this machine nor in the Hugging Face cache."""
    if not name:
        return None
    for place in (Path(name), folder / name):
        if place.is_dir():
            return _vocabulary(place)
    try:
        from transformers.utils.hub import cached_file

        found = cached_file(
            name, "tokenizer.json", local_files_only=True,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
    except (ImportError, OSError, ValueError):
        return None
    return _vocabulary(Path(found)) if found else None


def _vocabulary(path: Path) -> Vocabulary | None:
    try:
        return Vocabulary.from_tokenizer(path)
    except TokenizerError:
        return None


def _short(value: Any) -> str:
    return f"{value!r}"[:80]
