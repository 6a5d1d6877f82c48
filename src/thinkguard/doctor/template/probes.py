"""The conversations that a chat template is given, with sentinels, words of our own, in place of what people say.

What becomes of a sentinel becomes of the question, the reasoning or the answer that it stands for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from thinkguard.doctor.template.sandbox import Job
from thinkguard.formats import ThinkFormat
from thinkguard.formats.renders import SWITCHES, label_of

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
    return label_of(switch)


def inline(format: ThinkFormat, n: int, words: str) -> str:
    """Return content that holds the n-th reasoning in the family's own markers, with `words` behind it."""
    return f"{format.open_text}{thought(n)}{format.close_text}{words}"


def user(n: int, behind: str = "") -> dict[str, Any]:
    """The n-th question."""
    return {"role": "user", "content": question(n) + behind}


def turn(format: ThinkFormat, form: str, n: int, behind: str = "", words: str | None = None) -> dict[str, Any]:
    """Return the n-th assistant turn, its reasoning handed over in `form`; "plain" has no reasoning."""
    words = answer(n) + behind if words is None else words
    content: Any = words
    fields: dict[str, Any] = {}
    if form == "content":
        content = inline(format, n, words)
    elif form == "text part":
        content = [{"type": "text", "text": inline(format, n, words)}]
    elif form in PARTS:
        reasoning: Any = thought(n) if form == "thinking part" else [{"type": "text", "text": thought(n)}]
        content = [{"type": "thinking", "thinking": reasoning}, {"type": "text", "text": words}]
    elif form in FIELDS:
        fields[form] = thought(n)
    return {"role": "assistant", "content": content, **fields}


def call(arguments: str) -> list[dict[str, Any]]:
    """Return a tool call whose arguments come as "dict" or as "text"."""
    values: Any = {"key": CALLED}
    function = {"name": "look_up", "arguments": values if arguments == "dict" else json.dumps(values)}
    return [{"id": "call00000", "type": "function", "function": function}]


def result() -> dict[str, Any]:
    """What the tool answers."""
    return {"role": "tool", "tool_call_id": "call00000", "name": "look_up", "content": RESULT}


def probes(format: ThinkFormat, tokens: Mapping[str, Any]) -> dict[str, Job]:
    """Return every conversation by name. All get the variables `tokens`, such as `bos_token`."""
    return {
        name: Job(messages, prompt, {**tokens, **switch})
        for part in (_prompts, _finals, _histories, _odd_turns, _tool_turns, _literals)
        for name, messages, prompt, switch in part(format)
    }


_Probes = Iterator[tuple[str, list[dict[str, Any]], bool, Mapping[str, Any]]]


def _prompts(format: ThinkFormat) -> _Probes:
    for switch in (*SWITCHES, *HISTORY_SWITCHES):
        yield f"prompt/{label(switch)}", [user(1)], True, switch


def _finals(format: ThinkFormat) -> _Probes:
    for switch in SWITCHES:
        on = label(switch) in ON
        for form in ("plain", *(FORMS if on else ())):
            yield f"final/{form}/{label(switch)}", [user(1), turn(format, form, 1)], False, switch
    for field in FIELDS:
        message = {**turn(format, "content", 1), field: thought(1)}
        yield f"both/{field}", [user(1), message], False, {}


def _histories(format: ThinkFormat) -> _Probes:
    for form in ("plain", *FORMS):
        chat = [user(1), turn(format, form, 1), user(2)]
        yield f"earlier/{form}", [*chat, turn(format, form, 2)], False, {}
        yield f"history/{form}", chat, True, {}
        for switch in HISTORY_SWITCHES if form in ("content", *FIELDS) else ():
            yield f"earlier/{form}/{label(switch)}", [*chat, turn(format, form, 2)], False, switch


def _odd_turns(format: ThinkFormat) -> _Probes:
    message = {"role": "assistant", "content": format.open_text + thought(1)}
    yield "half-open", [user(1), message], False, {}
    yield "prefill", [user(1), {**message, "content": message["content"] + CUT}], False, {}
    parts = {"role": "user", "content": [{"type": "text", "text": question(1)}]}
    yield "user parts", [parts, turn(format, "plain", 1)], False, {}
    yield "parts", [user(1), {"role": "assistant", "content": [{"type": "text", "text": answer(1)}]}], False, {}


def _tool_turns(format: ThinkFormat) -> _Probes:
    tools = {"tools": TOOLS}
    for arguments in ("dict", "text"):
        calls = call(arguments)
        for kind, fields in (("empty", {"content": ""}), ("none", {"content": None}), ("absent", {})):
            message = {"role": "assistant", **fields, "tool_calls": calls}
            yield f"call/{kind}/{arguments}", [user(1), message, result()], False, tools
        for form in FORMS:
            message = {**turn(format, form, 1, words=""), "tool_calls": calls}
            yield f"tool/{form}/{arguments}", [user(1), message], False, tools
            chat = [user(1), message, result(), turn(format, form, 2)]
            yield f"tool loop/{form}/{arguments}", chat, False, tools


def _literals(format: ThinkFormat) -> _Probes:
    for kind, marker in (("end", format.ends[0]), ("start", format.starts[0])):
        quoted = f" {marker} {TAIL}"
        for form in ("plain", "content", *FIELDS):
            yield f"literal/{kind}/{form}", [user(1), turn(format, form, 1, quoted)], False, {}
        chat = [user(1, quoted), turn(format, "plain", 1)]
        yield f"literal/{kind}/user", chat, False, {}
