"""Prompts that end without a marker: whether such a prompt thinks, found from templates, and what is forced behind it.

The templates here are of our own, each of a construction that published ones have; with --corpus those are looked at too.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from test_formats import vocabulary

from thinkguard import InputError, ThinkFormat, ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.core.names import ActionKind, Opening, Phase
from thinkguard.errors import FormatError
from thinkguard.formats.renders import TOGGLES, compile_template
from thinkguard.formats.resolve import detect_format, resolve_format

TEMPLATES = Path(__file__).resolve().parent / "templates"


def chatml(system: str = "", behind: str = "") -> str:
    """A template of the usual construction: what a system message begins with, and what the assistant's turn does."""
    return (
        "{% set ns = namespace(tool=false) %}{% set system = '' %}"
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% endif %}"
        f"{{% set head %}}{system}{{% endset %}}"
        "{% if head or system %}<|im_start|>system\n{{ head }}{{ system }}<|im_end|>\n{% endif %}"
        "{% for m in messages if m.role != 'system' %}{% set ns.tool = m.role == 'tool' %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}</tool_call>{% endfor %}"
        "<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n" + behind + "{% endif %}{# <think> </think> #}"
    )


ASKS = "You can write down your thoughts and reasoning before you respond, and weigh all of them.\n"
CONSTRUCTIONS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "no switch": (chatml(), None),
    "off is closed": (chatml(behind="{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"), None),
    "always shown": (chatml(behind="{% if thinking %}<think>{% else %}</think>{% endif %}"), None),
    "on is opened, off silent": (chatml(behind="{% if enable_thinking %}<think>\n{% endif %}"), ()),
    "silent behind a tool": (
        chatml(behind="{% if not ns.tool %}{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}"), ()
    ),
    "a system text": (
        chatml("{% if thinking and not system %}" + ASKS + "{% endif %}"),
        ("You can write down your thoughts and reasoning before",),
    ),
    "a word of the system's": (
        chatml("detailed thinking {{ 'on' if enable_thinking is not false else 'off' }}\n"), ("detailed thinking on",)
    ),
    "a control token": (chatml("{% if enable_thinking %}<|think|>\n{% endif %}"), ("<|think|>",)),
    "a control token, closed in a first turn": (
        chatml(
            "{% if enable_thinking %}<|think|>\n{% endif %}",
            "{% if not enable_thinking and not ns.tool %}<think>\n\n</think>\n\n{% endif %}",
        ),
        ("<|think|>",),
    ),
    "settings that are checked": (
        chatml(
            "{% set effort = reasoning_effort or 'none' %}{% if effort not in ('none', 'high') %}"
            "{{ raise_exception('no such effort') }}{% endif %}{\"reasoning_effort\": \"{{ effort }}\"}\n"
        ),
        ('{"reasoning_effort": "high"}',),
    ),
    "an effort that is repeated": (chatml("Reasoning: {{ reasoning_effort or 'medium' }}\n"), None),
    "adaptive": (
        chatml(
            "Thinking: {{ thinking_mode if thinking_mode in ('enabled', 'disabled') else 'as you like' }}\n",
            "{% if thinking_mode == 'enabled' %}<think>{% elif thinking_mode == 'disabled' %}</think>{% endif %}",
        ),
        (),
    ),
    "a switch that fails": (chatml("{% if enable_thinking is defined %}{{ raise_exception('no') }}{% endif %}"), None),
}  # fmt: skip
TOKENS = ("<|think|>", "<think>", "</think>")


@pytest.mark.parametrize("construction", CONSTRUCTIONS)
def test_what_a_silent_prompt_means_is_found(construction: str) -> None:
    source, expected = CONSTRUCTIONS[construction]
    found = detect_format(vocabulary(source, *TOKENS))
    assert found.on_texts == expected
    assert (expected is None) == ("ends without a marker" not in found.evidence[-1])
    assert resolve_format("think", vocabulary(source, *TOKENS)).on_texts == expected, "a format that is named is fitted"


