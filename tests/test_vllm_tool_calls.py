"""Tool calls that are begun inside the thinking, in every family that can call tools, read by vLLM's own tool parsers.

A greedy model writes a sentence and then a call, thinking all the while. Wherever a budget ends the thinking, inside the
call's opener too, the call has to come out whole; nothing may stand inside an opener.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest
from cases import snapshot
from model import Model
from tool_calls import ARGUMENTS, CALLS, NAME, OTHERS

pytest.importorskip("vllm", reason="vLLM's own tool parsers are used, and it is not installed")

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.tool_parsers import ToolParserManager

from thinkguard import ThinkFormat, ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.core.names import ActionKind, Phase
from thinkguard.formats import facts_of

# In these a message's header begins the call, which is a rule of its own.
HEADERS = ("gpt_oss_harmony", "solar_open")
# vLLM's tool parser by this name reads nothing by itself.
UNREAD = {"cohere_command3": "a parser of both halves, from another package", "cohere_command4": "the same"}
PAIRS = [
    *((family, parser) for family in ThinkFormat.names() for parser in facts_of(family).vllm_tool_parsers),
    *((family, None) for family in OTHERS),
]  # fmt: skip
PAIRS = [pair for pair in PAIRS if pair[0] not in HEADERS]
# Tokens of their own in published vocabularies that openers are written around.
PARTS = ("｜DSML｜", "]<]minimax[>[", "<|plamo:begin_", "<|plamo:end_", ":plamo|>")
SENTENCE = "I look it up.\n"
FILLER = " ok"
MOST_STEPS = 400


@dataclass(eq=False)
class Bench:
    """A family's program over a small vocabulary, and the call that the model wants to write."""

    family: str
    call: str
    whole: bool  # markers and openers are tokens of their own, where they are one

    @cached_property
    def format(self) -> ThinkFormat:
        return ThinkFormat.from_name(self.family)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        format = self.format
        texts = (format.open_text, format.close_text, *format.implicit_ends, SENTENCE, self.call)
        pieces = [bytes([byte]) for byte in range(256)] + [FILLER.encode()]
        for text in texts:
            pieces += [piece.encode() for piece in re.findall(r" ?[A-Za-z]{1,5}|[^A-Za-z ]{1,2}", text)]
        names = [*format.controls, *(part for part in PARTS if part in self.call)]
        if self.whole:
            markers = (*format.starts, *format.ends, *format.implicit_ends)
            names += [text for text in markers if not any(name in text for name in names)]
            names += re.findall(r"<(?:mm:)?tool_call>", self.call)
        added = {name: id for id, name in enumerate(dict.fromkeys(("<eos>", *names)), len(set(pieces)))}
        special = [added["<eos>"], *(added[name] for name in names if facts_of(self.family).tokens == "special")]
        return Vocabulary.from_parts(list(dict.fromkeys(pieces)), added=added, special=special, eos_ids=[added["<eos>"]])

    @cached_property
    def program(self) -> ThinkProgram:
        return ThinkProgram(self.format, self.vocabulary)

    @cached_property
    def model(self) -> Model:
        return Model(self.format, self.vocabulary, ThinkPolicy(opening="force", ), self.program.eos_token_ids)

    @cached_property
    def script(self) -> list[int]:
        return self.vocabulary.encode(SENTENCE + self.call)

    @cache  # noqa: B019  the benches live as long as the tests
    def spelled(self, rest: bytes) -> list[int]:
        return self.vocabulary.encode_bytes(rest)

    def write(self, policy: ThinkPolicy, max_tokens: int | None = None, *, agree: bool = False) -> str:
        """What the model writes under a policy, without EOS; it begins its call again wherever it was interrupted."""
        program, vocabulary, eos = self.program, self.vocabulary, self.vocabulary.added["<eos>"]
        state = program.start([], policy, max_tokens=max_tokens)
        model = self.model
        model.policy, model.limit = policy, max_tokens
        model.start([])
        call, rest, text = self.call.encode(), (SENTENCE + self.call).encode(), b""
        row = np.empty((1, vocabulary.num_tokens), np.float32)
        filler = vocabulary.encode(FILLER)[0]
        for _ in range(MOST_STEPS):
            wanted = self.spelled(rest)[0] if rest else eos
            row[:] = -10
            row[0, eos], row[0, filler], row[0, wanted] = -5, 0, 10
            if agree:
                assert snapshot(state) == model.snapshot()
                action, decided = state.decide(), model.decide()
                if decided[0] == "edit":
                    some = {wanted, eos, filler, *model.close}
                    assert [action.allows(t) for t in some] == [not decided[1](t) for t in some]
                else:
                    assert (action.kind, action.token) == (ActionKind[decided[0].upper()], (*decided, -1)[1])
            program.apply([state], row)
            token = int(row.argmax())
            program.advance(state, token)
            if agree:
                model.advance(token)
            if token == eos:
                assert state.phase == Phase.DONE
                return text.decode()
            piece = vocabulary.token_bytes(token)
            text += piece
            if rest.startswith(piece):
                rest = rest[len(piece) :]
            elif token != filler or len(rest) < len(call):
                rest = call
            if max_tokens is not None and state.as_dict()["length"] == max_tokens:
                return text.decode()
        raise AssertionError(f"no end: {text!r}")

    def read(self, text: str) -> tuple[str, str]:
        """(reasoning, what is behind it) of a text: up to an end, or up to an opener, whatever comes first."""
        format = self.format
        start = next(start for start in format.starts if text.startswith(start))
        closer = "|".join(map(re.escape, sorted((*format.ends, *format.implicit_ends), key=len, reverse=True)))
        match = re.search(closer, text[len(start) :])
        assert match, "the thinking was not closed"
        reasoning, content = text[len(start) :][: match.start()], text[len(start) :][match.start() :]
        if match[0] in format.ends:
            content = content[len(match[0]) :]
            begun = [opener[:n] for opener in format.implicit_ends for n in range(2, len(opener))]
            assert not any(reasoning.rstrip().endswith(part) for part in begun), "the end stands inside an opener"
        assert not any(marker in content for marker in (*format.starts, *format.ends)), "thinking in the answer"
        return reasoning, content


