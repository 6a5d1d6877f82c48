"""Readers of tokenizer objects, one per library; each turns what it is given into a `Reading`.

Nothing is imported here but numpy: an object brings its library along, and is known by its attributes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thinkguard.errors import TokenizerError, TokenizerTypeError

Encoder = Callable[[str], Iterable[int]]
"""Text without added tokens -> ids. May be wrong about a text: its caller compares the bytes."""

BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")

# The printable characters as which byte-level vocabularies write bytes, source: GPT-2's bytes_to_unicode.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_MOVED = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_ALPHABET = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_MOVED)}
_BYTE_OF = np.full(256 + len(_MOVED) + 1, -1, np.int16)  # by code point; the last entry stands for all further ones
_BYTE_OF[[ord(character) for character in BYTE_ALPHABET.values()]] = list(BYTE_ALPHABET)


class Reading(NamedTuple):
    """What a reader found out; `Vocabulary` explains the fields."""

    text: npt.NDArray[np.uint8]  # [total]
    lengths: npt.NDArray[np.int64]  # [num_tokens], in bytes
    added: Mapping[str, int]
    special: Sequence[int]
    byte_ids: Sequence[int] = ()
    eos_ids: tuple[int, ...] = ()
    bos_ids: tuple[int, ...] = ()
    pad_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    encoders: tuple[Encoder, ...] = ()


def read(tokenizer: Any) -> Reading:
    """Read a tokenizer of any known kind, also inside its wrappers. TokenizerTypeError for anything else."""
    inner = tokenizer
    wrappers: list[Any] = []
    while inner is not None and len(wrappers) < 4:
        wrappers.append(inner)
        if (reading := _object(inner)) is not None:
            templates = (template(getattr(wrapper, "chat_template", None)) for wrapper in wrappers)
            return reading._replace(
                eos_ids=_first_id(wrappers, "eos"),
                bos_ids=_first_id(wrappers, "bos"),
                pad_ids=_first_id(wrappers, "pad"),
                chat_template=next(filter(None, templates), None),
            )
        inner = getattr(inner, "tokenizer", None) or getattr(inner, "instruct_tokenizer", None)
    raise TokenizerTypeError(
        f"cannot read a vocabulary from {type(tokenizer).__module__}.{type(tokenizer).__qualname__}; accepted are a "
        "Hugging Face tokenizer, a tokenizers.Tokenizer, a tiktoken.Encoding, a mistral_common tokenizer, a "
        "Vocabulary, and the path of a directory with tokenizer.json or tekken.json"
    )


def joined(spelled: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return (text, lengths) of a list of bytes."""
    return np.frombuffer(b"".join(spelled), np.uint8), np.fromiter(map(len, spelled), np.int64, len(spelled))


def _object(tokenizer: Any) -> Reading | None:
    backend = getattr(tokenizer, "backend_tokenizer", None) or tokenizer
    if hasattr(backend, "get_added_tokens_decoder") and hasattr(backend, "decoder"):
        return hugging_face(backend)
    if hasattr(tokenizer, "_tekken_token2id_nospecial"):
        ranks: dict[bytes, int] = tokenizer._tekken_token2id_nospecial
        names = [str(token["token_str"]) for token in tokenizer._all_special_tokens]
        return tekken(sorted(ranks, key=ranks.__getitem__), names, lambda: tokenizer._model)
    if hasattr(tokenizer, "sp_model") and hasattr(tokenizer, "get_vocab"):
        return _sentencepiece(tokenizer)
    for encoding in (tokenizer, *(getattr(tokenizer, name, None) for name in ("model", "tokenizer", "encoding"))):
        if hasattr(encoding, "encode_ordinary") and hasattr(encoding, "decode_single_token_bytes"):
            return _tiktoken(encoding, getattr(tokenizer, "added_tokens_decoder", None))
    return None


def _first_id(tokenizers: Sequence[Any], name: str) -> tuple[int, ...]:
    """Return the first `eos_token_id` (Hugging Face) or `eos_id` (mistral_common), an int or several."""
    for tokenizer in tokenizers:
        for attribute in (f"{name}_token_id", f"{name}_id"):
            value = getattr(tokenizer, attribute, None)
            if isinstance(value, int):
                return (value,)
            if isinstance(value, (list, tuple)) and value:
                return tuple(int(token_id) for token_id in value)
    return ()


