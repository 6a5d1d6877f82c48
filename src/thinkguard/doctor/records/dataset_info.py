"""LLaMA-Factory's dataset_info.json: which column of a file is what."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

from thinkguard.errors import InputError

Formatting = Literal["alpaca", "sharegpt", "openai"]
_NAME: Final = "dataset_info.json"
_LEVELS: Final = 3  # the file's own folder, and two above: a file_name may lie in folders
_ELSEWHERE: Final = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")  # before file_name
_PLACES: Final = ("file_name", *_ELSEWHERE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """How a file is read: its format, and the names of its columns and tags. A column that is None is not read."""

    name: str = ""  # of the data set
    formatting: Formatting = "alpaca"
    ranking: bool = False
    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    tools: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str = "system"


_COLUMNS: Final = ("prompt", "query", "response", "history", "messages", "system", "tools", "chosen", "rejected", "kto_tag")
_TAGS: Final = tuple(field.name for field in fields(Columns) if field.name.endswith("_tag") and field.name != "kto_tag")


def columns_of(file: Path, trainer: str | None = None) -> Columns | None:
    """Return what a dataset_info.json beside the file (or up to two folders above) says about it, None if nothing does."""
    found = entry_of(file, trainer)
    return None if found is None else columns_from(*found)


def entry_of(file: Path, trainer: str | None = None) -> tuple[str, Mapping[str, Any]] | None:
    """Return the entry of a file, with its name, as `columns_of` reads it.

    None if the trainer is not LLaMA-Factory, which alone reads it. InputError for a dataset_info.json that is broken.
    """
    if trainer not in (None, "llamafactory"):
        return None
    file = file.absolute()
    for folder in file.parents[:_LEVELS]:
        for name, entry in _entries(folder / _NAME).items():
            listed = entry.get("file_name")
            if isinstance(listed, str) and (target := folder / listed) and (target == file or target in file.parents):
                return name, entry
    return None


def entry_for(entry: Mapping[str, Any], file_name: str) -> dict[str, Any]:
    """Return an entry for another file of the same shape."""
    return {"file_name": file_name} | {name: value for name, value in entry.items() if name not in _PLACES}


def missing_files(files: Iterable[Path], folders: Sequence[Path], trainer: str | None) -> list[tuple[Path, str]]:
    """Return files that are not there but named by a dataset_info.json in one of the folders, each with what names it."""
    if trainer not in (None, "llamafactory"):
        return []
    roots = {folder.absolute() for folder in folders}
    near = dict.fromkeys(parent for file in files for parent in file.absolute().parents[:_LEVELS])
    found: dict[Path, str] = {}
    for folder in near:
        if roots.isdisjoint((folder, *folder.parents)):
            continue
        for name, entry in _entries(folder / _NAME).items():
            listed = entry.get("file_name")
            here = isinstance(listed, str) and not any(place in entry for place in _ELSEWHERE)
            if here and not (file := folder / str(listed)).exists():
                found[file] = f"{name!r} of {_NAME}"
    return list(found.items())


def columns_from(name: str, entry: Mapping[str, Any]) -> Columns:
    """Read one entry as LLaMA-Factory does: with `columns` given, a column that it does not list is not read."""
    formatting = entry.get("formatting", "alpaca")
    if formatting not in get_args(Formatting):
        wanted = ", ".join(get_args(Formatting))
        raise InputError(f"{_NAME}: {name!r} has formatting {formatting!r}; LLaMA-Factory knows {wanted}")
    values: dict[str, Any] = {"name": name, "formatting": formatting, "ranking": bool(entry.get("ranking"))}
    columns, tags = entry.get("columns"), entry.get("tags")
    if isinstance(columns, Mapping):
        values |= {column: columns.get(column) for column in _COLUMNS}
        if formatting != "alpaca" and values["messages"] is None:
            values["messages"] = "conversations"
    if isinstance(tags, Mapping):
        values |= {tag: str(tags[tag]) for tag in _TAGS if tags.get(tag)}
    elif formatting == "openai":
        values |= OPENAI_TAGS
    return Columns(**values)


OPENAI_TAGS: Final = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function",
}


@lru_cache(maxsize=64)
def _entries(file: Path) -> Mapping[str, Mapping[str, Any]]:
    """Read a dataset_info.json; empty if there is none, or if it is the one that `datasets` writes."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({error}): mend it, LLaMA-Factory reads the data through it") from None
    if not isinstance(value, dict):
        return {}
    return {
        name: entry
        for name, entry in value.items()
        if isinstance(entry, dict) and any(place in entry for place in _PLACES) and isinstance(name, str)
    }