@cache
def bench(family: str, call: str, whole: bool) -> Bench:
    return Bench(family, call, whole)


class Tokens:
    """What vLLM's parsers ask of a tokenizer: which texts are tokens."""

    def __init__(self, call: str) -> None:
        names = re.findall(r"<[^<>\s]{1,60}>|\[[A-Z_]+\]", call)
        others = ("<think>", "</think>", "<response>", "</response>", "<tool_call>", "</tool_call>", "<tool_sep>")
        self.ids = {name: id for id, name in enumerate(dict.fromkeys((*names, *others)))}
        self.all_special_tokens: list[str] = []
        self.all_special_ids: list[int] = []

    def get_vocab(self) -> dict[str, int]:
        return self.ids

    def encode(self, text: str, **_: Any) -> list[int]:
        return [self.ids.get(text, 0)]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(name for token in ids for name, id in self.ids.items() if id == token)


TOOL = {
    "type": "function",
    "function": {"name": NAME, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
REQUEST = ChatCompletionRequest(messages=[{"role": "user", "content": "?"}], model="any", tools=[TOOL])


@cache
def calls_in(parser: str, call: str, content: str) -> list[tuple[str, dict[str, str]]]:
    """The calls that vLLM's parser finds behind the thinking."""
    made = ToolParserManager.get_tool_parser(parser)(Tokens(call), REQUEST.tools)
    found = made.extract_tool_calls(content, REQUEST)
    return [(one.function.name, json.loads(one.function.arguments)) for one in found.tool_calls]


def check(it: Bench, parser: str | None, text: str) -> None:
    _, content = it.read(text)
    assert it.call in content
    if parser and parser not in UNREAD:
        assert calls_in(parser, it.call, content) == [(NAME, ARGUMENTS)]


def test_every_family_that_can_call_tools_is_here() -> None:
    able = {name for name in ThinkFormat.names() if ThinkFormat.from_name(name).implicit_ends}
    assert {family for family, _ in PAIRS} == able | {"kimi_k3"}  # whose tools come behind an end alone
    assert {parser for _, parser in PAIRS} - {None} <= set(CALLS)


@pytest.mark.parametrize("whole", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize(("family", "parser"), PAIRS)
def test_a_call_comes_out_whole_under_every_budget(family: str, parser: str | None, whole: bool) -> None:
    it = bench(family, OTHERS[family] if parser is None else CALLS[parser], whole)
    for cap in range(len(it.script) + 1):
        check(it, parser, it.write(ThinkPolicy(opening="force", max_thinking_tokens=cap), agree=True))


@pytest.mark.parametrize("whole", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize(("family", "parser"), PAIRS)
def test_no_call_is_begun_below_the_minimum(family: str, parser: str | None, whole: bool) -> None:
    it = bench(family, OTHERS[family] if parser is None else CALLS[parser], whole)
    for least in range(0, len(it.script) + 1, 7):
        text = it.write(ThinkPolicy(opening="force", min_thinking_tokens=least, max_thinking_tokens=least), agree=True)
        check(it, parser, text)
        reasoning, _ = it.read(text)
        assert not any(opener[:3] in reasoning for opener in it.format.implicit_ends)


@pytest.mark.parametrize("whole", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize(("family", "parser"), PAIRS)
def test_a_call_is_finished_within_max_tokens(family: str, parser: str | None, whole: bool) -> None:
    """The thinking is over before the limit, and the call has the tokens that are kept for an answer."""
    it = bench(family, OTHERS[family] if parser is None else CALLS[parser], whole)
    policy = ThinkPolicy(opening="force", reserve_answer_tokens=len(it.script))
    least = it.program.most_room(it.program.bind(policy))
    for limit in range(least, least + len(it.script) + 1, 5):
        check(it, parser, it.write(policy, limit, agree=True))
