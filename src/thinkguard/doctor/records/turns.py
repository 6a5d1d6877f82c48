"""One message, in any of the spellings that chat data and API logs use, as a Turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from thinkguard.doctor.records.record import Role, Turn

Reads = frozenset[str] | None
"""The places that a trainer reads; None: no trainer is named, so every place counts as read."""

THOUGHTS: Final = (
    *("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "think", "cot", "analysis", "inner_thought"),
    *("think_content", "reasoning_text", "reasoning_details", "thinking_blocks", "thinking_content"),
)
"""Keys of a message that hold reasoning, beside its content."""

ROLES: Final[dict[str, Role]] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "question", "instruction", "prompt"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot", "ai", "chatgpt", "answer", "response"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_output", "environment"), "tool"),
    **dict.fromkeys(("tool_response", "tool_result", "function_response", "tool_results", "function_output"), "tool"),
}
CALLS: Final = frozenset(("function_call", "tool_call", "tool_calls"))
"""Roles of a turn that is nothing but a call."""
REASONING_ROLES: Final = frozenset(("reasoning", "thinking", "thought", "think", "analysis"))

_TEXT_KEYS: Final = ("text", "content", "value")
_TOOL_PARTS: Final = frozenset(("tool_use", "tool_call", "function_call", "server_tool_use"))


class ShapeError(Exception):
    """A record that cannot be read; the text says why."""


def turn_of(message: Mapping[str, Any], role: Role, content: Any, reads: Reads) -> Turn:
    """Make a turn of a message whose role and content were found. ShapeError for content of no known kind."""
    if type(content) is str:
        turn = Turn(role, content)
    elif content is None:
        turn = Turn(role, "", shape="none")
    elif isinstance(content, (list, tuple)):
        turn = _from_parts(content, role)
    elif isinstance(content, Mapping):
        turn = _from_parts((content,), role)
    else:
        raise ShapeError(f"the content of a {role} message is {content!r:.40}: wanted is a string, a list of parts or null")
    if role == "assistant" and (content is None or len(message) > 2):
        if turn.reasoning is None:
            add_reasoning(turn, message)
        turn.calls += num_calls(message)
        turn.calls_beside = bool(message.get("tool_calls"))
    if turn.reasoning is not None and reads is not None:
        turn.read = turn.place in reads
    return turn


def add_reasoning(turn: Turn, message: Mapping[str, Any], keys: tuple[str, ...] = THOUGHTS) -> None:
    """Take reasoning from a key beside the content, if one holds any that the content does not hold already."""
    for key in keys:
        if key in message and (text := text_of(message[key])):
            turn.reasoning, turn.place = text, key
            return
    info = message.get("info")
    if isinstance(info, Mapping) and (text := text_of(info.get("think_content"))) and text.strip()[:200] not in turn.content:
        turn.reasoning, turn.place = text, "info.think_content"


def text_of(value: Any) -> str:
    """Return the text of a string, of a part, or of a list of either; "" for anything else."""
    if type(value) is str:
        return value
    if isinstance(value, Mapping):
        kind = value.get("type")
        for key in (kind, "thinking", "reasoning", *_TEXT_KEYS, "summary"):
            if isinstance(key, str) and (inner := value.get(key)):
                return inner if isinstance(inner, str) else _joined(inner)
        return ""
    return _joined(value)


def _joined(value: Any) -> str:
    if not isinstance(value, (list, tuple)):
        return ""
    texts = (part if isinstance(part, str) else _shallow(part) for part in value)
    return "".join(text for text in texts if text)


def _shallow(part: Any) -> str:
    if not isinstance(part, Mapping):
        return ""
    for key in ("text", "thinking", "reasoning", "content", "value", "summary"):
        if isinstance(text := part.get(key), str) and text:
            return text
    return ""


def num_calls(message: Mapping[str, Any]) -> int:
    """Count the tool calls that stand beside the content."""
    calls = message.get("tool_calls")
    if isinstance(calls, (list, tuple)):
        return len(calls)
    return 1 if calls or message.get("function_call") else 0


def _from_parts(parts: Any, role: Role) -> Turn:
    """Join the text parts of a list, and the thinking parts beside them."""
    turn = Turn(role, "", shape="parts")
    texts: list[str] = []
    thoughts: list[str] = []
    results = 0
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise ShapeError(
                f"a content part of a {role} message is {part!r:.40}: wanted is a string or an object with a type"
            )
        kind = part.get("type")
        if kind in ("thinking", "reasoning", "reasoning_text", "thought") or part.get("thought") is True:
            thoughts.append(text_of(part))
            turn.place = "reasoning part" if kind == "reasoning" else "thinking part"
        elif kind in _TOOL_PARTS:
            turn.calls += 1
        else:
            results += kind == "tool_result"
            texts.append(text_of(part))
    if results and results == len(parts):
        turn.role = "tool"
    turn.content = "".join(texts)
    if role == "assistant" and any(thoughts):
        turn.reasoning = "".join(thoughts)
    else:
        turn.place = ""
    return turn