def template(value: Any) -> str | None:
    """Return the default one of a chat template's spellings: a string, a dict, or a list of named ones."""
    if isinstance(value, list):
        value = {entry["name"]: entry["template"] for entry in value}
    return value.get("default") if isinstance(value, dict) else value if isinstance(value, str) else None


# Hugging Face tokenizers


def hugging_face(backend: Any) -> Reading:
    """Read a `tokenizers.Tokenizer`; most of the cost is the library's, for handing over its vocabulary."""
    byte_level, replaced, falls_back = _decoder_steps(backend.decoder)
    # Asked for in two parts: to_str() would write out all the merges too, for more than the rest costs.
    ids: dict[str, int] = backend.get_vocab(with_added_tokens=False)
    tokens: dict[int, Any] = backend.get_added_tokens_decoder()
    pieces = [""] * (max([*ids.values(), *tokens], default=-1) + 1)
    for content, token_id in ids.items():
        pieces[token_id] = content
    for token_id, token in tokens.items():
        pieces[token_id] = token.content
    byte_ids: list[int] = []
    if byte_level:
        text, lengths = _byte_level(pieces)
    else:
        plain, byte_ids = _marked(pieces, replaced, falls_back)
        text, lengths = joined(plain)

    def own(part: str) -> Iterable[int]:
        return backend.encode(part, add_special_tokens=False).ids  # type: ignore[no-any-return]

    def bare(part: str) -> Iterable[int]:
        # The model alone: no normalizer (NFC, dummy prefix space), no truncation or padding left by an earlier call.
        if byte_level:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(part)] if backend.pre_tokenizer else []
        else:
            for written, spelled in reversed(replaced):
                part = part.replace(spelled, written) if spelled else part
            words = [part]
        return [token.id for word in words for token in backend.model.tokenize(word)]

    return Reading(
        text=text,
        lengths=lengths,
        added={token.content: token_id for token_id, token in tokens.items()},
        special=sorted(token_id for token_id, token in tokens.items() if token.special),
        byte_ids=byte_ids,
        encoders=(own, bare),
    )


def _decoder_steps(decoder: Any) -> tuple[bool, list[tuple[str, str]], bool]:
    """Return (byte level?, [(written, spelled)] of its replacements, falls back to bytes?) of a decoder.

    What comes once the tokens are fused concerns the text as a whole and is skipped if it only strips.
    TokenizerError for a decoder whose tokens have no bytes of their own.
    """
    if decoder is None:
        raise TokenizerError("the tokenizer has no decoder, so it writes spaces between tokens: cannot read its bytes")
    try:
        steps, pending = [], [json.loads(decoder.__getstate__())]
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"cannot look into the decoder {decoder!r}: {error}") from error
    while pending:
        step = pending.pop(0)
        if step["type"] == "Sequence":
            pending = step["decoders"] + pending
        else:
            steps.append(step)
    replaced: list[tuple[str, str]] = []
    byte_level = falls_back = fused = False
    for step in steps:
        kind = step["type"]
        if fused and kind in ("Strip", "Fuse"):
            continue
        if kind == "ByteLevel" and not (fused or replaced or falls_back):
            byte_level = fused = True
        elif kind == "Replace" and not fused and "String" in step["pattern"]:
            replaced.append((step["pattern"]["String"], step["content"]))
        elif kind == "Metaspace" and not fused:
            replaced.append((step["replacement"], " "))
        elif kind == "ByteFallback" and not fused:
            falls_back = True
        elif kind == "Fuse":
            fused = True
        else:
            names = " > ".join(step["type"] for step in steps)
            raise TokenizerError(
                f"cannot read token bytes behind the decoder {kind} (of {names}): known are ByteLevel, and Replace, "
                "Metaspace and ByteFallback before Fuse and Strip"
            )
    return byte_level, replaced, falls_back


