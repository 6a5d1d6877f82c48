"""The judge of training records: what is wrong with one, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from thinkguard.doctor.judges.marker_forms import Markers as Markers
from thinkguard.doctor.judges.marker_forms import difference
from thinkguard.doctor.judges.structure import Reading, exact_events, form_fits, form_name, form_of, plain, read_turn, show
from thinkguard.doctor.records import record as facts
from thinkguard.doctor.records.record import Hit, Record, Turn

EMPTY: Final = "records with an empty block"
SWITCHED_OFF: Final = "records that switch thinking off"
LEADING_TEXT: Final = "records with text before the block"
_SHOWN: Final = 60  # characters of a text that is shown as a whole


@dataclass(slots=True)
class Judged:
    """What one record holds, and what is wrong with it."""

    hits: list[Hit]
    facts: list[str]
    reasoning: str = ""  # of the last assistant turn
    answer: str = ""
    forms: tuple[str, ...] = ()  # white space around the markers, one per block


def judge(record: Record, markers: Markers) -> list[Hit]:
    """Say what is wrong with one training record."""
    return look(record, markers).hits


def look(record: Record, markers: Markers) -> Judged:
    """Judge one record, and say what it holds."""
    judged = Judged([], [])
    turns = record.turns
    assistant_turns = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    if not assistant_turns:
        judged.hits.append(Hit("content-type", "no assistant turn", "roles: " + ", ".join(turn.role for turn in turns[:9])))
        return judged
    held, empty = False, False
    paired = not isinstance(record.raw.get("chosen", 0), (int, float))  # a preference pair needs no answer
    for index in assistant_turns:
        turn = turns[index]
        prompt = turns[index - 1].content if index else ""
        opened = markers.prompt_opens or prompt.rstrip().endswith(markers.start)
        reading = read_turn(turn.content, markers, opened) if turn.content else Reading()
        inside = _judge_turn(turn, reading, markers, judged)
        if not paired and (index + 1 == len(turns) or turns[index + 1].role not in ("assistant", "tool")):
            _judge_answer(turn, reading, judged)
            if index:  # a text that was not parted into turns may hold its question
                _judge_lead(turn, reading, markers, judged)
        held = held or inside
        empty = empty or (not inside and reading.block is not None)
        if inside and index != assistant_turns[-1]:
            judged.facts.append(facts.EARLIER_REASONING)
        if index == assistant_turns[-1]:
            _split(turn, reading, judged)
    _judge_others(turns, markers, judged)
    _judge_record(record, turns[assistant_turns[-1]], held, empty, judged)
    return judged


def split(record: Record, markers: Markers) -> Judged:
    """Part the last assistant turn into reasoning and answer, without judging the record."""
    judged = Judged([], [])
    last = next((turn for turn in reversed(record.turns) if turn.role == "assistant"), None)
    if last is not None:
        opened = markers.prompt_opens or record.prompt[-_SHOWN:].rstrip().endswith(markers.start)
        _split(last, read_turn(last.content, markers, opened), judged)
    return judged


def _judge_turn(turn: Turn, reading: Reading, markers: Markers, judged: Judged) -> bool:
    """Judge one assistant turn; returns whether it holds reasoning."""
    content, hits = turn.content, judged.hits
    inline = reading.block is not None and bool(content[reading.block[1] : reading.block[2]].strip())
    where_inline = facts.INLINE
    for event in reading.foreign[:1]:
        check, kind = difference(content[event.start : event.end], event.group)
        hits.append(Hit(check, kind, show(content, event.start, event.end)))
        where_inline = facts.MISSPELLED + check
    if reading.broken:
        hits.append(Hit(reading.broken, reading.kind, show(content, *reading.spot)))
        if reading.broken == "half-open" and not reading.foreign:
            judged.facts.append(facts.HALF_OPEN)
    elif inline and reading.block is not None and not reading.foreign:
        form = form_of(content, reading.block, markers)
        judged.forms += (form_name(form, markers),)
        if not form_fits(form, markers):
            start, body, close, after = reading.block
            excerpt = f"{content[start : body + 20]} … {content[max(body, close - 20) : after + 20]}"
            hits.append(Hit("white-space", judged.forms[-1], plain(excerpt)))
    for event in reading.quoted[:1]:
        where = "in the reasoning" if reading.block and event.start < reading.block[2] else "in an answer"
        hits.append(Hit("literal-in-data", where, show(content, event.start, event.end)))
        judged.facts.append(facts.LITERAL)
    field = turn.reasoning is not None and bool(turn.reasoning.strip())
    if field:
        judged.facts.append(facts.IN_FIELD + turn.place)
        if inline and turn.read:
            hits.append(Hit("reasoning-twice", f"inline and in {turn.place}", show(content, *_span(reading))))
        elif not inline and not turn.read:
            hits.append(Hit("field-unread", f"in {turn.place}", f"{turn.place}: {show(turn.reasoning or '', 0, _SHOWN)}"))
    if inline:
        judged.facts.append(where_inline)
        if reading.block is not None and reading.block[0] and content[: reading.block[0]].strip():
            judged.facts.append(LEADING_TEXT)
    if turn.calls and (inline or field):
        judged.facts.append(facts.TOOL_REASONING)
    if turn.calls_beside and inline and markers.replaces_tool_turns:
        hits.append(Hit("tool-turn-data", "the content of a turn with tool calls", show(content, *_span(reading))))
    if turn.shape != "text":
        kind, fact = ("a list of parts", facts.PARTS) if turn.shape == "parts" else ("null", facts.NO_CONTENT)
        judged.facts.append(fact)
        if turn.shape == "none" and not turn.calls:
            kind = "null, and no tool call" if not field else "null, and only reasoning"
        hits.append(Hit("content-type", kind, f"assistant: {kind}, {turn.calls} tool calls"))
    return inline or field or bool(reading.broken)


def _judge_answer(turn: Turn, reading: Reading, judged: Judged) -> None:
    """Add a hit if a turn that nothing continues has no answer; a broken turn is left to the check of its fault."""
    content = turn.content
    if turn.calls or reading.broken:
        return
    if reading.block is not None:
        if not content[reading.block[3] :].strip():
            judged.hits.append(Hit("no-answer", "nothing behind the reasoning", show(content, *reading.block[2:])))
    elif not content.strip():
        if turn.reasoning and turn.reasoning.strip():
            excerpt = f"{turn.place}: {show(turn.reasoning, 0, _SHOWN)}"
            judged.hits.append(Hit("no-answer", "nothing behind the reasoning", excerpt))
        elif turn.shape != "none":  # null is a type, and has its own check
            judged.hits.append(Hit("no-answer", "no text at all", "assistant: " + repr(content[:_SHOWN])))


def _judge_lead(turn: Turn, reading: Reading, markers: Markers, judged: Judged) -> None:
    """Add a hit if a turn speaks before it thinks; a turn that calls a tool may do so."""
    if turn.calls or reading.broken or reading.block is None or not reading.block[0]:
        return
    lead = turn.content[: reading.block[0]].lstrip()
    if lead and lead.rstrip() not in markers.format.assistant_headers:  # left of a turn that was saved as rendered
        excerpt = show(turn.content, reading.block[0] - len(lead), reading.block[0])
        judged.hits.append(Hit("leading-text", "text before the block", excerpt))


def _span(reading: Reading) -> tuple[int, int]:
    return (reading.block[0], reading.block[1]) if reading.block else (0, 0)


def _split(turn: Turn, reading: Reading, judged: Judged) -> None:
    if reading.block is not None:
        judged.reasoning = turn.content[reading.block[1] : reading.block[2]]
        judged.answer = turn.content[reading.block[3] :]
    else:
        judged.reasoning, judged.answer = turn.reasoning or "", turn.content
    if turn.reasoning and turn.read and not judged.reasoning:
        judged.reasoning = turn.reasoning


def _judge_others(turns: list[Turn], markers: Markers, judged: Judged) -> None:
    """Judge the turns that the model does not write."""
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            continue
        content = turn.content
        if turn.shape == "parts":
            judged.facts.append(facts.PARTS)
        for mark in markers.marks:
            if mark in content:
                break
        else:
            continue
        events = exact_events(content, markers)
        event = events[0]
        follows = index + 1 < len(turns) and turns[index + 1].role == "assistant"
        if follows and event.end == len(content.rstrip()) and not turns[index + 1].content.startswith(markers.start):
            continue  # the prompt opens the block
        judged.hits.append(Hit("literal-in-data", f"in a {turn.role} turn", show(content, event.start, event.end)))
        if turn.role != "system":
            judged.facts.append(facts.LITERAL)


def _judge_record(record: Record, last: Turn, held: bool, empty: bool, judged: Judged) -> None:
    judged.facts.append(facts.WITH_REASONING if held else facts.WITHOUT_REASONING)
    if record.thinks is False:
        judged.facts.append(SWITCHED_OFF)
        if held:
            excerpt = f"{record.switch}: {show(judged.reasoning or last.content, 0, _SHOWN)}"
            judged.hits.append(Hit("mode-contradicts", "off, and there is reasoning", excerpt))
    elif empty and not held:
        judged.facts.append(EMPTY)
        judged.hits.append(Hit("empty-reasoning", "a block with nothing in it", show(last.content, 0, _SHOWN)))
    elif record.thinks and not held:
        excerpt = f"{record.switch}: {show(last.content, 0, _SHOWN)}"
        judged.hits.append(Hit("mode-contradicts", "on, and there is none", excerpt))
    elif not held and (last.content.strip() or last.calls):  # nothing at all is another check's
        judged.hits.append(Hit("no-reasoning", "no reasoning anywhere", plain(last.content[:_SHOWN])))
