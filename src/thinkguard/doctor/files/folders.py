"""The data files of a folder, and what lies beside them that is no data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

_DATA: Final = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow")
_PACKED: Final = (".gz", ".zst", ".xz", ".bz2")
_NO_DATA: Final = """
    dataset_info.json dataset_infos.json dataset_dict.json state.json config.json generation_config.json
    tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json tekken.json
    preprocessor_config.json processor_config.json chat_template.json adapter_config.json trainer_state.json
    training_args.json all_results.json train_results.json eval_results.json package.json
    model.safetensors.index.json pytorch_model.bin.index.json
"""


def data_files(folder: Path) -> list[Path]:
    """Search a folder for data, sorted; hidden files and links to folders are left out.

    A folder that `datasets.save_to_disk` wrote lists its own files; others in it are what `map` left behind.
    """
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        listed = _saved(Path(place) / "state.json") if "state.json" in names else None
        chosen = [name for name in sorted(names) if name in listed] if listed else sorted(filter(_is_data, names))
        found += [Path(place, name) for name in chosen]
    return found


def _is_data(name: str) -> bool:
    stem = name.lower()
    for packed in _PACKED:
        stem = stem.removesuffix(packed)
    return stem.endswith(_DATA) and not name.startswith(".") and stem not in _NO_DATA.split()


def _saved(state: Path) -> frozenset[str] | None:
    """Return the names of the files that a state.json of `datasets` lists."""
    try:
        files = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        return frozenset(str(file["filename"]) for file in files)
    except (OSError, ValueError, KeyError, TypeError):
        return None
