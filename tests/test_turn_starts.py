"""What chat templates begin turns, roles and tools' results with: banned while a model thinks, whichever family it is of.

A template is asked by rendering a conversation: what stands in front of each message's text begins it. The templates here
are of our own, each of a construction that published ones have; with --corpus those are asked too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from thinkguard import ThinkFormat, ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.core.names import Phase
from thinkguard.errors import FormatError
from thinkguard.formats import DEFAULT_INNER, TURN_STARTS, prompt_of
from thinkguard.formats.renders import compile_template

HERE = Path(__file__).resolve().parent
OWN = HERE / "templates"
BYTES = [bytes([value]) for value in range(256)]
EOS = "</s>"
ADDED = re.compile(  # what an added token's name looks like
    r"<\|[^|<>\s]{1,40}\|>|<\uff5c[^<>\s\uff5c]{1,40}\uff5c>|\[\|[^|\s\]]+\|\]|\[/?[A-Z_]{3,}\]|\]~!?b\]|\[e~\[|<\|[a-z_]+>|<[a-z_]+\|>"
    r"|</?(?:seed|mm|minimax):[a-z_]+>|<SPECIAL_\d+>|<sop>|</?longcat_[a-z_]+>"
    r"|</?(?:s|system|user|assistant|role|tool_responses?|think|thought|start_of_turn)(?::[a-z]+)?>"
)
SAID = ("Syst3m", "Qu3ry", "Answ3r", "Qu4ry", "R3sult")
OTHERS = {
    "end a turn or a tool's result": (
        "</s> <|im_end|> <|end|> <|eot_id|> <|end_of_text|> <|end_of_turn|> <|END_OF_TURN_TOKEN|> <|END_TOOL_RESULT|> "
        "<|role_end|> </role> <seed:eos> [e~[ <\uff5cend\u2581of\u2581sentence\uff5c> <\uff5chy_eos:opensource\uff5c> "
        "</tool_response> </tool_response:opensource> </tool_responses:opensource> <|tool_response_end|> "
        "<\uff5ctool\u2581output\u2581end\uff5c> <\uff5ctool\u2581outputs\u2581end\uff5c> [/SYSTEM_PROMPT] "
        "[/AVAILABLE_TOOLS]"
    ),
    "stand behind a role's name": "<|end_header_id|> <|end_of_role|> <|im_sep|> [TOOL_CONTENT]",
    "stand once, in front of the first turn": (
        "<s> [gMASK] <sop> ]~!b[ <\uff5chy_begin_of_sentence:opensource\uff5c> <\uff5creasoning_mode:opensource\uff5c>"
    ),
    "list the tools, inside the system's turn": "<|function_list|> <|tool_list_start|> <|tool_list_end|> <|tool> <tool|>",
    "are of no published template": "<|role_system|> <|role_user|> <|role_assistant|> <|role_tool|>",
}
NOT_STARTS = {name for names in OTHERS.values() for name in names.split()}


def conversations() -> Iterator[tuple[list[dict[str, Any]], Any]]:
    """Messages and tools, what few templates accept first."""
    system, *rest = (
        {"role": role, "content": text} for role, text in zip(("system", "user", "assistant", "user"), SAID, strict=False)
    )
    function = {"name": "tool", "description": "d", "parameters": {"type": "object", "properties": {}}}
    for arguments in ({"key": "value"}, '{"key": "value"}'):
        call = {"id": "call00000", "type": "function", "function": {"name": "tool", "arguments": arguments}}
        asked = {"role": "assistant", "content": "", "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": "call00000", "name": "tool", "content": SAID[-1]}
        for first in ([system], []):
            yield [*first, *rest, asked, result], [{"type": "function", "function": function}]
    yield [system, *rest], None
    yield rest, None


def fronts(source: str) -> dict[str, list[str]]:
    """The text in front of each message's own, and of the assistant's turn, in every conversation that can be rendered."""
    template = compile_template(source)
    more = {"bos_token": "<s>", "eos_token": EOS, "documents": None, "functions": "", "datetime": "", "persona": ""}
    found: dict[str, list[str]] = {}
    for messages, tools in conversations():
        try:
            text = template.render(messages=messages, tools=tools, add_generation_prompt=True, **more)
        except Exception:  # a template may raise anything that Python can
            continue
        places = sorted({text.find(said): said for said in SAID if said in text}.items())
        for (at, said), (end, behind) in pairwise([(0, ""), *places, (len(text), "the assistant's turn")]):
            found.setdefault(behind, []).append(text[at + len(said) : end])
    return found


def program_of(source: str, names: set[str]) -> ThinkProgram:
    """A program over bytes and added tokens; of plain <think>...</think>, where a template shows no reasoning."""
    added = {name: 256 + index for index, name in enumerate(sorted(names | {EOS}))}
    vocabulary = Vocabulary.from_parts(BYTES, added=added, eos_ids=[added[EOS]], chat_template=source)
    try:
        return ThinkProgram(None, vocabulary)
    except FormatError:
        return ThinkProgram("think", vocabulary)


def allowed_while_thinking(program: ThinkProgram, names: list[str]) -> list[str]:
    vocabulary, format = program.vocabulary, program.format
    state = program.start(vocabulary.encode(format.open_text + "a"), ThinkPolicy(), turn_start=0)
    action = state.decide()
    assert state.phase == Phase.THINKING
    assert action.allows(ord("a"))
    return [name for name in names if action.allows(vocabulary.added[name])]


def own_of(format: ThinkFormat) -> str:
    """What the assistant itself writes inside its turn, in one text."""
    markers = (format.starts, format.ends, format.answer_starts, format.answer_ends, format.implicit_ends, format.inner)
    return " ".join(text for texts in (*markers, DEFAULT_INNER) for text in texts)


def checked(source: str) -> set[str]:
    """Assert that nothing that a template begins turns with can be sampled while thinking; what these tokens are."""
    written = fronts(source)
    names = {name for texts in ([source], *written.values()) for text in texts for name in ADDED.findall(text)}
    program, found = program_of(source, names), set[str]()
    if program.format.channel is not None:  # its control tokens are markers themselves
        return found
    own = own_of(program.format)
    for behind, text in ((behind, text) for behind, texts in written.items() for text in texts):
        begin = [name for name in ADDED.findall(text) if name not in NOT_STARTS and name not in own]
        assert not allowed_while_thinking(program, begin), f"in front of {behind}: {text!r}"
        found |= set(begin)
    return found


@pytest.mark.parametrize("path", sorted(OWN.glob("*.jinja")), ids=lambda path: path.stem)
def test_templates_of_our_own(path: Path) -> None:
    checked(path.read_text(encoding="utf-8"))


@pytest.mark.corpus
def test_published_templates(corpus: Path) -> None:
    """None is missed, and they show what the list holds."""
    paths = sorted((corpus / "templates").glob("*.jinja"))
    seen = {path.name: checked(path.read_text(encoding="utf-8")) for path in paths}
    none = {name for name, found in seen.items() if not found}
    assert none == {"openai-gpt-oss-120b.jinja", "upstage-Solar-Open-100B.jinja"}
    shown = set[str]().union(*seen.values())
    assert len(shown & set(TURN_STARTS)) >= 45
    more = {f"<{slash}{role}>" for slash in ("", "/") for role in ("system", "user", "assistant")}
    more |= {"<turn|>", "<tool_response|>", "<|end_of_msg|>"}
    assert shown - set(TURN_STARTS) == more, "what families list as boundaries"


@pytest.mark.parametrize("name", [name for name in ThinkFormat.names() if prompt_of(name)[0]])
def test_headers_of_families(name: str) -> None:
    """The first token of what the table says a family's turns begin with, where that is a token."""
    format, (header, _) = ThinkFormat.from_name(name), prompt_of(name)
    begins = ADDED.findall(header or "")[:1]
    if not begins or format.channel is not None:
        return
    added = {text: 256 + index for index, text in enumerate(sorted({EOS, *begins, *format.controls}))}
    program = ThinkProgram(format, Vocabulary.from_parts(BYTES, added=added, eos_ids=[added[EOS]]))
    assert not [text for text in allowed_while_thinking(program, begins) if text not in own_of(format)]