def _byte_level(pieces: list[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Map characters to bytes, all tokens at once; a token with a character outside the alphabet is plain UTF-8."""
    while True:
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        codes = np.frombuffer("".join(pieces).encode("utf-32-le"), np.uint32)
        values = _BYTE_OF[np.minimum(codes, len(_BYTE_OF) - 1)]
        foreign = np.flatnonzero(values < 0)
        if not len(foreign):
            return values.astype(np.uint8), lengths
        pieces = pieces.copy()
        for token_id in np.unique(np.searchsorted(np.cumsum(lengths), foreign, side="right")).tolist():
            pieces[token_id] = "".join(BYTE_ALPHABET[byte] for byte in pieces[token_id].encode())


def _marked(pieces: list[str], replaced: list[tuple[str, str]], falls_back: bool) -> tuple[list[bytes], list[int]]:
    """Return what SentencePiece-like tokens spell, and the ids of the `<0xNN>` tokens among them."""
    for written, spelled in replaced:
        pieces = [piece.replace(written, spelled) for piece in pieces]
    result = [piece.encode() for piece in pieces]
    byte_ids = [i for i, piece in enumerate(pieces) if BYTE_TOKEN.fullmatch(piece)] if falls_back else []
    for token_id in byte_ids:
        result[token_id] = bytes.fromhex(pieces[token_id][3:5])
    return result, byte_ids


# Other libraries


def _sentencepiece(tokenizer: Any) -> Reading:
    """Read a slow Hugging Face tokenizer with an `sp_model`."""
    sp = tokenizer.sp_model
    ids: dict[str, int] = tokenizer.get_vocab()
    tokens: dict[int, Any] = tokenizer.added_tokens_decoder
    pieces = [""] * (max([*ids.values(), *tokens], default=-1) + 1)
    for content, token_id in ids.items():
        pieces[token_id] = content
    # Some classes decode `<0x0A>` as it is written, without going through the SentencePiece model.
    falls_back = "\n" in tokenizer.convert_tokens_to_string(["a", "<0x0A>", "a"])
    spelled, byte_ids = _marked(pieces, [("\u2581", " ")], falls_back)
    for token_id, token in tokens.items():
        spelled[token_id] = token.content.encode()

    def own(part: str) -> list[int]:
        return [ids.get(piece, -1) for piece in sp.encode(part, out_type=str)]

    def behind_newline(part: str) -> list[int]:
        before = own("\n")
        both = own("\n" + part)
        return both[len(before) :] if both[: len(before)] == before else []

    return Reading(
        *joined(spelled),
        added={token.content: token_id for token_id, token in tokens.items()},
        special=sorted({*(i for i, token in tokens.items() if token.special), *tokenizer.all_special_ids}),
        byte_ids=byte_ids,
        encoders=(own, behind_newline),
    )


def _tiktoken(encoding: Any, tokens: Mapping[int, Any] | None) -> Reading:
    """Read a `tiktoken.Encoding`; `tokens` are the added tokens of the Hugging Face tokenizer around it, if any."""
    spelled = [b""] * encoding.n_vocab
    for token_id in range(encoding.n_vocab):
        try:
            spelled[token_id] = encoding.decode_single_token_bytes(token_id)
        except KeyError:  # a gap between the ranks and the special tokens
            continue
    added = {content: encoding.encode_single_token(content) for content in encoding.special_tokens_set}
    special = set(added.values())
    if tokens is not None:
        added |= {token.content: token_id for token_id, token in tokens.items()}
        special = {token_id for token_id, token in tokens.items() if token.special}
    spelled += [b""] * (max(added.values(), default=-1) + 1 - len(spelled))
    for content, token_id in added.items():
        spelled[token_id] = content.encode()
    return Reading(*joined(spelled), added=added, special=sorted(special), encoders=(encoding.encode_ordinary,))


def tekken(ordinary: list[bytes], names: list[str], encoding: Callable[[], Any]) -> Reading:
    """Read Mistral's layout: special tokens first, all of them dropped when special tokens are skipped."""
    num_special = len(names)

    def own(part: str) -> list[int]:
        return [rank + num_special for rank in encoding().encode_ordinary(part)]

    return Reading(
        *joined([*(name.encode() for name in names), *ordinary]),
        added={name: token_id for token_id, name in enumerate(names)},
        special=range(num_special),
        encoders=(own,),
    )
