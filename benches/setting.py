"""What every alternative is given: a model's tokenizer with its markers, and requests."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from thinkguard import Vocabulary
from thinkguard.core.program import ThinkProgram
from thinkguard.errors import InputError

START, END = "<think>", "</think>"
CONTROLS: Final = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_CALLS: Final = ("<tool_call>", "</tool_call>")
TEMPLATE: Final = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
_TEXT: Final = """\
What is two and clear that the by itself this asked for let me see add once more so answer four which twice say or it five
no time up I now where there here with from about number first then second all people work Let The Two Four Or No"""
_PIECES: Final = (".</", "</", "think", ">\n\n", ">\n", "\n\n", ".\n\n")
"""Tokens over which the markers' bytes are spread, as in Qwen2.5, Llama-3 and Phi-4."""


@dataclass(frozen=True)
class Setting:
    """A model's tokenizer, the width of its logits, and what its server is configured with."""

    folder: Path
    tokenizer: Any  # transformers' fast tokenizer
    program: ThinkProgram
    width: int
    message: str = ""  # said before the end marker, where the budget closes
    max_blocks: int = 1
    start: str = START
    end: str = END

    @classmethod
    def load(cls, folder: Path, width: int | None = None, **fields: Any) -> Setting:
        """Read a tokenizer folder; logits are as wide as its ids, rounded up to 64, unless `width` says so."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        program = ThinkProgram("think", tokenizer)
        return cls(folder, tokenizer, program, width or -(-len(tokenizer) // 64) * 64, **fields)

    def encode(self, text: str) -> list[int]:
        """Encode as the tokenizer does, without a prefix."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Decode, special tokens included."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    @property
    def start_ids(self) -> list[int]:
        """The start marker as the tokenizer writes it."""
        return self.encode(self.start)

    @property
    def end_ids(self) -> list[int]:
        """The end marker as the tokenizer writes it."""
        return self.encode(self.end)

    @property
    def has_marker_tokens(self) -> bool:
        """Whether each marker is one token."""
        return len(self.start_ids) == len(self.end_ids) == 1

    @property
    def eos_ids(self) -> list[int]:
        """Ids that end an output."""
        return list(self.program.eos_token_ids)

    def opened(self, request: Request) -> bool:
        """Whether a request's prompt leaves the thinking open, by its text, which is read once."""
        if request.opened is None:
            text = self.decode(request.prompt)
            request.opened = text.rfind(self.start) > text.rfind(self.end)
        return request.opened

    def received(self, requests: Sequence[Request]) -> None:
        """Have at hand what some alternatives take as given: it is no cost of theirs."""
        for request in requests:
            self.opened(request)
            _ = request.ids


@dataclass
class Request:
    """One sequence: its prompt, its budget of thinking tokens, and what was generated before it (re-)entered the batch."""

    prompt: list[int]
    budget: int
    output: list[int] = field(default_factory=list)
    opened: bool | None = None  # whether the prompt leaves the thinking open, once `Setting.opened` has read it

    @cached_property
    def ids(self) -> array[int]:
        """The prompt as SGLang keeps it of every request."""
        return array("q", self.prompt)


def make_tokenizer(folder: Path, vocab_size: int, *, marker_tokens: bool) -> Path:
    """Write a byte-level BPE tokenizer of `vocab_size` tokens into `folder`, with a chat template.

    It splits text as Qwen2.5 does; its tokens are bytes, common words, the pieces that markers fall into, and random words
    up to the wanted size. With `marker_tokens` both markers are one token each.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers import __version__ as transformers_version

    added = [*_CALLS, *((START, END) if marker_tokens else ())]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    vocab = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []

    def learn(text: str) -> None:
        """Make a text one token, by merges from the left."""
        ((spelled, _),) = byte_level.pre_tokenize_str(text)
        for end in range(2, len(spelled) + 1):
            if spelled[:end] not in vocab:
                vocab[spelled[:end]] = len(vocab)
                merges.append((spelled[: end - 1], spelled[end - 1]))

    for text in (*_PIECES, *(f" {word}" for word in _TEXT.split()), *_TEXT.split()):
        learn(text)
    wanted = vocab_size - len(CONTROLS) - len(added)
    if wanted < len(vocab):
        raise InputError(f"vocab_size={vocab_size} has no room for the {len(vocab)} tokens that are needed")
    rng = random.Random(0)
    while len(vocab) < wanted:
        vocab.setdefault("Ġ" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=8)), len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in CONTROLS])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in added])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=CONTROLS[1], chat_template=TEMPLATE)
    fast.save_pretrained(folder)
    config = {"model_type": "qwen3", "transformers_version": transformers_version}  # without them vLLM and transformers warn
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def made_vocabulary(vocab_size: int, *, marker_tokens: bool) -> Vocabulary:
    """All bytes, pieces of the markers, words of eight letters; markers as text or as added tokens. Needs no tokenizer."""
    pieces = [bytes([b]) for b in range(256)]
    pieces += [b"</", b"think", b">\n", b">\n\n", b"<th", b"ink>", b" the", b"\n\n"]
    names = [*CONTROLS, *((START, END) if marker_tokens else ())]
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, (vocab_size - len(pieces) - len(names), 8), np.uint8)
    pieces += [word.tobytes() for word in letters]
    added = {name: len(pieces) + i for i, name in enumerate(names)}
    return Vocabulary.from_parts(pieces, added=added, special=list(added.values())[:3], eos_ids=[added["<|im_end|>"]])
