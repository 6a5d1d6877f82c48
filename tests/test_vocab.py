"""Vocabularies: our bytes against what each tokenizer itself decodes, and our spelling against its own."""

from __future__ import annotations

import base64
import copy
import io
import json
import pickle
import random
import string
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from thinkguard.errors import InputError, ThinkGuardError, TokenizerError, TokenizerTypeError
from thinkguard.vocabulary import TokenFlag, Vocabulary

tokenizers = pytest.importorskip("tokenizers", reason="reading a tokenizer.json needs tokenizers")
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers  # noqa: E402

BYTE_LEVEL = (
    "deepseek-v3-r1",
    "gpt-oss",
    "magistral-2507",
    "olmo3-think",
    "phi-4",
    "qwen2.5-instruct",
    "qwen3",
    "r1-distill-qwen",
)
NAMES = (*BYTE_LEVEL, "mistral-v1-spm")
TEXTS = (
    "\n</think>\n\n",
    "<think>\n",
    "Wait",
    " Wait, let me think again.",
    "</",
    "\n",
    "  \n\t\r\n  ",
    "思考已经结束。答案是四十二",
    "생각하는 중입니다…",
    "\U0001f914\U0001f469\u200d\U0001f52c",
    "cafe\u0301 in two forms, caf\u00e9",  # Qwen's normalizer would join the accent
    "a literal \u2581 mark and <0x41>",  # SentencePiece would read a space, and is tempted by the byte token
    "x<|im_end|>\n</s>  [/THINK] y",  # added tokens of some; several of them eat the white space beside them
    "\x00\x7f\u0085",
)


class Pair(NamedTuple):
    name: str
    path: Path
    tokenizer: Any
    vocab: Vocabulary


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tokenizer_dirs: dict[str, Path]) -> Pair:
    transformers = pytest.importorskip("transformers", reason="its tokenizers are read here")
    path = tokenizer_dirs[request.param]
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    return Pair(request.param, path, tokenizer, Vocabulary.from_tokenizer(tokenizer))


def flagged(vocab: Vocabulary, flag: TokenFlag) -> list[int]:
    return np.flatnonzero(vocab.flags & flag).tolist()


def spelled(vocab: Vocabulary, token_ids: list[int]) -> bytes:
    """What the ids spell, added tokens by their content."""
    contents = {token_id: content.encode() for content, token_id in vocab.added.items()}
    return b"".join(contents.get(token_id) or vocab.token_bytes(token_id) for token_id in token_ids)


def assert_same(one: Vocabulary, other: Vocabulary) -> None:
    for field in ("text", "offsets", "flags"):
        assert np.array_equal(getattr(one, field), getattr(other, field)), field
    for field in ("added", "eos_ids", "bos_ids", "pad_ids", "chat_template"):
        assert getattr(one, field) == getattr(other, field), field


# Bytes and flags


def sequences(vocab: Vocabulary, rng: random.Random) -> list[list[int]]:
    """Every id once, in random order and pieces; then sequences rich in added tokens.

    Byte tokens come as whole characters only: a test of its own shows what decoding does to broken ones.
    """
    single = {vocab.token_bytes(i): i for i in flagged(vocab, TokenFlag.BYTE)}
    units = [[i] for i in np.flatnonzero((vocab.flags & TokenFlag.BYTE) == 0).tolist()]
    characters = [*string.ascii_letters, " ", "\n", "é", "…", "思", "🤔"] if single else []
    units += [[single[bytes([byte])] for byte in character.encode()] for character in characters]
    rng.shuffle(units)
    rich = [[i] for i in vocab.added.values()]
    result = [units[start : start + 40] for start in range(0, len(units), 40)]
    result += [[rng.choice(rng.choice((units, rich))) for _ in range(rng.randint(1, 8))] for _ in range(500)]
    return [[i for unit in sequence for i in unit] for sequence in result]