@pytest.mark.parametrize(
    ("name", "format", "begin"),
    [
        ("qwen3", "qwen3", "<|im_start|> <tool_response>"),
        ("qwen2.5-instruct", "think", "<|im_start|>"),
        ("phi-4", "think", "<|im_start|>"),
        ("r1-distill-qwen", "deepseek_r1_distill", "<\uff5cUser\uff5c> <\uff5cAssistant\uff5c>"),
        (
            "magistral-2507",
            "mistral_think_tokens",
            "[SYSTEM_PROMPT] [AVAILABLE_TOOLS] [INST] [/INST] [TOOL_RESULTS] [/TOOL_RESULTS]",
        ),
    ],
)
def test_real_tokenizers(name: str, format: str, begin: str, tokenizer_dirs: dict[str, Path]) -> None:
    program = ThinkProgram(format, Vocabulary.from_tokenizer(tokenizer_dirs[name]))
    encode, added = program.vocabulary.encode, program.vocabulary.added
    assert set(begin.split()) == set(TURN_STARTS) & set(added)
    assert not allowed_while_thinking(program, begin.split())
    answering = program.start(encode(program.format.open_text + "a" + program.format.close_text + "b"), turn_start=0)
    assert all(answering.decide().allows(added[token]) for token in begin.split())


def test_the_list_holds_what_no_assistant_writes() -> None:
    assert len(set(TURN_STARTS)) == len(TURN_STARTS)
    assert not set(TURN_STARTS) & (DEFAULT_INNER | NOT_STARTS)
    for name in ThinkFormat.names():
        format = ThinkFormat.from_name(name)
        assert not set(TURN_STARTS) & {*format.starts, *format.ends, *format.answer_starts, *format.inner}, name
        assert not set(TURN_STARTS) & {*format.implicit_ends, *format.answer_ends}, name
