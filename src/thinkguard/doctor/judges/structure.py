"""Where the markers of an assistant's turn are: one block and an answer, or a fault in that structure.

Most turns are regular: a turn that begins with its start and holds one of each marker takes three searches of a plain
string. Only the others meet a regular expression. All of it is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import merge
from typing import Final, NamedTuple

from thinkguard.doctor.check import LOST
from thinkguard.doctor.judges.marker_forms import BLANK, Markers

_MAX_EVENTS: Final = 256  # markers of one turn that are looked at; a fault shows long before
_AROUND: Final = 50  # characters shown on each side of a spot
_QUOTES: Final = "`'\"“”‘’«»「」"


class Event(NamedTuple):
    """A marker in a turn."""

    start: int
    end: int
    group: str  # of Markers.alike

    @property
    def kind(self) -> str:
        """ "S" for a start, "E" for an end."""
        return self.group[-1].upper()


@dataclass(slots=True)
class Reading:
    """One assistant turn: its block, if it has one, and what is wrong with it."""

    block: tuple[int, int, int, int] | None = None  # where in the content begin: start marker, reasoning, end marker, answer
    broken: str = ""  # the check that the structure fails
    kind: str = ""
    spot: tuple[int, int] = (0, 0)
    foreign: Sequence[Event] = ()  # markers written in another way
    quoted: Sequence[Event] = ()  # markers that are talked about
    opened: bool = False  # by the prompt


def show(text: str, start: int, end: int) -> str:
    """Excerpt a text on one line: a spot between ⟦ and ⟧, with a little of the text around it."""
    end = min(end, start + _AROUND)
    before, spot, after = text[max(0, start - _AROUND) : start], text[start:end], text[end : end + _AROUND]
    left, right = "…" * (start > _AROUND), "…" * (end + _AROUND < len(text))
    return plain(f"{left}{before}{LOST[0]}{spot}{LOST[1]}{after}{right}")


def plain(text: str) -> str:
    """Put a text on one line, whatever is in it."""
    line = text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return line if line.isascii() else line.encode("utf-8", "backslashreplace").decode()


def read_turn(content: str, markers: Markers, opened: bool = False) -> Reading:
    """Find the block of an assistant's content, or what is wrong with its structure."""
    start, end = markers.start, markers.end
    if content.startswith(start) and len(markers.format.starts) == len(markers.format.ends) == 1:
        close = content.find(end)
        alone = close > 0 and content.find(end, close + len(end)) < 0 and content.find(start, len(start)) < 0
        if alone and content[close - 1] not in _QUOTES:
            return Reading((0, len(start), close, close + len(end)))
    return _read_slowly(content, markers, opened)


def _read_slowly(content: str, markers: Markers, opened: bool) -> Reading:
    exact = exact_events(content, markers)
    if not exact and not markers.may_stand_in(content):
        return Reading()
    events, quoted = _unquoted(content, exact)
    reading = _structure(content, events, markers, opened)
    if not reading.block or reading.broken:
        loose = _unquoted(content, _all_events(content, markers))[0]
        foreign = [event for event in loose if event.group not in ("s", "e")]
        if foreign and _is_meant(content, loose, foreign):
            reading = _structure(content, loose, markers, opened)
            reading.foreign = foreign
    reading.quoted = quoted
    return reading


def exact_events(content: str, markers: Markers) -> list[Event]:
    """Return the first markers of a text, written as the family writes them."""
    found: list[Event] = []
    for mark, group in markers.exact:
        at = content.find(mark)
        for _ in range(_MAX_EVENTS):
            if at < 0:
                break
            found.append(Event(at, at + len(mark), group))
            at = content.find(mark, at + len(mark))
    return sorted(found)[:_MAX_EVENTS]


def _all_events(content: str, markers: Markers) -> list[Event]:
    """Return the first markers of a text, including those written in another way and those of other families."""
    found: list[Event] = []
    candidates = (match.start() for match in markers.hint.finditer(content))
    last_end, opened = 0, False
    for at in merge(candidates, (event.start for event in exact_events(content, markers))):
        match = markers.alike.match(content, at) if at >= last_end else None
        if match is None:
            continue
        last_end, group = match.end(), match.lastgroup or ""
        if group == "fe" and not opened and _BACKSLASH.match(match[0]):
            group = "fs"
        found.append(Event(at, last_end, group))
        opened = group[-1] == "s"
        if len(found) == _MAX_EVENTS:
            break
    return found


_BACKSLASH: Final = re.compile(r"\\{0,2}[^\\]{1,9}\\\s{0,3}[^\W_]")  # `<\think>`: an end where a block is open, else a start