@pytest.mark.parametrize("skip", [False, True])
def test_bytes_are_what_the_tokenizer_decodes(pair: Pair, skip: bool) -> None:
    skipped = set(flagged(pair.vocab, TokenFlag.SPECIAL)) if skip else set()
    for token_ids in sequences(pair.vocab, random.Random(pair.name)):
        kept = [i for i in token_ids if i not in skipped]
        wanted = b"".join(map(pair.vocab.token_bytes, kept)).decode(errors="replace")
        if pair.name not in BYTE_LEVEL:
            wanted = wanted.removeprefix(" ")  # SentencePiece's dummy prefix goes once, at the start of the text
        decoded = pair.tokenizer.decode(token_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert decoded == wanted, token_ids


def test_invalid_byte_run_destroys_its_neighbours(tokenizer_dirs: dict[str, Path]) -> None:
    """Why DUPLICATE tokens are banned: decoding turns a whole invalid run into U+FFFD, `<` and all."""
    tokenizer = Tokenizer.from_file(str(tokenizer_dirs["mistral-v1-spm"] / "tokenizer.json"))
    vocab = Vocabulary.from_tokenizer(tokenizer)
    ids = tokenizer.get_vocab()
    less, broken, word = ids["<0x3C>"], ids["<0xE2>"], ids["Wait"]
    assert tokenizer.decode([word, less, word]) == "Wait<Wait"
    assert tokenizer.decode([word, less, broken, word]) == "Wait\ufffd\ufffdWait"
    assert b"".join(map(vocab.token_bytes, [word, less, broken, word])) == b"Wait<\xe2Wait"
    assert vocab.flags[less] == TokenFlag.BYTE | TokenFlag.DUPLICATE
    assert vocab.flags[broken] == TokenFlag.BYTE
    assert len(flagged(vocab, TokenFlag.BYTE)) == 256
    ordinary = {vocab.token_bytes(i) for i in np.flatnonzero(vocab.flags & (TokenFlag.BYTE | TokenFlag.ADDED) == 0)}
    spelled_twice = {piece for piece in ordinary if len(piece) == 1}
    assert spelled_twice >= {bytes([byte]) for byte in range(32, 127)}
    assert {vocab.token_bytes(i) for i in flagged(vocab, TokenFlag.DUPLICATE)} == spelled_twice


def test_flags_and_ids_follow_the_tokenizer(pair: Pair) -> None:
    vocab, tokenizer = pair.vocab, pair.tokenizer
    tokens = tokenizer.added_tokens_decoder
    assert vocab.num_tokens == max([*tokenizer.get_vocab().values()]) + 1
    assert vocab.added == {token.content: token_id for token_id, token in tokens.items()}
    assert flagged(vocab, TokenFlag.ADDED) == sorted(tokens)
    assert flagged(vocab, TokenFlag.SPECIAL) == sorted(i for i, token in tokens.items() if token.special)
    unused = set(range(vocab.num_tokens)) - set(tokenizer.get_vocab().values())
    assert set(flagged(vocab, TokenFlag.UNUSED)) == unused
    assert all(vocab.token_bytes(i) == b"" for i in unused)
    for field, token_id in (("eos_ids", tokenizer.eos_token_id), ("bos_ids", tokenizer.bos_token_id)):
        assert getattr(vocab, field) == (() if token_id is None else (token_id,))
    assert vocab.pad_ids == (tokenizer.pad_token_id,)
    assert vocab.chat_template == tokenizer.chat_template
    assert vocab.text.dtype == vocab.flags.dtype == np.uint8
    assert vocab.offsets.dtype == np.int64
    assert vocab.offsets[0] == 0
    assert vocab.offsets[-1] == len(vocab.text)


def test_a_path_reads_as_the_loaded_tokenizer_does(pair: Pair) -> None:
    assert_same(Vocabulary.from_tokenizer(str(pair.path)), pair.vocab)
    assert_same(Vocabulary.from_tokenizer(pair.path / "tokenizer.json"), pair.vocab)


# Spelling


@pytest.mark.parametrize("text", [*TEXTS, "".join(TEXTS)])
def test_encode_spells_the_text(pair: Pair, text: str) -> None:
    token_ids = pair.vocab.encode(text)
    assert all(isinstance(token_id, int) for token_id in token_ids)
    assert spelled(pair.vocab, token_ids) == text.encode()
    assert not (pair.vocab.flags[token_ids] & TokenFlag.DUPLICATE).any()
    present = [content for content in pair.vocab.added if content in text]
    assert all(pair.vocab.added[content] in token_ids for content in present)


@pytest.mark.parametrize("text", ["Wait, let me think again.", "\n</thinking>\n\n", "思考已经结束 1234", "🤔 é</"])
def test_byte_level_spelling_is_the_tokenizers_own(pair: Pair, text: str) -> None:
    own = pair.tokenizer.encode(text, add_special_tokens=False)
    if pair.name in BYTE_LEVEL:
        assert pair.vocab.encode(text) == own
    else:
        assert pair.vocab.encode(text) != own  # it writes a space before the text


def test_known_spellings(tokenizer_dirs: dict[str, Path]) -> None:
    def tokens(name: str, text: str) -> list[str]:
        vocab = Vocabulary.from_tokenizer(tokenizer_dirs[name])
        return [vocab.token_bytes(token_id).decode() for token_id in vocab.encode(text)]

    assert tokens("qwen3", "\n</think>\n\n") == ["\n", "</think>", "\n\n"]
    assert tokens("qwen2.5-instruct", "\n</think>\n\n") == ["\n", "</", "think", ">\n\n"]
    assert tokens("phi-4", "<|im_end|>\nx") == ["<|im_end|>", "\n", "x"]  # phi-4 itself eats the newline
    assert tokens("mistral-v1-spm", "\n</think>") == ["\n", "</", "think", ">"]
    assert tokens("mistral-v1-spm", "Wait </s>Wait") == ["Wait", " ", "</s>", "Wait"]
    assert tokens("mistral-v1-spm", "rethinking") == ["re", "th", "inking"]  # its merges; `ret` would be longer


def test_encode_ignores_padding_and_truncation_of_earlier_calls(tokenizer_dirs: dict[str, Path]) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_dirs["qwen2.5-instruct"] / "tokenizer.json"))
    vocab = Vocabulary.from_tokenizer(tokenizer)
    plain = vocab.encode("\n</think>\n\n")
    tokenizer.enable_padding(length=16)
    assert vocab.encode("\n</think>\n\n") == plain
    tokenizer.enable_truncation(2)
    assert vocab.encode("\n</think>\n\n") == plain


