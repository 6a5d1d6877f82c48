"""Tiny vocabularies with their formats: whole markers, halves, joints, white space, bytes, specials, headers.

A world knows what its tokens spell by itself; the package is only handed a vocabulary and a format made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from thinkguard import ChannelGrammar, ThinkFormat, ThinkProgram, Vocabulary


@dataclass(frozen=True, eq=False)
class World:
    """A vocabulary and how reasoning is written in it."""

    name: str
    plain: Sequence[bytes | str]  # what ordinary tokens spell; b"" for an unused id
    added: Sequence[str] = ()  # added tokens, EOS left out
    special: Sequence[str] = ()  # of them those that skip_special_tokens drops
    single_bytes: Sequence[bytes] = ()  # <0xNN> tokens
    eos: Sequence[str] = ("<eos>",)  # special too
    start: str = "<t>"
    end: str = "</t>"
    others: Sequence[tuple[str, str]] = ()  # further starts, each with its end
    paired: bool = False  # whether no other end closes what a start began
    space: str = "\n"  # behind the start
    close: tuple[str, str] = ("\n", "\n\n")  # before and behind the end
    openers: Sequence[str] = ()  # of the answer
    implicit: Sequence[str] = ()  # openers of tool calls
    off: str | None = None  # what is written where thinking is forbidden, None: an empty block
    message: str = "a."  # a policy's close_message
    wait: str = "a"  # a policy's extend_message
    channel: ChannelGrammar | None = None
    fields: dict = field(default_factory=dict)  # of ThinkFormat, besides
    alike: Sequence[bytes] = ()  # tokens that others stand for
    prompts: Sequence[str] = ()  # beginnings of the assistant's turn, besides none

    @cached_property
    def pieces(self) -> list[bytes]:
        """What each token spells, and behind them one token of logits that are wider than the vocabulary."""
        plain = [one.encode() if isinstance(one, str) else one for one in (*self.plain, *self.single_bytes)]
        return [*plain, *(one.encode() for one in (*self.added, *self.eos)), b""]

    @cached_property
    def token_of(self) -> dict[str, int]:
        """The ids of added tokens."""
        first = len(self.plain) + len(self.single_bytes)
        return {text: first + i for i, text in enumerate((*self.added, *self.eos))}

    @cached_property
    def dropped(self) -> set[int]:
        """Tokens that skip_special_tokens drops."""
        return {self.token_of[text] for text in (*self.special, *self.eos)}

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        return tuple(self.token_of[text] for text in self.eos)

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that have a meaning in the structure."""
        return (*self.starts, *self.ends, *self.openers)

    @property
    def starts(self) -> tuple[str, ...]:
        return (self.start, *(start for start, _ in self.others))

    @property
    def ends(self) -> tuple[str, ...]:
        return (self.end, *(end for _, end in self.others))

    @cached_property
    def program(self) -> ThinkProgram:
        first = len(self.plain)
        vocabulary = Vocabulary.from_parts(
            self.pieces[:-1], added=self.token_of, special=self.dropped, eos_ids=self.eos_ids,
            byte_ids=range(first, first + len(self.single_bytes)),
        )  # fmt: skip
        before, behind = self.close
        format = ThinkFormat(
            name=self.name, starts=self.starts, ends=self.ends, paired=self.paired, open_text=self.start + self.space,
            close_text=before + self.end + behind, answer_starts=tuple(self.openers), header_text="",
            implicit_ends=tuple(self.implicit), off_text=self.off, channel=self.channel, **self.fields,
        )  # fmt: skip
        return ThinkProgram(format, vocabulary)

    @cached_property
    def turns(self) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """The assistant's own part of each prompt, as ids and as C reads them."""
        found = [tuple(self.program.vocabulary.encode(text)) for text in ("", *self.prompts)]
        return [(ids, np.array(ids, np.int32)) for ids in found]

    def spelled(self, token_ids: Sequence[int]) -> str:
        return b"".join(self.pieces[token] for token in token_ids).decode()


CONTINUATION = [bytes([byte]) for byte in range(0x80, 0xC0)]
"""A vocabulary with a piece that ends inside a character has to have all of them; the last stands for the rest."""

