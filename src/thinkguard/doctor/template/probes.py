"""The conversations that a chat template is given, with words of our own in place of what people say.

What becomes of a word is what becomes of the reasoning, answer or question in its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from thinkguard.doctor.template.sandbox import Job
from thinkguard.formats import ThinkFormat
from thinkguard.formats.renders import SWITCHES

FIELDS: Final = ("reasoning_content", "reasoning", "thinking")
"""Message fields that reasoning is handed over in, beside the content."""
PARTS: Final = ("thinking part", "thinking list part")
"""Parts of a content that is a list: {"type": "thinking", "thinking": text}, and Mistral's with a list inside."""
FORMS: Final = ("content", *FIELDS, *PARTS, "text part")
"""Every way in which a turn's reasoning is handed over; in "content" and "text part" it stands inline, in its markers."""
ON: Final = ("by default", "enable_thinking=True", "thinking=True", "thinking_mode=enabled", "reasoning_effort=high")
HISTORY_SWITCHES: Final[tuple[dict[str, Any], ...]] = (
    {"preserve_thinking": True},
    {"preserved_thinking": True},
    {"clear_thinking": False},
    {"drop_thinking": False},
    {"keep_past_thinking": True},
    {"truncate_history_thinking": False},
)
"""What is passed to a template to keep the reasoning of earlier turns."""
TAIL: Final = "Tai1"
"""Stands behind a marker that is only quoted."""
CUT: Final = "Cu7"
"""Stands at the end of a turn that is to be continued; what is in front of it is the prompt."""
RESULT: Final = "Re5ult"
"""What a tool answered."""
CALLED: Final = "Va1ue"
"""What a tool is called with."""
TOOLS: Final[list[dict[str, Any]]] = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Look a thing up.",
            "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "which"}}},
        },
    }
]


def question(n: int) -> str:
    """The n-th user's words."""
    return f"Qu3ry{n}"


def thought(n: int) -> str:
    """The reasoning of the n-th assistant turn."""
    return f"Reas0n{n}"


def answer(n: int) -> str:
    """The answer of the n-th assistant turn."""
    return f"Answ3r{n}"


def label(switch: Mapping[str, Any]) -> str:
    """Spell a switch as `Renders.prompts` does."""
    return ", ".join(f"{name}={value}" for name, value in switch.items()) or "by default"


def inline(format: ThinkFormat, n: int, said: str) -> str:
    """Content that holds the n-th reasoning in the family's own markers, and what is said."""
    return f"{format.open_text}{thought(n)}{format.close_text}{said}"


def user(n: int, behind: str = "") -> dict[str, Any]:
    """The n-th question."""
    return {"role": "user", "content": question(n) + behind}


def turn(format: ThinkFormat, form: str, n: int, behind: str = "", said: str | None = None) -> dict[str, Any]:
    """The n-th assistant turn, its reasoning handed over in `form`; "plain" is without reasoning."""
    said = answer(n) + behind if said is None else said
    content: Any = said
    fields: dict[str, Any] = {}
    if form == "content":
        content = inline(format, n, said)
    elif form == "text part":
        content = [{"type": "text", "text": inline(format, n, said)}]
    elif form in PARTS:
        reasoning: Any = thought(n) if form == "thinking part" else [{"type": "text", "text": thought(n)}]
        content = [{"type": "thinking", "thinking": reasoning}, {"type": "text", "text": said}]
    elif form in FIELDS:
        fields[form] = thought(n)
    return {"role": "assistant", "content": content, **fields}


def call(arguments: str) -> list[dict[str, Any]]:
    """A tool call whose arguments come as "dict" or as "text"."""
    given: Any = {"key": CALLED}
    function = {"name": "look_up", "arguments": given if arguments == "dict" else json.dumps(given)}
    return [{"id": "call00000", "type": "function", "function": function}]


def result() -> dict[str, Any]:
    """What the tool answers."""
    return {"role": "tool", "tool_call_id": "call00000", "name": "look_up", "content": RESULT}


def probes(format: ThinkFormat, tokens: Mapping[str, Any]) -> dict[str, Job]:
    """Every conversation by name; `tokens` are variables that each is given, such as `bos_token`."""
    return {
        name: Job(messages, prompt, {**tokens, **switch})
        for part in (_prompts, _finals, _histories, _odd_turns, _tool_turns, _literals)
        for name, messages, prompt, switch in part(format)
    }


_Made = Iterator[tuple[str, list[dict[str, Any]], bool, Mapping[str, Any]]]


def _prompts(format: ThinkFormat) -> _Made:
    for switch in (*SWITCHES, *HISTORY_SWITCHES):
        yield f"prompt/{label(switch)}", [user(1)], True, switch


def _finals(format: ThinkFormat) -> _Made:
    for switch in SWITCHES:
        on = label(switch) in ON
        for form in ("plain", *(FORMS if on else ())):
            yield f"final/{form}/{label(switch)}", [user(1), turn(format, form, 1)], False, switch
    for field in FIELDS:
        both = {**turn(format, "content", 1), field: thought(1)}
        yield f"both/{field}", [user(1), both], False, {}


def _histories(format: ThinkFormat) -> _Made:
    for form in ("plain", *FORMS):
        two = [user(1), turn(format, form, 1), user(2)]
        yield f"earlier/{form}", [*two, turn(format, form, 2)], False, {}
        yield f"history/{form}", two, True, {}
        for switch in HISTORY_SWITCHES if form in ("content", *FIELDS) else ():
            yield f"earlier/{form}/{label(switch)}", [*two, turn(format, form, 2)], False, switch


def _odd_turns(format: ThinkFormat) -> _Made:
    opened = {"role": "assistant", "content": format.open_text + thought(1)}
    yield "half-open", [user(1), opened], False, {}
    yield "prefill", [user(1), {**opened, "content": opened["content"] + CUT}], False, {}
    parts = {"role": "user", "content": [{"type": "text", "text": question(1)}]}
    yield "user parts", [parts, turn(format, "plain", 1)], False, {}
    yield "parts", [user(1), {"role": "assistant", "content": [{"type": "text", "text": answer(1)}]}], False, {}


def _tool_turns(format: ThinkFormat) -> _Made:
    tools = {"tools": TOOLS}
    for arguments in ("dict", "text"):
        calls = call(arguments)
        for kind, fields in (("empty", {"content": ""}), ("none", {"content": None}), ("absent", {})):
            called = {"role": "assistant", **fields, "tool_calls": calls}
            yield f"call/{kind}/{arguments}", [user(1), called, result()], False, tools
        for form in FORMS:
            called = {**turn(format, form, 1, said=""), "tool_calls": calls}
            yield f"tool/{form}/{arguments}", [user(1), called], False, tools
            whole = [user(1), called, result(), turn(format, form, 2)]
            yield f"tool loop/{form}/{arguments}", whole, False, tools


def _literals(format: ThinkFormat) -> _Made:
    for kind, marker in (("end", format.ends[0]), ("start", format.starts[0])):
        quoted = f" {marker} {TAIL}"
        for form in ("plain", "content", *FIELDS):
            yield f"literal/{kind}/{form}", [user(1), turn(format, form, 1, quoted)], False, {}
        asked = [user(1, quoted), turn(format, "plain", 1)]
        yield f"literal/{kind}/user", asked, False, {}
