"""Lists of messages as turns: `role`/`content`, `from`/`value`, question and answer pairs, and plain lists of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from thinkguard.doctor.records.record import Turn
from thinkguard.doctor.records.turns import (
    CALLS,
    REASONING_ROLES,
    ROLES,
    THOUGHTS,
    Reads,
    ShapeError,
    add_reasoning,
    turn_of,
)

_ROLE_KEYS: Final = ("role", "from", "speaker", "author")
_CONTENT_KEYS: Final = ("content", "value", "text", "message")
_QUESTION_KEYS: Final = ("user", "human", "prompt", "question", "instruction")
_ANSWER_KEYS: Final = ("assistant", "gpt", "bot", "response", "answer", "chatbot", "output")


def turns_of(messages: Any, reads: Reads) -> list[Turn]:
    """Read a list of messages. ShapeError says which message cannot be read, and why."""
    if isinstance(messages, str):
        messages = _parsed(messages)
    if not isinstance(messages, Sequence) or not messages:
        raise ShapeError("the list of messages is empty" if messages == [] else f"no list of messages: {messages!r:.40}")
    first = messages[0]
    if not isinstance(first, Mapping):
        return _of_texts(messages)
    role_key, content_key = _keys_of(first)
    if not role_key:
        return _of_pairs(messages, reads)
    turns: list[Turn] = []
    thought: Turn | None = None  # a message of its own that the next assistant turn belongs to
    for number, message in enumerate(messages, 1):
        try:
            name = message.get(role_key)
            role = ROLES.get(name)
            content = message.get(content_key)
            if role is not None:
                turn = turn_of(message, role, content, reads)
            else:
                turn = _unusual(message, name, content, reads)
                if turn.place == "role reasoning":
                    if thought is not None:
                        turn.reasoning = f"{thought.reasoning}\n{turn.reasoning}"
                    thought = turn
                    continue
        except (ShapeError, AttributeError, TypeError) as error:
            why = error if isinstance(error, ShapeError) else f"it is {message!r:.40}: wanted is an object"
            raise ShapeError(f"message {number}: {why}") from None
        if thought is not None:
            if turn.role == "assistant" and turn.reasoning is None:
                turn.reasoning, turn.place, turn.read = thought.reasoning, thought.place, thought.read
            else:
                turns.append(thought)
            thought = None
        turns.append(turn)
    if thought is not None:
        turns.append(thought)
    return turns


def _unusual(message: Mapping[str, Any], name: Any, content: Any, reads: Reads) -> Turn:
    """Read a message whose role is a call, reasoning, or a known role with capitals or blanks."""
    plain = name.strip().lower() if isinstance(name, str) else ""
    if plain in CALLS:
        turn = turn_of(message, "assistant", content, reads)
        turn.calls = max(turn.calls, 1)
        return turn
    if plain in REASONING_ROLES:
        turn = turn_of({}, "assistant", content, reads)
        text = turn.reasoning or turn.content
        return Turn("assistant", "", text, "role reasoning", reads is None or "role reasoning" in reads, "none")
    if plain not in ROLES:
        raise ShapeError(f"its role is {name!r:.40}: known are user, assistant, system, tool and what they are also called")
    return turn_of(message, ROLES[plain], content, reads)


def _keys_of(message: Mapping[str, Any]) -> tuple[str, str]:
    """Return the keys of role and content, the first empty if there is no role."""
    for role_key in _ROLE_KEYS:
        if isinstance(message.get(role_key), str):
            break
    else:
        return "", ""
    for content_key in _CONTENT_KEYS:
        if content_key in message:
            return role_key, content_key
    return role_key, "value" if role_key == "from" else "content"


def _of_pairs(messages: Sequence[Any], reads: Reads) -> list[Turn]:
    """Read turns that hold question and answer both: {"user": ..., "inner_thought": ..., "assistant": ...}."""
    turns: list[Turn] = []
    for number, pair in enumerate(messages, 1):
        known = [key for key in (*_QUESTION_KEYS, *_ANSWER_KEYS, "system") if isinstance(pair, Mapping) and key in pair]
        if not known:
            keys = ", ".join(map(str, list(pair)[:9])) if isinstance(pair, Mapping) else f"{pair!r:.40}"
            raise ShapeError(f"message {number} has neither a role nor a question and an answer; it has {keys}")
        for key in sorted(known, key=lambda key: (key in _ANSWER_KEYS, key != "system")):
            if pair[key] is None:
                continue
            if key not in _ANSWER_KEYS:
                turns.append(turn_of({}, "system" if key == "system" else "user", pair[key], reads))
                continue
            turn = turn_of({}, "assistant", pair[key], reads)
            add_reasoning(turn, pair, tuple(name for name in THOUGHTS if name not in known))
            turn.read = reads is None or turn.reasoning is None or turn.place in reads
            turns.append(turn)
    if not turns:
        raise ShapeError("the messages are all null")
    return turns


def _of_texts(messages: Sequence[Any]) -> list[Turn]:
    """Read a list of texts, or of pairs of texts, that alternate between user and assistant."""
    texts: list[Any] = []
    for item in messages:
        texts += item if isinstance(item, (list, tuple)) else [item]
    if not texts or not all(isinstance(text, str) for text in texts):
        wrong = next((text for text in texts if not isinstance(text, str)), messages)
        raise ShapeError(f"no messages but {wrong!r:.40}: wanted are objects with role and content, or texts in turn")
    return [Turn("assistant" if index % 2 else "user", text) for index, text in enumerate(texts)]


def _parsed(text: str) -> Any:
    """Parse messages that were saved as a string of JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ShapeError(f"no list of messages but a text: {text!r:.40}") from None