def _unquoted(content: str, events: list[Event]) -> tuple[list[Event], list[Event]]:
    """Part the markers into (those that count, those that are quoted: in quotation marks or code)."""
    plain: list[Event] = []
    quoted: list[Event] = []
    fences, cursor = 0, -1  # fences of code in the answer; inside the reasoning one may be left open
    for event in events:
        if cursor < 0 and plain and plain[-1].kind == "E":
            cursor = plain[-1].end
        if cursor >= 0:
            fences += content.count("```", cursor, event.start)
            cursor = event.start
        before, after = content[max(0, event.start - 1) : event.start], content[event.end : event.end + 1]
        inside = before and after and before in _QUOTES and after in _QUOTES
        (quoted if inside or fences % 2 else plain).append(event)
    return plain, quoted


def _is_meant(content: str, events: list[Event], foreign: list[Event]) -> bool:
    """Whether misspelled markers stand where markers belong, and are not just mentioned."""
    if len(events) > len(foreign) or any(event.kind == "E" for event in foreign):
        return True
    return not content[: events[0].start].strip()


def _structure(content: str, events: list[Event], markers: Markers, opened: bool) -> Reading:
    order = "".join(event.kind for event in events)
    if not order:
        return Reading()
    first = events[0]
    if order[0] == "E" and opened:
        order, block = "S" + order, (0, 0, first.start, first.end)
        reading = Reading(block, opened=True)
    elif order[0] == "E":
        broken = "reversed" if "S" in order else "orphan-end"
        kind = "an end before the first start" if "S" in order else "an end without a start"
        return Reading((0, 0, first.start, first.end), broken, kind, (first.start, first.end))
    elif "E" not in order:
        return _open(content, events, markers)
    else:
        close = next(event for event in events if event.kind == "E")
        reading = Reading((first.start, first.end, close.start, close.end))
    if order == "SE":
        return reading
    for pattern, broken, kind in _FAULTS:
        if (at := order.find(pattern)) >= 0:
            event = events[min(at + len(pattern) - 1 - (len(order) - len(events)), len(events) - 1)]
            reading.broken, reading.kind, reading.spot = broken, kind, (event.start, event.end)
            return reading
    last = events[-1]
    reading.broken, reading.spot = ("half-open", "doubled")[order[-1] == "E"], (last.start, last.end)
    reading.kind = ("another start without an end", "several blocks in one turn")[order[-1] == "E"]
    return reading


_FAULTS: Final = (
    ("SS", "nested", "a start inside a block"),
    ("EE", "doubled", "a second end"),
)


def _open(content: str, events: list[Event], markers: Markers) -> Reading:
    first, last = events[0], events[-1]
    whole = (first.start, first.end, len(content), len(content))
    if len(events) > 1:
        return Reading(whole, "nested", "a start inside a block that never ends", (events[1].start, events[1].end))
    found = [(at, text) for text in markers.format.implicit_ends if (at := content.find(text, last.end)) >= 0]
    if found:
        at, _ = min(found)
        return Reading((first.start, first.end, at, at))
    return Reading(whole, "half-open", "a start without an end", (first.start, first.end))


def form_of(content: str, block: tuple[int, int, int, int], markers: Markers) -> tuple[str, str, str]:
    """Return the white space behind a block's start, before its end and behind its end, up to five characters each.

    If no answer follows, the last is "$". If the prompt wrote the start, the first is the canonical one, because this text
    does not hold it.
    """
    _, body, close, after = block
    opening, before, behind = markers.form
    if (
        (not body or (content.startswith(opening, body) and not content[body + len(opening)].isspace()))
        and content.startswith(before, close - len(before))
        and not content[close - len(before) - 1].isspace()
        and content.startswith(behind, after)
        and len(content) > after + len(behind)
        and not content[after + len(behind)].isspace()
    ):
        return markers.form  # nearly always, and four times as fast
    inner, ending, answer = content[body : body + 5], content[max(body, close - 5) : close], content[after : after + 5]
    opening = inner[: len(inner) - len(inner.lstrip(BLANK))] if body else markers.form[0]
    behind = answer[: len(answer) - len(answer.lstrip(BLANK))] if len(content) > after else "$"
    return opening, ending[len(ending.rstrip(BLANK)) :], behind


def form_fits(form: tuple[str, str, str], markers: Markers) -> bool:
    """Whether white space is canonical. LLaMA-Factory takes more than that for part of the texts, so more fits too."""
    if form is markers.form:
        return True
    opening, before, behind = markers.form
    if markers.trainer == "llamafactory":
        return form[0].startswith(opening) and form[1].endswith(before) and (form[2] == "$" or form[2].startswith(behind))
    return form[0] == opening and form[1] == before and form[2] in (behind, "$")


def form_name(form: tuple[str, str, str], markers: Markers) -> str:
    """Spell the white space around markers on one line; all unusual runs read "(white space)", so that few names exist."""
    return _name(*form, markers.start, markers.end)


@lru_cache(1 << 10)
def _name(opening: str, before: str, behind: str, start: str, end: str) -> str:
    opening, before, behind = (run if run in _USUAL else "(white space)" for run in (opening, before, behind))
    return plain(f"{start}{opening}…{before}{end}{behind.replace('$', '')}")


_USUAL: Final = ("", "$", " ", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n")
