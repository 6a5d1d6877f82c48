"""The real tokenizers that other tests read, against the libraries that their vocabularies come from."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from sentencepiece import SentencePieceProcessor
from test_vocab import TEXTS
from tokenizers import Tokenizer

from thinkguard.vocabulary import Vocabulary

HERE = Path(__file__).resolve().parent
RECIPES = json.loads((HERE / "tokenizers" / "recipes.json").read_text(encoding="utf-8"))
PROSE = (HERE.parent / "README.md").read_text(encoding="utf-8")
MARKERS = {
    "qwen3": {"<think>": 151667, "</think>": 151668}, "r1-distill-qwen": {"<think>": 151648, "</think>": 151649},
    "deepseek-v3-r1": {"<think>": 128798, "</think>": 128799}, "magistral-2507": {"[THINK]": 34, "[/THINK]": 35},
    "gpt-oss": {"<|channel|>": 200005, "<|message|>": 200008, "<|end|>": 200007},
}  # fmt: skip


def loaded(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_all_are_there(tokenizer_dirs: dict[str, Path]) -> None:
    assert sorted(tokenizer_dirs) == sorted(RECIPES)
    assert len(RECIPES) == 9


@pytest.mark.parametrize("name", RECIPES)
def test_markers_have_their_published_ids(name: str, tokenizer_dirs: dict[str, Path]) -> None:
    tokenizer = loaded(tokenizer_dirs[name])
    assert {marker: tokenizer.token_to_id(marker) for marker in MARKERS.get(name, {})} == MARKERS.get(name, {})
    if name not in MARKERS:
        assert len(tokenizer.encode("</think>", add_special_tokens=False).ids) > 1


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name]["kind"] == "byte level"])
def test_text_is_split_as_tiktoken_splits_it(name: str, tokenizer_dirs: dict[str, Path]) -> None:
    """Another implementation, which has no merges: it joins by rank."""
    vocab, tokenizer = Vocabulary.from_tokenizer(tokenizer_dirs[name]), loaded(tokenizer_dirs[name])
    added = set(vocab.added.values())
    ranks = {vocab.token_bytes(i): i for i in range(vocab.num_tokens) if i not in added}
    other = tiktoken.Encoding(name, pat_str=RECIPES[name]["pattern"], mergeable_ranks=ranks, special_tokens={})
    for text in (*TEXTS, PROSE):
        plain = text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)
        if any(content in text for content in vocab.added):
            continue
        assert tokenizer.encode(text, add_special_tokens=False).ids == other.encode(plain)


def test_text_is_split_as_sentencepiece_splits_it(tokenizer_dirs: dict[str, Path]) -> None:
    """Runs of spaces aside: their pieces all have one score, an order that the ranks of a tokenizer.json cannot express."""
    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = spec.submodule_search_locations[0]
    own = SentencePieceProcessor(model_file=str(Path(folder, RECIPES["mistral-v1-spm"]["vocabulary"][1])))
    tokenizer = loaded(tokenizer_dirs["mistral-v1-spm"])
    for text in (*TEXTS, re.sub(" +", " ", PROSE)):
        if "</s>" not in text:
            assert tokenizer.encode(text, add_special_tokens=False).ids == own.encode(text)
    assert tokenizer.encode("x").ids == [own.bos_id(), *own.encode("x")]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    build = [sys.executable, "-S", str(HERE / "tokenizers" / "build.py"), str(tmp_path), "qwen3"]  # -S: no packages
    run = subprocess.run(build, capture_output=True, text=True)
    assert run.returncode == 1
    assert "the package dashscope" in run.stderr
    assert "pip install -e '.[dev]'" in run.stderr


def configured(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.corpus
def test_tokenizers_are_those_of_the_collection(corpus: Path, tokenizer_dirs: dict[str, Path], tmp_path: Path) -> None:
    """Eight of the nine; SentencePiece's stand-in is another model's vocabulary."""
    both = [name for name in RECIPES if name != "mistral-v1-spm"]
    build = [sys.executable, str(corpus / "tokenizers" / "build.py"), str(tmp_path), *both]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    for name in both:
        files = (folder / name / "tokenizer.json" for folder in (tokenizer_dirs[name].parent, tmp_path))
        ours, theirs = (json.loads(file.read_text(encoding="utf-8")) for file in files)
        assert ours == theirs, name  # vocabulary, merges, added tokens and how text is split: all of it
        for token in ("bos_token", "eos_token", "pad_token"):
            mine, other = (configured(folder / name).get(token) for folder in (tokenizer_dirs[name].parent, tmp_path))
            assert mine == (other["content"] if isinstance(other, dict) else other), (name, token)
