"""Copy a tokenizer with its markers added and not special, and change nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from thinkguard.doctor.tokenizer.checkpoint import Checkpoint, load_tokenizer
from thinkguard.doctor.tokenizer.files import TOKENIZER_FILES, read_object
from thinkguard.doctor.tokenizer.markers import markers_of
from thinkguard.errors import InputError, UnsupportedError
from thinkguard.vocabulary import TokenFlag, Vocabulary

_COPIED: Final = (  # config.json decides which class loads the tokenizer
    *TOKENIZER_FILES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "config.json",
)  # fmt: skip
_TEMPLATES: Final = "additional_chat_templates"
_LISTS: Final = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")


def fix_tokenizer(checkpoint: Checkpoint, out_dir: Path) -> list[str]:
    """Write the tokenizer's files to `out_dir`, the markers not special; returns what was changed, in words.

    Ids and all other tokens stay; weights are not copied. The copy is loaded, compared with the original, and removed if
    more changed. InputError if `out_dir` is not new or empty, UnsupportedError if editing files cannot mend the tokenizer.
    """
    if out_dir.resolve() == checkpoint.path.resolve():
        raise InputError(f"--fix-tokenizer {out_dir} is the folder it reads; give a new one, nothing is written over")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise InputError(f"--fix-tokenizer {out_dir} exists and is not empty; give a new folder")
    ids = _mendable(checkpoint)
    texts, changes = _edited(checkpoint, ids)
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        for name in sorted({*checkpoint.folder.names} & {*_COPIED} - {*texts}):
            shutil.copyfile(checkpoint.path / name, out_dir / name)
        for name, text in texts.items():
            (out_dir / name).write_text(text, encoding="utf-8", newline="")
        if (checkpoint.path / _TEMPLATES).is_dir():
            shutil.copytree(checkpoint.path / _TEMPLATES, out_dir / _TEMPLATES)
        _verify(checkpoint, out_dir, ids)
    except BaseException:
        shutil.rmtree(out_dir)
        raise
    kept = " and ".join(map(repr, ids))
    verified = f"{out_dir}: loads with the same ids, and decode(skip_special_tokens=True) keeps {kept}"
    return [*(changes or ["nothing had to be changed: the markers are added and not special"]), verified]


def _mendable(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the markers, text -> id. UnsupportedError if more has to be mended than flags in files."""
    path, format = checkpoint.path, checkpoint.format
    if not checkpoint.folder.has("tokenizer.json"):
        kinds = ", ".join(name for name in TOKENIZER_FILES if checkpoint.folder.has(name))
        raise UnsupportedError(
            f"{path} has {kinds or 'no tokenizer'}, not tokenizer.json: the flags are in no file that can be edited; "
            "convert it with AutoTokenizer.from_pretrained(...).save_pretrained(...) and mend that"
        )
    markers = markers_of(checkpoint)
    if isinstance(markers, str) or format is None:
        raise UnsupportedError(f"{path}: {markers}")
    if format.controls:
        raise UnsupportedError(
            f"{format.name} has special tokens by design, and its parsers rely on them, so nothing is mended: ask for "
            "skip_special_tokens=False"
        )
    if text := [marker for marker in markers if marker.kind != "token"]:
        named = " and ".join(repr(marker.text) for marker in text) + (" is" if len(text) == 1 else " are")
        raise UnsupportedError(
            f"{named} no token of {path}, and a new one needs a row that training moves, so editing files is not enough. "
            "Before training: tokenizer.add_tokens([...], special_tokens=False) and "
            "model.resize_token_embeddings(len(tokenizer)), in LLaMA-Factory --add_tokens '<think>,</think>'. Or keep the "
            "markers as text, and read them by their text"
        )
    return {marker.text: marker.ids[0] for marker in markers}


def _edited(checkpoint: Checkpoint, ids: Mapping[str, int]) -> tuple[dict[str, str], list[str]]:
    """Return the changed files' texts, and what was changed."""
    texts: dict[str, str] = {}
    changes: list[str] = []
    for name, edit in _EDITS.items():
        if checkpoint.folder.has(name):
            file = checkpoint.path / name
            value = read_object(file)
            if lines := edit(value, ids):
                texts[name] = _like(file.read_text(encoding="utf-8"), value)
                changes += [f"{name}: {line}" for line in lines]
    return texts, changes