# Decoders and hand-made tokenizers


def tiny(decoder: Any, pieces: list[str], **model: Any) -> Any:
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], **model))
    tokenizer.decoder = decoder
    return tokenizer


@pytest.mark.parametrize(
    ("decoder", "wanted"),
    [
        (decoders.ByteLevel(), [b" a", "▁b".encode(), b"<0x0A>", "é ".encode()]),
        (decoders.Sequence([decoders.ByteLevel()]), [b" a", "▁b".encode(), b"<0x0A>", "é ".encode()]),
        (decoders.Metaspace(), ["Ġa".encode(), b" b", b"<0x0A>", "é ".encode()]),
        (
            decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
            ["Ġa".encode(), b" b", b"\n", "é ".encode()],
        ),
        (
            decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
            ["Ġa".encode(), "▁b".encode(), b"\n", "é ".encode()],
        ),
    ],
)
def test_decoders(decoder: Any, wanted: list[bytes]) -> None:
    tokenizer = tiny(decoder, ["Ġa", "▁b", "<0x0A>", "é "])
    vocab = Vocabulary.from_tokenizer(tokenizer)
    assert [vocab.token_bytes(i) for i in range(4)] == wanted
    assert tokenizer.decode([3, 0, 1, 2]) == b"".join([wanted[3], *wanted[:3]]).decode()
    assert bool(vocab.flags[2] & TokenFlag.BYTE) == (wanted[2] == b"\n")


@pytest.mark.parametrize(
    ("decoder", "named"),
    [
        (decoders.WordPiece(), "WordPiece"),
        (decoders.BPEDecoder(), "BPEDecoder"),
        (decoders.CTC(), "CTC"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("▁", " ")]), "Replace"),
        (decoders.Sequence([decoders.Replace(Regex("▁+"), " ")]), "Replace"),
        (decoders.Sequence([decoders.Strip(" ", 1, 0), decoders.Fuse()]), "Strip"),
        (None, "no decoder"),
    ],
)
def test_decoders_without_bytes_per_token_are_refused(decoder: Any, named: str) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    if decoder is not None:
        tokenizer.decoder = decoder
    with pytest.raises(TokenizerError, match=named):
        Vocabulary.from_tokenizer(tokenizer)


