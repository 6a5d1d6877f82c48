"""Failure modes of the tokenizer, the weights and the copies of the template."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modes import CLEAN_TEMPLATE, Case, Inputs, checkpoint, edit_json

START, END = 510, 511  # ids of <think> and </think> in the embedded model


def added(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Any], None]:
    """Change the added tokens of a tokenizer.json."""

    def edit(value: Any) -> None:
        change(value["added_tokens"])

    return edit


def without(*contents: str) -> Callable[[Any], None]:
    """Take added tokens out of a tokenizer.json; their text is then spelled by ordinary tokens."""

    def edit(tokens: list[dict[str, Any]]) -> None:
        tokens[:] = [token for token in tokens if token["content"] not in contents]

    return added(edit)


def special(value: bool, *contents: str) -> Callable[[Any], None]:
    """Set the special flag of added tokens in a tokenizer.json."""

    def edit(tokens: list[dict[str, Any]]) -> None:
        for token in tokens:
            if token["content"] in contents:
                token["special"] = value

    return added(edit)


def checkpoint_case(folder: Path, broken: bool) -> Inputs:
    """A file whose JSON was cut short."""
    path = checkpoint(folder)
    file = path / "generation_config.json"
    if broken:
        file.write_text(file.read_text(encoding="utf-8")[:-10], encoding="utf-8")
    return Inputs(path)


def marker_tokens(folder: Path, broken: bool) -> Inputs:
    """A fine-tune of a model that has no tokens for the tags."""
    path = checkpoint(folder)
    if broken:
        edit_json(path / "tokenizer.json", without("<think>", "</think>"))
    return Inputs(path)


def marker_special(folder: Path, broken: bool) -> Inputs:
    """LLaMA-Factory #7080: new_special_tokens."""
    path = checkpoint(folder)
    edit_json(path / "tokenizer.json", special(broken, "<think>", "</think>"))
    return Inputs(path)


def marker_duplicate(folder: Path, broken: bool) -> Inputs:
    """An ordinary token that spells the start marker too."""
    path = checkpoint(folder)

    def edit(value: Any) -> None:
        model = value["model"]
        last = model["merges"].pop()
        piece = "".join(last if isinstance(last, list) else last.split(" "))
        token_id = model["vocab"].pop(piece)
        model["vocab"]["<think>" if broken else "<thonk>"] = token_id

    edit_json(path / "tokenizer.json", edit)
    return Inputs(path)


def marker_one_sided(folder: Path, broken: bool) -> Inputs:
    """The end marker was forgotten when the start was added."""
    path = checkpoint(folder)
    if broken:
        edit_json(path / "tokenizer.json", without("</think>"))
    return Inputs(path)


def set_row(path: Path, row: int, data: bytes) -> None:
    """Write the beginning of a row of the embedding, which is stored as bf16."""
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    entry = json.loads(content[8 : 8 + length])["model.embed_tokens.weight"]
    assert len(data) <= entry["shape"][1] * 2
    at = 8 + length + entry["data_offsets"][0] + row * entry["shape"][1] * 2
    content[at : at + len(data)] = data
    file.write_bytes(bytes(content))


def embedding_rows(folder: Path, broken: bool) -> Inputs:
    """The tokens were added, their rows never trained."""
    path = checkpoint(folder)
    for row in (START, END) if broken else ():
        set_row(path, row, bytes(256))
    return Inputs(path)


def embedding_size(folder: Path, broken: bool) -> Inputs:
    """One token more than the matrix has rows."""
    path = checkpoint(folder)
    if broken:
        edit_json(
            path / "tokenizer.json",
            added(lambda tokens: tokens.append({**tokens[-1], "id": 512, "content": "<|new|>"})),
        )
    return Inputs(path)


def adapter_rows(folder: Path, broken: bool) -> Inputs:
    """An adapter that adds the tags to a base without them, and trains only the attention."""
    base = checkpoint(folder, name="base")
    edit_json(base / "tokenizer.json", without("<think>", "</think>"))
    path = checkpoint(folder, name="adapter")
    (path / "model.safetensors").unlink()
    settings = {
        "peft_type": "LORA", "r": 8, "base_model_name_or_path": str(base), "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": None if broken else ["embed_tokens", "lm_head"],
    }  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return Inputs(path)


def tokenizer_differs(folder: Path, broken: bool) -> Inputs:
    """The base's tokenizer is served in place of the one that was trained."""
    path = checkpoint(folder)
    served = checkpoint(folder, name="served")
    if broken:
        edit_json(served / "tokenizer.json", without("<think>", "</think>"))
    return Inputs(path, against=served)


def round_trip(folder: Path, broken: bool) -> Inputs:
    """transformers #45488: a byte-level file under the label of a SentencePiece class."""
    path = checkpoint(folder)
    edit_json(path / "config.json", lambda config: config.update(model_type="llama"))
    name = "LlamaTokenizerFast" if broken else "PreTrainedTokenizerFast"
    edit_json(path / "tokenizer_config.json", lambda config: config.update(tokenizer_class=name))
    return Inputs(path)


def decode_spacing(folder: Path, broken: bool) -> Inputs:
    """A SentencePiece vocabulary whose pre-tokenizer puts a blank behind every added token."""
    path = checkpoint(folder)
    edit_json(path / "config.json", lambda config: config.update(model_type="llama"))
    edit_json(path / "tokenizer_config.json", lambda config: config.update(tokenizer_class="PreTrainedTokenizerFast"))
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always" if broken else "first", "split": False}

    def edit(value: Any) -> None:
        pieces = ["▁", "\n", "\t", *map(chr, range(33, 127))]
        pieces += [f"unused{number}" for number in range(len(pieces), 507)]
        model = {"vocab": {piece: number for number, piece in enumerate(pieces)}, "merges": []}
        value["model"] = {"type": "BPE", "fuse_unk": False, "byte_fallback": False, **model}
        value.update(normalizer=None, pre_tokenizer=metaspace, post_processor=None, decoder={**metaspace, "split": True})

    edit_json(path / "tokenizer.json", edit)
    return Inputs(path)


def template_copies(folder: Path, broken: bool) -> Inputs:
    """A template that was edited in one place and is read from the other."""
    path = checkpoint(folder)
    other = CLEAN_TEMPLATE.replace("reasoning %}{{-", "reasoning and not loop.last %}{{-") if broken else CLEAN_TEMPLATE
    edit_json(path / "tokenizer_config.json", lambda config: config.update(chat_template=other))
    return Inputs(path)


CASES = [
    Case("", "checkpoint", checkpoint_case),
    Case("F10", "marker-tokens", marker_tokens),
    Case("F11", "marker-special", marker_special),
    Case("F37", "marker-special", marker_special),
    Case("F12", "marker-duplicate", marker_duplicate),
    Case("F12", "marker-one-sided", marker_one_sided),
    Case("F13", "embedding-rows", embedding_rows),
    Case("F13", "embedding-rows", embedding_size),
    Case("F13", "adapter-rows", adapter_rows),
    Case("F14", "tokenizer-differs", tokenizer_differs),
    Case("F15", "round-trip", round_trip),
    Case("F16", "decode-spacing", decode_spacing),
    Case("F27", "template-copies", template_copies),
]