def _edit_backend(value: dict[str, Any], ids: Mapping[str, int]) -> list[str]:
    """Make every marker an added token that is not special."""
    changes = []
    added = value.setdefault("added_tokens", [])
    for text, token_id in ids.items():
        entry = next((token for token in added if token.get("content") == text), None)
        if entry is None:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
            added.append({"id": token_id, "content": text, **flags})
            added.sort(key=lambda token: int(token["id"]))
            changes.append(f"{text!r} ({token_id}) added, not special")
        elif entry.get("special"):
            entry["special"] = False
            changes.append(f"{text!r} ({token_id}) is no longer special")
    return changes


def _edit_config(value: dict[str, Any], ids: Mapping[str, int]) -> list[str]:
    """Change the flag, and the lists that would make the token special again."""
    changes = []
    for token_id, entry in (value.get("added_tokens_decoder") or {}).items():
        if isinstance(entry, dict) and entry.get("content") in ids and entry.get("special"):
            entry["special"] = False
            changes.append(f"{entry['content']!r} ({token_id}) is no longer special")
    return [*changes, *_edit_lists(value, ids)]


def _edit_lists(value: dict[str, Any], ids: Mapping[str, int]) -> list[str]:
    changes = []
    for name in _LISTS:
        listed = value.get(name)
        if isinstance(listed, list):
            changes += [f"{_content(token)!r} taken out of {name}" for token in listed if _content(token) in ids]
            listed[:] = [token for token in listed if _content(token) not in ids]
        elif isinstance(listed, dict):
            for key in [key for key, token in listed.items() if _content(token) in ids]:
                changes.append(f"{_content(listed.pop(key))!r} taken out of {name}")
    return changes


_EDITS: Final[dict[str, Callable[[dict[str, Any], Mapping[str, int]], list[str]]]] = {
    "tokenizer.json": _edit_backend,
    "tokenizer_config.json": _edit_config,
    "special_tokens_map.json": _edit_lists,
}


def _content(token: Any) -> Any:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _like(text: str, value: dict[str, Any]) -> str:
    """Write JSON in the style of the original: its indentation, its escapes, its last line."""
    second = text.split("\n", 2)[1] if "\n" in text.strip() else ""
    indent = len(second) - len(second.lstrip(" ")) if second else None
    separators = (",", ":") if indent is None and '": ' not in text[:200] else None
    escaped = text.isascii() or "\\ud" in text.lower()  # halves of surrogate pairs cannot be written otherwise
    written = json.dumps(value, ensure_ascii=escaped, indent=indent, separators=separators)
    return written + ("\n" if text.endswith("\n") else "")


def _verify(checkpoint: Checkpoint, out_dir: Path, ids: Mapping[str, int]) -> None:
    """Load the copy and compare it with the original; UnsupportedError if anything else than the flags changed."""
    tokenizer = load_tokenizer(out_dir)
    copy, old, format = Vocabulary.from_tokenizer(tokenizer), checkpoint.vocabulary, checkpoint.format
    assert old is not None
    assert format is not None
    text = f"{format.open_text}reasoning{format.close_text}answer"
    wrong = ""
    if dict(copy.added) != {**old.added, **ids} or copy.text.tobytes() != old.text.tobytes():
        wrong = "its tokens have other ids"
    elif any(copy.flags[token_id] & TokenFlag.SPECIAL for token_id in ids.values()):
        wrong = "the markers are still special, because the class that loads them makes them so"
    elif any(marker not in tokenizer.decode(copy.encode(text), skip_special_tokens=True) for marker in ids):
        wrong = "decode(skip_special_tokens=True) still deletes the markers"
    elif ids.keys() <= old.added.keys() and copy.encode(text) != old.encode(text):
        wrong = "it spells texts otherwise"
    if wrong:
        raise UnsupportedError(f"{checkpoint.path} cannot be mended by editing its files: {wrong}; the copy was removed")
