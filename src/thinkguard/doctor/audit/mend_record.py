"""Make one record regular: what its texts become, and where in the record they stand."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from thinkguard.doctor.judges.marker_forms import BLANK, Markers
from thinkguard.doctor.judges.structure import Reading, form_fits, form_of, read_turn
from thinkguard.doctor.records.record import Record, Turn
from thinkguard.doctor.records.shapes import RecordReader

_PROBE: Final = "the text of this turn"
_ASSISTANT: Final = ("assistant", "gpt", "model", "bot", "chatgpt", "function_call")


@dataclass(slots=True)
class Repair:
    """A record as it should be; `value` is the original object if nothing changed."""

    value: Mapping[str, Any]
    changes: list[str] = field(default_factory=list)  # what was done, in words


@dataclass(slots=True)
class _Change:
    """What becomes of one turn."""

    content: str
    beside: str | None  # the reasoning beside the content; "" if it leaves that place
    name: str = ""  # of a field that is new
    notes: list[str] = field(default_factory=list)


def repair(
    value: Mapping[str, Any], record: Record, markers: Markers, place: str | None, reader: RecordReader
) -> Repair | str:
    """Make a record regular; a str says why that would not be safe."""
    changes: list[tuple[Turn, _Change]] = []
    for index, turn in enumerate(record.turns):
        if turn.role != "assistant":
            continue
        prompt = record.turns[index - 1].content if index else ""
        opened = markers.prompt_opens or prompt.rstrip().endswith(markers.start)
        change = _change_of(turn, markers, opened, place)
        if isinstance(change, str):
            return change
        if change.notes:
            changes.append((turn, change))
    if not changes:
        return Repair(value)
    new = copy.deepcopy(dict(value))
    found = [(turn, change, _sites(new, turn)) for turn, change in changes]
    for turn, change, sites in found:
        if not sites:
            return "its text does not stand in the record as one string"
        for holder in sites:
            keys = [key for key, text in holder.items() if isinstance(text, str) and text and text == turn.content]
            if len(keys) > 1:
                keys = [key for key in keys if _is_read(new, holder, key, reader)]
            if reason := _put(holder, keys, turn, change):
                return reason
    return Repair(new, [what for _, change in changes for what in change.notes])


def _change_of(turn: Turn, markers: Markers, opened: bool, place: str | None) -> _Change | str:
    """Return what becomes of a turn; a str says why it has to be left as it is."""
    reading = read_turn(turn.content, markers, opened)
    change = _Change(turn.content, turn.reasoning)
    reopened = reading.broken == "orphan-end"
    if reading.broken and not reopened:
        return f"{reading.broken}: {reading.kind}"
    inside = reading.block is not None and bool(turn.content[slice(*reading.block[1:3])].strip())
    beside = bool(turn.reasoning and turn.reasoning.strip())
    if reading.block is not None and (reading.foreign or reopened or inside):
        _respell(turn.content, reading, reopened, markers, change)
    if beside and reading.block is None and (place == "inline" or (place is None and not turn.read)):
        opening, closing = ("" if opened else markers.open_text), markers.close_text
        change.content = f"{opening}{(turn.reasoning or '').strip(BLANK)}{closing}{turn.content.lstrip(BLANK)}"
        change.beside = ""
        change.notes.append(f"reasoning moved from {turn.place} into the content")
    elif place not in (None, "inline", turn.place) and reading.block is not None and not beside and inside:
        block = read_turn(change.content, markers, opened).block or reading.block
        change.beside, change.name = change.content[block[1] : block[2]].strip(BLANK), place or ""
        change.content = (change.content[: block[0]] + change.content[block[3] :]).lstrip(BLANK)
        change.notes = [*change.notes, f"reasoning moved from the content into {place}"]
    return change


def _respell(content: str, reading: Reading, reopened: bool, markers: Markers, change: _Change) -> None:
    """Write a block with the family's own markers and white space."""
    if reading.block is None:
        return
    start, body, close, after = reading.block
    inside, answer = content[body:close], content[after:]
    opening, before, behind = markers.form
    has_start = body > 0 or reopened
    form = form_of(content, reading.block, markers)
    if not reading.foreign and not reopened and form_fits(form, markers):
        return
    if inside.strip():
        inside = inside.strip(BLANK) if has_start else inside.rstrip(BLANK)
        head = f"{content[:start]}{markers.start}{opening}" if has_start else ""
        change.content = f"{head}{inside}{before}{markers.end}{behind}{answer.lstrip(BLANK)}"
    else:
        change.content = f"{content[:start]}{markers.start if has_start else ''}{inside}{markers.end}{answer}"
    if reading.foreign:
        change.notes.append("markers spelled as the family spells them")
    if reopened:
        change.notes.append("a start written before reasoning that had none")
    if not change.notes:
        change.notes.append("white space around the markers")


def _sites(value: Any, turn: Turn) -> list[dict[str, Any]]:
    """Return the objects of a record that hold a turn's text; only an assistant's, if some name that role."""

    def holds(node: Mapping[str, Any]) -> bool:
        texts = [text for text in node.values() if isinstance(text, str)]
        if turn.reasoning and turn.reasoning not in texts and not turn.content:
            return False
        return (turn.content or turn.reasoning) in texts

    found = [node for node in _objects(value) if holds(node)]
    assistants = [node for node in found if any(isinstance(role, str) and role in _ASSISTANT for role in node.values())]
    return assistants or found


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    todo = [value]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo += node.values()
        elif isinstance(node, list):
            todo += node


def _is_read(value: Mapping[str, Any], holder: dict[str, Any], key: str, reader: RecordReader) -> bool:
    """Whether the reader takes a turn's content from this key: it is tried with another text there."""
    text, holder[key] = holder[key], _PROBE
    try:
        record = reader.read(value)
    finally:
        holder[key] = text
    return isinstance(record, Record) and any(turn.content == _PROBE for turn in record.turns)


def _put(holder: dict[str, Any], content_keys: list[str], turn: Turn, change: _Change) -> str:
    """Write a turn's texts back into the object that holds them; returns why that is impossible, or ""."""
    field_keys = [key for key, text in holder.items() if isinstance(text, str) and text == turn.reasoning and turn.reasoning]
    if len(field_keys) > 1:
        field_keys = [key for key in field_keys if key == turn.place.rpartition(" ")[2]]
    moved = change.beside != turn.reasoning
    if moved and turn.reasoning and not field_keys:
        return f"reasoning of {turn.place} does not stand beside its answer"
    if not content_keys:
        names = [key for key in ("content", "value", "text") if key in holder]
        if not names:
            return "the place of its content is not known"
        content_keys = [*names[:1]]
    for key in content_keys:
        holder[key] = change.content
    if moved and change.name:
        if not any(role in _ASSISTANT for role in holder.values() if isinstance(role, str)):
            return f"a field {change.name} belongs to a message, and this record has columns"
        holder[change.name] = change.beside
    elif moved:
        for key in field_keys:
            if turn.place.startswith("column"):
                holder[key] = ""
            else:
                del holder[key]
    return ""