def test_added_tokens_pass_through_the_decoder() -> None:
    tokenizer = tiny(decoders.ByteLevel(), ["a", "caf", "Ã", "©"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens([AddedToken("é", normalized=False), AddedToken(" é", normalized=False)])
    tokenizer.add_special_tokens(["<\uff5cend▁\uff5c>"])
    vocab = Vocabulary.from_tokenizer(tokenizer)
    assert [vocab.token_bytes(i) for i in (4, 5, 6)] == [b"\xe9", " é".encode(), "<\uff5cend▁\uff5c>".encode()]
    assert tokenizer.decode([4, 0]) == b"\xe9a".decode(errors="replace")
    assert vocab.flags.tolist() == [0, 0, 0, 0, 1, 1, 3]
    assert vocab.encode("é é<\uff5cend▁\uff5c>a") == [4, 5, 6, 0]  # an added token stands for its content


def test_added_text_makes_a_byte_token_a_duplicate() -> None:
    """Gemma writes newlines by an added token that is not special, beside its `<0x0A>`."""
    tokenizer = tiny(decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]), ["<0x0A>", "<0x0B>", "<0x0C>", "a"])
    tokenizer.add_tokens([AddedToken("\n", normalized=False)])
    tokenizer.add_special_tokens(["\x0b"])
    vocab = Vocabulary.from_tokenizer(tokenizer)
    assert flagged(vocab, TokenFlag.DUPLICATE) == [0]
    assert vocab.encode("\na\x0c") == [4, 3, 2]


def test_normalizer_and_dummy_prefix_are_left_out() -> None:
    pieces = ["▁", "a", "▁a", "b"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "a")]))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.normalizer = normalizers.Lowercase()
    vocab = Vocabulary.from_tokenizer(tokenizer)
    assert tokenizer.encode("a", add_special_tokens=False).ids == [2]
    assert vocab.encode("a") == [1]
    assert vocab.encode(" a b") == [2, 0, 3]
    with pytest.raises(TokenizerError, match="spell b'A'"):
        vocab.encode("A")


