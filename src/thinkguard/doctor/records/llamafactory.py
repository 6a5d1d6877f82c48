"""A record as LLaMA-Factory's converters read it, by its entry in dataset_info.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from thinkguard.doctor.records.column_shapes import Names, answer_turn, names_of
from thinkguard.doctor.records.conversations import turns_of
from thinkguard.doctor.records.dataset_info import Columns
from thinkguard.doctor.records.record import Role, Turn
from thinkguard.doctor.records.turns import Reads, ShapeError, num_calls, turn_of

OFF: Final = "detailed thinking off"
ADDED: Final = f"{OFF} (LLaMA-Factory's openai converter adds it to the system text of records without tools)"
_SWITCHES: Final = ("detailed thinking on", OFF)


def llamafactory_turns(value: Mapping[str, Any], columns: Columns, reads: Reads) -> list[Turn]:
    """Read the columns that the entry names. ShapeError if one is not there, or if LLaMA-Factory leaves the record out."""
    if columns.formatting == "alpaca":
        return _alpaca(value, columns, reads)
    messages = _column(value, columns, "messages")
    if not isinstance(messages, list) or not messages:
        raise ShapeError(f"column {columns.messages!r} holds no list of messages: {messages!r:.40}")
    turns = [_turn(message, number, columns, reads) for number, message in enumerate(messages, 1)]
    if columns.system and turns[0].role != "system" and isinstance(value.get(columns.system), str):
        turns.insert(0, Turn("system", value[columns.system]))
    answered = columns.ranking and columns.chosen and isinstance(value.get(columns.chosen), Mapping)
    if answered:
        turns.append(_turn(value[columns.chosen or ""], len(turns) + 1, columns, reads))
    if why := skipped(turns, merges=columns.formatting == "openai"):
        raise ShapeError(why)
    return turns


def switched_off(value: Mapping[str, Any], columns: Columns, turns: Sequence[Turn]) -> bool:
    """Whether the openai converter writes "detailed thinking off" into this record: it has neither tools nor a switch."""
    if columns.formatting != "openai" or (columns.tools and value.get(columns.tools)):
        return False
    system = next((turn.content for turn in turns[:1] if turn.role == "system"), "")
    return not any(text in system for text in _SWITCHES)


def skipped(turns: Sequence[Turn], *, merges: bool) -> str:
    """Return why LLaMA-Factory leaves a conversation out, which it only warns of; "" if it reads it.

    User and assistant have to take turns, the user first and the assistant last; tools count as the user, and the openai
    converter merges several tool results in a row.
    """
    due, before = "user", ""
    number = 0
    for number, turn in enumerate(turns, 1):
        if number == 1 and turn.role == "system":
            continue
        if merges and turn.role == before == "tool":
            continue
        side = "user" if turn.role in ("user", "tool") else turn.role
        if side != due:
            return f"LLaMA-Factory leaves this record out: message {number} is of role {turn.role}, where {due} is due"
        due, before = ("assistant" if due == "user" else "user"), turn.role
    if due == "assistant":
        return f"LLaMA-Factory leaves this record out: it ends with message {number}, which has no answer"
    return ""


def _turn(message: Any, number: int, columns: Columns, reads: Reads) -> Turn:
    roles: dict[str, Role] = {
        columns.user_tag: "user",
        columns.assistant_tag: "assistant",
        columns.observation_tag: "tool",
        columns.function_tag: "assistant",
        columns.system_tag: "system",
    }
    if not isinstance(message, Mapping):
        raise ShapeError(f"message {number} is {message!r:.40}: wanted is an object")
    name = message.get(columns.role_tag)
    role = roles.get(name) if isinstance(name, str) else None
    if role is None:
        raise ShapeError(
            f"message {number} has {columns.role_tag} {name!r:.40}: dataset_info.json wants {', '.join(map(repr, roles))}; "
            "name the data's own in its tags"
        )
    called = columns.formatting == "openai" and num_calls(message)  # `datasets` gives such a message a content of null
    if columns.content_tag not in message and not called:
        keys = ", ".join(map(str, list(message)[:9]))
        raise ShapeError(
            f"message {number} has no {columns.content_tag!r}, but {keys}; name its key in tags of dataset_info.json"
        )
    turn = turn_of(message, role, message.get(columns.content_tag), reads)
    if columns.formatting != "openai":
        turn.calls_beside = False  # the sharegpt converter reads the content alone
    if name == columns.function_tag and not num_calls(message):
        turn.calls = 1
    return turn


def _alpaca(value: Mapping[str, Any], columns: Columns, reads: Reads) -> list[Turn]:
    turns: list[Turn] = []
    if columns.system and value.get(columns.system):
        turns.append(turn_of({}, "system", value[columns.system], reads))
    history = value.get(columns.history) if columns.history else None
    if isinstance(history, list) and history:
        turns += turns_of(history, reads)
    questions = [_column(value, columns, name) for name in ("prompt", "query") if getattr(columns, name)]
    turns.append(Turn("user", "\n".join(text for text in questions if isinstance(text, str) and text)))
    answer_column = columns.chosen if columns.ranking and columns.chosen else columns.response
    if answer_column:
        answer = _column(value, columns, "chosen" if answer_column == columns.chosen else "response")
        names = names_of(tuple(value))
        beside = Names("", "", "", tuple(pair for pair in names.pairs if pair[1] == answer_column), "")
        found = answer_turn(value, beside, reads) if isinstance(answer, str) else None
        turns += found[0] if found else [turn_of({}, "assistant", answer, reads)]
    return turns


def _column(value: Mapping[str, Any], columns: Columns, name: str) -> Any:
    column = getattr(columns, name)
    if column not in value:
        keys = ", ".join(map(str, list(value)[:12]))
        raise ShapeError(
            f"dataset_info.json takes {name!r} of {columns.name!r} from column {column!r}, the record has {keys}"
        )
    return value[column]