WORLDS = {
    world.name: world
    for world in (
        World("tokens", ["a", ".", " ", "\n", "\n\n", "</t", "ink>"], ["<think>", "</think>"], prompts=["<think>\n"],
              start="<think>", end="</think>"),
        World("halves", ["a", ".", "\n", "\n\n", "<t", "</t", ">", ">\n", "t>"], prompts=["<t", "<t>", "<t>\na</t"]),
        World("joints", ["a", "\n", "<", "</", ".</", "t", "t>", ">", ">\n", ">x"], close=("\n", "\n"), message="a",
              prompts=["<t", "<t>\n", "<t>a</"]),
        World("letters", ["a", ".", "\n", "[", "/", "T]", "[T", "x[", "]", "1"], start="[T]", end="[/T]", close=("", ""),
              space="", prompts=["[T", "[T][/"]),
        World("specials", ["a", ".", "\n", "<t", "</t", ">", "t>", b""], ["<user>", "<|<t"], ["<user>", "<|<t"],
              close=("", ""), prompts=["<t>"]),
        World("dropped markers", ["a", ".", "[T", "[/T", "H]"], ["[TH]", "[/TH]", "<user>"], ["[TH]", "[/TH]", "<user>"],
              start="[TH]", end="[/TH]", space="", close=("", "")),
        World("bytes", ["a", ".", "\n", "<t>", "</", "t>", "<", ">"], single_bytes=[b"<", b"\n"], close=("\n", "\n")),
        World("tool", ["a", ".", "\n", "<t>", "</", "t>", ">"], ["<tool>"], close=("\n", "\n"), implicit=["<tool>"],
              eos=["<eos>", "<end>"], prompts=["<t>\n"]),
        World("spelled tool", ["a", "\n", "<t>", "</t", ">", "t>", "<c", ".<", "c>"], close=("\n", "\n"), wait="\na",
              implicit=["<c>"], message="a", prompts=["<t>a<c"]),
        World("opener", ["a", ".", "\n", "<t>", "</", "t>", "<r", ">"], close=("\n", "\n<r>"), openers=["<r>"],
              off="<t></t><r>", prompts=["<t>"]),
        World("pairs", ["a", "\n", "<t>", "</", "t>", ">", "[t]", "[/", "t]", "]"], others=[("[t]", "[/t]")], message="a",
              close=("\n", "\n"), prompts=["[t]", "<t>a[/"]),
        World("paired", ["a", "\n", "<t>", "<u>", "</t>", "</", "t>", "u", "u>", ">"], others=[("<u>", "</uu>")],
              paired=True, message="a", close=("\n", "\n"), prompts=["<u>", "<u>a</", "<t>a</"]),
        World("words", ["So", " ", "hm:", "ok:", "m:", "k:", ":", "a.", "\n", "o"], start="So hm:", end="So ok:",
              close=("\n", "\n"), message="a.", wait="a.", prompts=["So "]),
        World("mixed", ["a", ".", "\n", "go", "o", "<|", "c>"], ["<|c>", "<c|>"], ["<|c>", "<c|>"], start="<|c>go",
              end="<c|>", close=("", ""), fields={"controls": ("<|c>",)}),
        World("whole", ["a", "\n", "<t>", "</t>", "</t>\n\n", "x</t>y", "</t><t>", "<t></t>", "</", "t>", ">", "<"],
              message="a", prompts=["<t>"]),
        World("wide", ["a", ".", "\n", "<t>", "</", "t>", ">", b"\xc3", b"\xf0", *CONTINUATION], close=("\n", "\n"),
              alike=CONTINUATION[:-1]),
        World("channels", ["a.", "\n", "b", "r", "f", "t", "=", "<", "m>"], ["<s>", "<c>", "<m>", "<e>"],
              ["<s>", "<c>", "<m>", "<e>"], eos=["<r>", "<k>"],
              start="<c>r<m>", end="<e>", space="", close=("", ""), openers=["<c>f<m>"],
              off="<c>f<m>", message="a.", wait="a.",
              channel=ChannelGrammar(header="<s>b<c>", tool_headers=("<c>t",), body="<m>", message_end="<e>",
                                     call_end="<k>", recipient="="),
              fields={"turn_ends": ("<r>", "<k>"), "boundaries": ("<s>",), "assistant_headers": ("<s>b",),
                      "controls": ("<s>", "<c>", "<m>")}),
    )
}  # fmt: skip