def test_byte_level_normalizer() -> None:
    """Some tokenizers map bytes to characters in the normalizer, so only the whole of them knows its spelling."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "Ġ": 1, "Ġa": 2, "aĠ": 3}, [("Ġ", "a")]))
    tokenizer.normalizer = normalizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    vocab = Vocabulary.from_tokenizer(tokenizer)
    assert vocab.encode("a a") == [0, 2]  # the longest tokens would be [3, 0]


# Paths


def test_configuration_beside_tokenizer_json(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="its tokenizers are read here")
    tokenizer = tiny(decoders.ByteLevel(), ["a", "b", "</s>"])
    tokenizer.add_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    think = {"content": "<think>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {"2": {**think, "content": "</s>", "special": True}, "3": {**think, "special": False}},
        "eos_token": {**think, "content": "</s>", "__type": "AddedToken"},
        "bos_token": "<s>",
        "pad_token": None,
        "chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    vocab = Vocabulary.from_tokenizer(tmp_path)
    assert vocab.added == {"</s>": 2, "<think>": 3, "<s>": 4}
    assert vocab.flags.tolist() == [0, 0, 3, 1, 3]
    assert (vocab.eos_ids, vocab.bos_ids, vocab.pad_ids, vocab.chat_template) == ((2,), (4,), (), "yes")
    loaded = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert_same(vocab, Vocabulary.from_tokenizer(loaded))
    assert_same(vocab, Vocabulary.from_tokenizer(SimpleNamespace(tokenizer=loaded)))  # a processor

    (tmp_path / "chat_template.jinja").write_text("file")
    assert Vocabulary.from_tokenizer(tmp_path).chat_template == "file"


TEKKEN_PATTERN = r"\p{L}+|[^\p{L}]"


def write_tekken(path: Path, special: list[str] | None, num_special: int) -> None:
    pieces = [bytes([byte]) for byte in range(256)] + [b"th", b"in", b"thin", b"thin air"]
    data: dict[str, Any] = {
        "config": {
            "pattern": TEKKEN_PATTERN,
            "num_vocab_tokens": len(pieces),
            "default_vocab_size": num_special + len(pieces) - 1,  # the last one is cut off
            "default_num_special_tokens": num_special,
            "version": "v3" if special is None else "v13",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for rank, piece in enumerate(pieces)
        ],
    }
    if special is not None:
        data["special_tokens"] = [
            {"rank": rank, "token_str": content, "is_control": True} for rank, content in enumerate(special)
        ]
    path.write_text(json.dumps(data))


def test_tekken_file(tmp_path: Path) -> None:
    write_tekken(tmp_path / "tekken.json", ["<unk>", "<s>", "</s>", "[THINK]"], num_special=6)
    vocab = Vocabulary.from_tokenizer(tmp_path)
    assert_same(vocab, Vocabulary.from_tokenizer(tmp_path / "tekken.json"))
    assert vocab.num_tokens == 6 + 259
    names = ["<unk>", "<s>", "</s>", "[THINK]", "<SPECIAL_4>", "<SPECIAL_5>"]
    assert vocab.added == {name: rank for rank, name in enumerate(names)}
    assert vocab.flags.tolist() == [3] * 6 + [0] * 259
    assert [vocab.token_bytes(i) for i in (3, 6 + 65, 6 + 258)] == [b"[THINK]", b"A", b"thin"]
    assert (vocab.eos_ids, vocab.bos_ids, vocab.pad_ids, vocab.chat_template) == ((2,), (1,), (), None)

    tiktoken = pytest.importorskip("tiktoken", reason="tekken and tiktoken spelling needs tiktoken")
    assert vocab.encode("[THINK]thin\nth é") == [3, 264, 16, 262, 38, 201, 175]
    ranks = {vocab.token_bytes(rank + 6): rank for rank in range(259)}
    loaded = SimpleNamespace(  # mistral_common's Tekkenizer, as far as it is read
        _tekken_token2id_nospecial=ranks,
        _all_special_tokens=[{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)],
        _model=tiktoken.Encoding("tekken", pat_str=TEKKEN_PATTERN, mergeable_ranks=ranks, special_tokens={}),
        eos_id=2,
        bos_id=1,
    )
    wrapped = SimpleNamespace(instruct_tokenizer=SimpleNamespace(tokenizer=loaded))
    assert_same(vocab, Vocabulary.from_tokenizer(loaded))
    assert_same(vocab, Vocabulary.from_tokenizer(wrapped))
    assert Vocabulary.from_tokenizer(wrapped).encode("thin") == [264]


def test_tekken_file_without_special_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tekken(tmp_path / "tekken.json", None, num_special=1000)
    vocab = Vocabulary.from_tokenizer(tmp_path)
    known = {"<unk>": 0, "<s>": 1, "</s>": 2, "[/INST]": 4, "<pad>": 11, "[TOOL_CONTENT]": 19, "<SPECIAL_20>": 20}
    assert vocab.added.items() >= known.items()
    assert len(vocab.added) == 1000
    assert vocab.token_bytes(1000 + 65) == b"A"
    assert vocab.pad_ids == (11,)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(TokenizerError, match="pip install tiktoken"):
        vocab.encode("thin")


def test_tiktoken() -> None:
    tiktoken = pytest.importorskip("tiktoken", reason="tekken and tiktoken spelling needs tiktoken")
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256}
    encoding = tiktoken.Encoding("x", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens={"<|end|>": 258})
    vocab = Vocabulary.from_tokenizer(encoding)
    assert vocab.flags.tolist() == [0] * 257 + [TokenFlag.UNUSED, TokenFlag.ADDED | TokenFlag.SPECIAL]
    assert vocab.encode("<|end|>th\n") == [258, 256, 10]
    tokens = {258: AddedToken("<|end|>", special=True), 259: AddedToken("<think>", special=False)}
    around = SimpleNamespace(model=encoding, added_tokens_decoder=tokens, eos_token_id=[258])  # as Kimi's and GLM-4's
    vocab = Vocabulary.from_tokenizer(around)
    assert vocab.flags[257:].tolist() == [16, 3, 1]
    assert vocab.encode("<think>th") == [259, 256]
    assert vocab.eos_ids == (258,)


@pytest.mark.parametrize("falls_back", [True, False])
def test_slow_sentencepiece(tmp_path: Path, falls_back: bool) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="a slow SentencePiece tokenizer is read here")
    backend = pytest.importorskip("transformers.tokenization_utils_sentencepiece", reason="read here")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"wait, think again: number {i}" for i in range(200)]),
        model_writer=model,
        vocab_size=330,
        byte_fallback=True,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())

    class Decoding(backend.SentencePieceBackend):  # type: ignore[misc, name-defined]
        def convert_tokens_to_string(self, tokens: list[str]) -> str:
            return self.sp_model.decode(tokens)  # type: ignore[no-any-return]

    kind = Decoding if falls_back else backend.SentencePieceBackend
    tokenizer = kind(vocab_file=str(tmp_path / "tokenizer.model"), unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(["<think>"])
    vocab = Vocabulary.from_tokenizer(tokenizer)
    assert vocab.num_tokens == 331
    assert vocab.eos_ids == (2,)
    assert vocab.added == {"<unk>": 0, "<s>": 1, "</s>": 2, "<think>": 330}
    assert flagged(vocab, TokenFlag.SPECIAL) == [0, 1, 2]
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    if falls_back:
        assert vocab.token_bytes(newline) == b"\n"
        assert len(flagged(vocab, TokenFlag.BYTE)) == 256
        assert spelled(vocab, vocab.encode("wait\n<think>wait é")) == "wait\n<think>wait é".encode()
        assert [vocab.token_bytes(i) for i in vocab.encode("ainu")] == [b"ai", b"nu"]  # its own; `ain` would be longer
        assert tokenizer.sp_model.encode("ainu") != vocab.encode("ainu")  # it writes a space before the text
    else:  # the plain class writes `<0x0A>` as it stands, so nothing spells a newline
        assert vocab.token_bytes(newline) == b"<0x0A>"
        assert not flagged(vocab, TokenFlag.BYTE)
        with pytest.raises(TokenizerError, match="no tokens"):
            vocab.encode("\n")
    some = [newline, *vocab.encode("think again")]
    assert tokenizer.decode(some).strip() == b"".join(map(vocab.token_bytes, some)).decode().strip()


# Parts, pickles, errors


def test_from_parts() -> None:
    pieces = [b"a", b"b", b"ab", b"abc", b"", b"a", b"\xff", b" "]
    vocab = Vocabulary.from_parts(
        pieces, added={"<e>": 4, "<t>": 9}, special=[4], eos_ids=[4], bos_ids=[0], pad_ids=(4, 9), byte_ids=[5, 6]
    )
    assert vocab.num_tokens == 10
    assert [vocab.token_bytes(i) for i in (3, 4, 6, 8, 9)] == [b"abc", b"<e>", b"\xff", b"", b"<t>"]
    assert vocab.flags.tolist() == [0, 0, 0, 0, 3, 12, 4, 0, 16, 1]
    assert (vocab.eos_ids, vocab.bos_ids, vocab.pad_ids, vocab.chat_template) == ((4,), (0,), (4, 9), None)
    assert Vocabulary.from_tokenizer(vocab) is vocab
    assert repr(vocab) == "Vocabulary(num_tokens=10, added=2, eos_ids=(4,))"
    assert Vocabulary.from_parts([]).num_tokens == 0
    with pytest.raises((AttributeError, TypeError)):
        vocab.eos_ids = ()  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        vocab.flags[0] = 1
    with pytest.raises(TypeError):
        vocab.added["<e>"] = 0  # type: ignore[index]


def test_longest_match() -> None:
    vocab = Vocabulary.from_parts([b"a", b"ab", b"bc", b"ab", b"c", b"abcd"], added={"<e>": 6, "<e>a": 7})
    assert vocab.encode("") == []
    assert vocab.encode("aab") == [0, 1]  # the lower of two ids
    assert vocab.encode("abc") == [1, 4]
    assert vocab.encode("abcda") == [5, 0]
    assert vocab.encode("a<e>c<e>a") == [0, 6, 4, 7]  # the longer of two added tokens
    vocab = Vocabulary.from_parts([b"a", b"ab", b"bc"])
    assert vocab.encode("abc") == [0, 2]  # the longest first token would be a dead end
    with pytest.raises(TokenizerError, match="spell b'b'"):
        vocab.encode("b")
    letters = Vocabulary.from_parts([b"x", b"x", b"\n"], byte_ids=[0, 2])
    assert letters.encode("x\n") == [1, 2]  # the byte token only where nothing else spells it


def test_encode_bytes() -> None:
    vocab = Vocabulary.from_parts([b"\xe2", b"\x80", b"\xa6", b"a", b"\x80\xa6", "…".encode()], added={"<e>": 6})
    assert vocab.encode_bytes("a…<e>".encode()) == [3, 5, 6]
    assert vocab.encode_bytes(b"\x80\xa6a\xe2") == [4, 3, 0]
    with pytest.raises(TokenizerError, match="spell"):
        vocab.encode_bytes(b"\xff")


def test_own_encoder_is_used_where_it_is_right() -> None:
    asked = []

    def encode(part: str) -> list[int]:
        asked.append(part)
        return {"ab": [0, 1], "ba": [3], "a": [9], "b": [4]}[part]

    pieces = [b"a", b"b", b"ab", b" ba", b"b", b"b"]
    vocab = Vocabulary.from_parts(pieces, added={"|": 6}, byte_ids=[4], encode=encode)
    assert vocab.encode("ab|ba|a|b") == [0, 1, 6, 1, 0, 6, 0, 6, 1]
    assert asked == ["ab", "ba", "a", "b"]


def test_pickle_leaves_the_tokenizer_behind(pair: Pair) -> None:
    again = pickle.loads(pickle.dumps(pair.vocab))
    assert_same(again, pair.vocab)
    assert not again.flags.flags.writeable
    with pytest.raises(TokenizerError, match="pickle"):
        again.encode("a")
    assert copy.deepcopy(pair.vocab) is pair.vocab
    assert copy.copy(pair.vocab) is pair.vocab
    assert pickle.loads(pickle.dumps(Vocabulary.from_parts([b"a"]))).encode("aa") == [0, 0]


@pytest.mark.parametrize("nothing", [None, 3, object(), {"a": 1}, ["a"], b"path"])
def test_no_tokenizer(nothing: object) -> None:
    with pytest.raises(TokenizerTypeError, match=f"{type(nothing).__name__}; accepted are") as caught:
        Vocabulary.from_tokenizer(nothing)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ThinkGuardError)


def test_unreadable_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, message in (("Qwen/Qwen3-0.6B", "no such file"), (tmp_path, "no tokenizer.json or tekken.json")):
        with pytest.raises(TokenizerError, match=message):
            Vocabulary.from_tokenizer(path)
    for name, content in (("tekken.json", "{}"), ("tekken.json", "{"), ("tokenizer.json", "{}")):
        (tmp_path / name).write_text(content)
        with pytest.raises(TokenizerError, match=name):
            Vocabulary.from_tokenizer(tmp_path / name)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match="pip install tokenizers"):
        Vocabulary.from_tokenizer(tmp_path / "tokenizer.json")


def test_ids_out_of_range() -> None:
    vocab = Vocabulary.from_parts([b"a"])
    for token_id in (-1, 1):
        with pytest.raises(InputError, match="ids 0 to 0"):
            vocab.token_bytes(token_id)
    for kwargs in ({"special": [1]}, {"eos_ids": [-1]}, {"byte_ids": [1]}, {"added": {"x": -1}}):
        with pytest.raises(TokenizerError, match="1"):
            Vocabulary.from_parts([b"a"], **kwargs)
    with pytest.raises(TokenizerError, match="not a single byte"):
        Vocabulary.from_parts([b"ab"], byte_ids=[0])
