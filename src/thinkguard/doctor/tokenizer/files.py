"""The files of a checkpoint folder: which are there, what their JSON says, and every copy of the chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from thinkguard.errors import InputError

TOKENIZER_FILES: Final = (
    *("tokenizer.json", "tekken.json", "tokenizer.model", "tiktoken.model", "vocab.json", "vocab.txt", "spiece.model"),
)
CONFIGS: Final = (
    *("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"),
    *("chat_template.json", "adapter_config.json", "model.safetensors.index.json"),
)
_WEIGHTS: Final = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
_MAX_BYTES: Final = 512 << 20  # of one JSON file; the largest tokenizer.json in use has 35 MB


@dataclass(frozen=True, slots=True)
class TemplateCopy:
    """A chat template of a folder, and where it stands."""

    place: str  # "chat_template.jinja", "tokenizer_config.json", "additional_chat_templates/rag.jinja", ...
    name: str  # "default", or that of a named one
    source: str


@dataclass(frozen=True, slots=True)
class Folder:
    """What lies in a checkpoint folder. A file that cannot be read is in `errors` and nowhere else."""

    path: Path
    names: tuple[str, ...]
    values: Mapping[str, Mapping[str, Any]]  # file name -> its JSON object, of CONFIGS
    copies: tuple[TemplateCopy, ...]  # in the order in which transformers prefers them
    errors: tuple[str, ...] = field(default=())  # "tokenizer_config.json, line 3: ..."

    def value(self, name: str) -> Mapping[str, Any]:
        """Return a file's JSON object, empty without one."""
        return self.values.get(name, {})

    def has(self, *names: str) -> bool:
        """Tell whether one of the files is there."""
        return any(name in self.names for name in names)


def read_folder(path: Path) -> Folder:
    """Read a folder's small files. InputError if the path is no folder, or holds nothing of a checkpoint."""
    if not path.exists():
        raise InputError(f"{path}: no such folder; give the folder of a checkpoint, a model's name is not looked up")
    if not path.is_dir():
        raise InputError(f"{path} is a file; give the folder that holds tokenizer.json and tokenizer_config.json")
    names = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_file()))
    known = {*TOKENIZER_FILES, *CONFIGS, "chat_template.jinja"} & set(names)
    if not known and not any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
        raise InputError(
            f"{path} holds nothing of a checkpoint ({len(names)} files, no tokenizer.json, config.json or weights); "
            "give the folder that AutoTokenizer.from_pretrained would be given"
        )
    errors: list[str] = []
    values: dict[str, Mapping[str, Any]] = {}
    for name in CONFIGS:
        if name in names and (value := _read_object(path / name, errors)) is not None:
            values[name] = value
    return Folder(path, names, values, tuple(_copies(path, values, errors)), tuple(errors))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; InputError with line and reason."""
    errors: list[str] = []
    value = _read_object(path, errors)
    if value is None:
        raise InputError(errors[0])
    return value


def sections(path: Path, *names: str) -> dict[str, Any]:
    """Read some sections of a tokenizer.json and not its vocabulary, which takes long. Unreadable sections are left out."""
    text = read_text(path, []) or ""
    found: dict[str, Any] = {}
    for name in names:
        if key := re.search(rf'"{name}"\s*:\s*', text):
            with suppress(ValueError, RecursionError):
                found[name], _ = json.JSONDecoder().raw_decode(text, key.end())
    return found


def added_tokens(path: Path) -> list[dict[str, Any]]:
    """Return the added tokens of a tokenizer.json that have an id and a content; empty where they cannot be read."""
    listed = sections(path, "added_tokens").get("added_tokens")
    tokens = [token for token in listed if isinstance(token, dict)] if isinstance(listed, list) else []
    return [token for token in tokens if isinstance(token.get("id"), int) and isinstance(token.get("content"), str)]


def read_text(path: Path, errors: list[str]) -> str | None:
    """Return a file's UTF-8 text; None, and one more line in `errors`, if it cannot be read."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            errors.append(f"{path.name}: {path.stat().st_size} bytes, which is more than a file of its kind has; not read")
            return None
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        errors.append(f"{path.name}, line {line}: not UTF-8 ({error.reason}); save it as UTF-8")
    except OSError as error:
        errors.append(f"{path.name}: {error.strerror or error}")
    return None


def _read_object(path: Path, errors: list[str]) -> dict[str, Any] | None:
    text = read_text(path, errors)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        errors.append(f"{path.name}, line {error.lineno}: {error.msg} at column {error.colno}; mend the JSON there")
        return None
    except RecursionError:
        errors.append(f"{path.name}: nested too deeply; it is no file of a checkpoint")
        return None
    if not isinstance(value, dict):
        errors.append(f"{path.name}: holds {type(value).__name__} where an object is wanted; restore the original file")
        return None
    return value


def _copies(path: Path, values: Mapping[str, Mapping[str, Any]], errors: list[str]) -> list[TemplateCopy]:
    found: list[TemplateCopy] = []
    named = sorted((path / "additional_chat_templates").glob("*.jinja"))
    files = [(path / "chat_template.jinja", "default"), *((file, file.stem) for file in named)]
    for file, name in files:
        if file.is_file() and (text := read_text(file, errors)) is not None:
            found.append(TemplateCopy(file.relative_to(path).as_posix(), name, text))
    for place in ("chat_template.json", "tokenizer_config.json"):
        value = values.get(place, {}).get("chat_template")
        found += [TemplateCopy(place, name, source) for name, source in _named(value)]
        if value is not None and not found:
            errors.append(f"{place}: chat_template is neither a text nor a list of named ones; restore it")
    return found


def _named(value: Any) -> list[tuple[str, str]]:
    """Spell a chat_template entry as (name, source): a text, a mapping of names, or a list of {name, template}."""
    if isinstance(value, str):
        return [("default", value)]
    if isinstance(value, Mapping):
        return [(str(name), source) for name, source in value.items() if isinstance(source, str)]
    if isinstance(value, Sequence):
        entries = [entry for entry in value if isinstance(entry, Mapping)]
        pairs = [(str(entry.get("name", "default")), entry.get("template")) for entry in entries]
        return [(name, source) for name, source in pairs if isinstance(source, str)]
    return []