def test_without_renders_the_table_decides() -> None:
    assert resolve_format("gemma4", vocabulary(None, "<|channel>", "<channel|>")).on_texts == ("<|think|>",)
    assert resolve_format("deepseek_v3_hybrid", vocabulary()).on_texts == ()
    assert resolve_format("think", vocabulary()).on_texts is None
    failing = resolve_format("granite_3_3", vocabulary("{{ raise_exception('no') }}"))
    assert failing.on_texts == ThinkFormat.from_name("granite_3_3").on_texts
    assert resolve_format("granite_3_3", vocabulary(CONSTRUCTIONS["no switch"][0])).on_texts is None, "it cannot be told"


@pytest.mark.parametrize("texts", [("",), ["x"], "x", (1,), ("\ud800",)])
def test_texts_that_are_none_are_refused(texts: Any) -> None:
    with pytest.raises(FormatError, match="on_texts="):
        replace(ThinkFormat.from_name("think"), on_texts=texts)


# What is forced behind a rendered prompt


@dataclass
class Chat:
    """A rendered prompt, what it was told, and the prompts of the same conversation that were told not to think."""

    situation: str
    told: str  # "on", "off", or "nothing"
    prompt: str
    others: list[str]


CALL = {"id": "call00000", "type": "function", "function": {"name": "tool", "arguments": {"key": "value"}}}
ASKED = {"role": "user", "content": "What is 17 + 25?"}
CALLED: list[dict[str, Any]] = [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
CALLED.append({"role": "tool", "tool_call_id": "call00000", "name": "tool", "content": "42 it is"})
SITUATIONS: dict[str, list[dict[str, Any]]] = {
    "first turn": [ASKED],
    "system message": [{"role": "system", "content": "Be kind."}, ASKED],
    "later turn": [ASKED, {"role": "assistant", "content": "It is 42."}, ASKED],
    "tool result": [ASKED, *CALLED],
    "tool result in a later turn": [ASKED, {"role": "assistant", "content": "It is 42."}, ASKED, *CALLED],
}


def chats(source: str) -> Iterator[Chat]:
    """Every conversation of a template, told to think, not to, and nothing, by every switch that has an effect."""
    template = compile_template(source)

    def rendered(messages: list[dict[str, Any]], switch: dict[str, Any]) -> str | None:
        context = {"tools": None, "documents": None, "bos_token": "<bos>", "eos_token": "", **switch}
        try:
            text = str(template.render(messages=messages, add_generation_prompt=True, **context))
        except Exception:  # a template may refuse a switch or a conversation
            return None
        return text if messages[-1]["content"] in text else None

    texts = {
        (situation, number, told): rendered(messages, switch)
        for situation, messages in SITUATIONS.items()
        for number, toggle in enumerate(TOGGLES)
        for told, switch in zip(("on", "off"), toggle, strict=True)
    }
    keys = {(situation, number) for situation, number, _ in texts}
    pairs = {key: (texts[(*key, "on")], texts[(*key, "off")]) for key in sorted(keys)}
    works = {number for (_, number), (on, off) in pairs.items() if on and off and on != off}
    for situation, messages in SITUATIONS.items():
        told_off = [off for (place, number), (_, off) in pairs.items() if place == situation and number in works and off]
        told_on = [on for (place, number), (on, _) in pairs.items() if place == situation and number in works and on]
        by_default = rendered(messages, {})
        for told, prompts in (("on", told_on), ("off", told_off), ("nothing", [by_default] if by_default else [])):
            for prompt in dict.fromkeys(prompts):
                yield Chat(situation, told, prompt, told_off)


def check(source: str, *tokens: str) -> dict[str, int]:
    """Hold all conversations of a template to the promise; how many of each kind there were."""
    pieces = vocabulary(source, "<bos>", *tokens)
    program = ThinkProgram(None, pieces)
    seen = dict.fromkeys(("off", "on, silent, forced", "on, silent, not to be told from off", "shown"), 0)
    for chat in chats(source):
        state = program.start(pieces.encode(chat.prompt))
        is_forced = state.phase == Phase.BEFORE and state.decide().kind == ActionKind.FORCE
        context = f"{chat.situation}, told {chat.told}: {chat.prompt[-200:]!r}"
        if chat.prompt in chat.others:
            assert not is_forced, context
            assert state.phase != Phase.THINKING, f"a prompt without thinking that opens it: {context}"
            seen["off" if chat.told == "off" else "on, silent, not to be told from off"] += 1
        elif state.phase != Phase.BEFORE:
            seen["shown"] += 1
        elif chat.told == "on" or not chat.others:
            assert is_forced, context
            opening = program.bind(ThinkPolicy(opening="force")).sequence(1)
            assert state.decide().token in opening
            seen["on, silent, forced"] += 1
    return seen


REPEATS = "an effort that is repeated"


@pytest.mark.parametrize("construction", [name for name in CONSTRUCTIONS if name != REPEATS])
def test_nothing_is_forced_into_a_prompt_that_may_be_without_thinking(construction: str) -> None:
    source, texts = CONSTRUCTIONS[construction]
    seen = check(source, *TOKENS)
    if construction not in ("no switch", "a switch that fails"):
        assert seen["off"]
    if texts:
        assert seen["on, silent, forced"]


def test_who_only_repeats_what_it_is_told_goes_on_thinking() -> None:
    source, _ = CONSTRUCTIONS[REPEATS]
    program = ThinkProgram(None, vocabulary(source, *TOKENS))
    told = {program.start(program.vocabulary.encode(chat.prompt)).decide().kind for chat in chats(source)}
    assert told == {ActionKind.FORCE}


# Templates in which "none" is an effort like others, which they repeat: the model cannot be told not to think.
REPEATING = ("harmony.jinja", "openai-gpt-oss-120b.jinja")


def checked(path: Path) -> dict[str, int]:
    source = path.read_text(encoding="utf-8")
    try:
        detect_format(vocabulary(source))
    except FormatError:
        return {}
    return check(source)


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_templates_of_our_own(path: Path) -> None:
    if path.name not in REPEATING:
        checked(path)


@pytest.mark.corpus
def test_published_templates(corpus: Path) -> None:
    """The promise holds for each of them, and they show what it is about."""
    paths = sorted((corpus / "templates").glob("*.jinja"))
    seen = {path.name: checked(path) for path in paths if path.name not in REPEATING}
    assert sum(map(bool, seen.values())) >= 25
    off = [name for name, counts in seen.items() if counts and counts["off"]]
    assert len(off) >= 18
    gemma = seen["google-gemma-4-31B-it.jinja"]
    assert gemma["off"]
    assert gemma["on, silent, forced"]
    assert seen["deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja"]["on, silent, not to be told from off"]
    assert seen["Qwen-Qwen3-0.6B.jinja"]["on, silent, forced"]


# How a prompt is asked

SAYS = ("Think hard", "<|think|>")
PIECES = [*(bytes([byte]) for byte in range(256)), b"Thi", b"nk h", b"ard", b"so Think hard then", b"assistant"]


def asking(on_texts: tuple[str, ...] | None) -> ThinkProgram:
    names = ("<|im_start|>", "<|im_end|>", "<|think|>", "<think>", "</think>", "<eos>")
    added = {name: len(PIECES) + index for index, name in enumerate(names)}
    pieces = Vocabulary.from_parts(PIECES, added=added, eos_ids=[added["<eos>"]])
    return ThinkProgram(replace(ThinkFormat.from_name("think"), on_texts=on_texts), pieces)


def kinds(program: ThinkProgram, *parts: str | bytes, **more: Any) -> ActionKind:
    """What the next step of a turn needs behind a system message of these pieces, texts or single tokens."""
    encode = program.vocabulary.encode
    said = [token for part in parts for token in (encode(part) if isinstance(part, str) else [PIECES.index(part)])]
    prompt = [*encode("<|im_start|>system\n"), *said, *encode("<|im_end|><|im_start|>assistant\n")]
    return ActionKind(program.start(prompt, **more).decide().kind)


def test_opening_is_settled_where_every_prompt_is_alike() -> None:
    bound = [asking(texts).bind(ThinkPolicy()) for texts in (None, (), SAYS)]
    assert [one.fields["opening"] for one in bound] == [Opening.FORCE, Opening.ALLOW, Opening.AUTO]
    assert {one.source.opening for one in bound} == {"auto"}
    for opening in ("force", "allow", "forbid"):
        assert asking(SAYS).bind(ThinkPolicy(opening=opening)).fields["opening"] == Opening[opening.upper()]


@pytest.mark.parametrize(
    ("said", "thinks"),
    [
        (("Be kind.",), False),
        (("Think hard",), True),
        ((b"Thi", b"nk h", b"ard"), True),
        ((b"so Think hard then",), True),
        (("so Thi", b"nk h", "ard"), True),
        (("Think Think hard",), True),
        (("Think har", "<|think|>"), True),
        (("Think har", "d"), True),
        (("Think har.",), False),
        ((b"<", "|think|>"), False),  # the plain spelling of a control token is not the token
        (("x" * 5000 + "Think hard" + "x" * 5000,), True),
    ],
)
def test_a_text_is_found_in_the_bytes_of_the_whole_prompt(said: tuple[str | bytes, ...], thinks: bool) -> None:
    for program in (asking(SAYS), pickle.loads(pickle.dumps(asking(SAYS)))):
        assert (kinds(program, *said) == ActionKind.FORCE) == thinks


def test_only_a_turn_that_has_not_begun_is_asked_about() -> None:
    program, encode = asking(SAYS), asking(SAYS).vocabulary.encode
    head = encode("<|im_start|>system\nThink hard<|im_end|><|im_start|>assistant\n")
    assert program.start([*head, *encode("<think>\n\n</think>\n\n")]).phase == Phase.ANSWERING
    assert program.start([*head, *encode("<think>")]).phase == Phase.THINKING
    assert program.start([*head, *encode("Sure")]).phase == Phase.ANSWERING
    begun = program.start([*head, *encode(" \n")])
    assert begun.phase == Phase.BEFORE
    assert begun.decide().kind == ActionKind.FORCE
    strayed = begun.copy()
    program.advance(strayed, PIECES.index(b" "))  # another processor insisted: the start is forced again
    assert strayed.decide().kind == ActionKind.FORCE


def test_room_is_asked_for_what_is_forced_alone() -> None:
    program = asking(SAYS)
    assert kinds(program, "Be kind.", max_tokens=1) != ActionKind.FORCE
    with pytest.raises(InputError, match="max_tokens=3 is too small"):
        kinds(program, "Think hard", max_tokens=3)


def test_what_happened_is_told_by_the_same_rule() -> None:
    program, encode = asking(SAYS), asking(SAYS).vocabulary.encode
    ends = encode("<|im_end|><|im_start|>assistant\n")
    off, on = ([*encode(f"<|im_start|>system\n{said}"), *ends] for said in ("Be kind.", "Think hard"))
    answer = encode("It is 42.<eos>")
    assert program.explain(off, answer).violations == ()
    thought = program.explain(on, encode("<think>\nSo.\n</think>\n\nIt is 42.<eos>"))
    assert thought.forced[0] == 0
    chosen = program.explain(off, encode("<think>\nSo.\n</think>\n\nIt is 42.<eos>"))
    assert chosen.forced == ()
    assert chosen.reasoning == thought.reasoning
