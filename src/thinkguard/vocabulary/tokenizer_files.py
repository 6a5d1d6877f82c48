"""Readers of tokenizer files: tokenizer.json with the configuration beside it, and Mistral's tekken.json.

The library that a file needs is imported when it is read (tokenizers) or when text is first spelled (tiktoken).
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinkguard.errors import TokenizerError
from thinkguard.vocabulary.readers import Reading, hugging_face, tekken, template

# mistral_common gives these to the tekken files of versions up to v7, which do not list their special tokens.
_TEKKEN_SPECIAL = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "[IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
)


def read(path: Path) -> Reading:
    """Read a directory's tokenizer.json, else its tekken.json, or either file itself. TokenizerError if it cannot."""
    files = [path / "tokenizer.json", path / "tekken.json"] if path.is_dir() else [path]
    file = next(filter(Path.is_file, files), None)
    if file is None:
        wanted = "the directory has no tokenizer.json or tekken.json" if path.is_dir() else "no such file or directory"
        raise TokenizerError(f"cannot read a tokenizer from {str(path)!r}: {wanted}; a model's name is not looked up")
    try:
        if "tekken" in file.name:
            return _tekken_file(file)
        return _tokenizer_file(file)
    except (KeyError, IndexError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read a tokenizer from {str(file)!r}: {type(error).__name__}: {error}") from error


def _tekken_file(file: Path) -> Reading:
    data = json.loads(file.read_text(encoding="utf-8"))
    config = data["config"]
    num_special = int(config["default_num_special_tokens"])
    names = [f"<SPECIAL_{token_id}>" for token_id in range(num_special)]
    for rank, name in enumerate(_TEKKEN_SPECIAL.split()):
        if data.get("special_tokens") is None and rank < num_special:
            names[rank] = name
    for token in data.get("special_tokens") or ():
        names[token["rank"]] = token["token_str"]
    vocab = data["vocab"][: int(config["default_vocab_size"]) - num_special]
    ordinary = [base64.b64decode(token["token_bytes"]) for token in vocab]

    @functools.cache
    def encoding() -> Any:
        try:
            import tiktoken
        except ImportError as error:
            raise TokenizerError(
                f"spelling text as {file.name} does needs tiktoken: pip install tiktoken, or pass the loaded tokenizer"
            ) from error
        ranks = {spelled: rank for rank, spelled in enumerate(ordinary)}
        return tiktoken.Encoding("tekken", pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={})

    reading = tekken(ordinary, names, encoding)

    def ids(content: str) -> tuple[int, ...]:
        return (reading.added[content],) if content in reading.added else ()

    return reading._replace(
        eos_ids=ids("</s>"), bos_ids=ids("<s>"), pad_ids=ids("<pad>"), chat_template=_template_beside(file, {})
    )


def _tokenizer_file(file: Path) -> Reading:
    try:
        import tokenizers
    except ImportError as error:
        raise TokenizerError(f"reading {file.name} from a path needs tokenizers: pip install tokenizers") from error
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (file.parent / name).is_file():
            config |= json.loads((file.parent / name).read_text(encoding="utf-8"))
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"cannot read a tokenizer from {str(file)!r}: {error}") from error
    _add_configured(tokenizers, backend, config)

    def ids(name: str) -> tuple[int, ...]:
        token_id = backend.token_to_id(_content(config.get(name)) or "")
        return () if token_id is None else (token_id,)

    return hugging_face(backend)._replace(
        eos_ids=ids("eos_token"),
        bos_ids=ids("bos_token"),
        pad_ids=ids("pad_token"),
        chat_template=_template_beside(file, config),
    )


def _add_configured(tokenizers: Any, backend: Any, config: Mapping[str, Any]) -> None:
    """Add the tokens of tokenizer_config.json, as transformers does when it loads a tokenizer."""
    entries = config.get("added_tokens_decoder", {})
    for key in sorted(entries, key=int):
        known = {name: value for name, value in entries[key].items() if name != "__type"}
        token = tokenizers.AddedToken(**known)
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    extra = [config.get("additional_special_tokens"), config.get("extra_special_tokens")]
    listed = [value for part in extra if part for value in (part.values() if isinstance(part, dict) else part)]
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for content in map(_content, [*map(config.get, names), *listed]):
        if content and content not in special:
            backend.add_special_tokens([tokenizers.AddedToken(content, special=True, normalized=False)])
            special.add(content)


def _content(token: Any) -> str | None:
    """Return the content of a token in a configuration: a string, or a dict of an AddedToken."""
    return token.get("content") if isinstance(token, dict) else token if isinstance(token, str) else None


def _template_beside(file: Path, config: Mapping[str, Any]) -> str | None:
    """Return the chat template of a directory; a file of its own comes before the configuration's."""
    if (beside := file.parent / "chat_template.jinja").is_file():
        return beside.read_text(encoding="utf-8")
    if (beside := file.parent / "chat_template.json").is_file():
        return template(json.loads(beside.read_text(encoding="utf-8")).get("chat_template"))
    return template(config.get("chat_template"))
