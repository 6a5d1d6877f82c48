"""ThinkTrace: what happened in a finished output, found by walking it again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from thinkguard.core._core import Action, Tables, ThinkState
from thinkguard.core.ids import index_of
from thinkguard.core.names import ActionKind, ClosedBy, Kind, Phase, Seq, StateFlag
from thinkguard.errors import InputError
from thinkguard.formats import ThinkFormat
from thinkguard.formats.look_alikes import look_alikes_in
from thinkguard.vocabulary import Vocabulary

_WHITE = " \t\n\r\f\v"


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that the guard would not have let happen, or that a reader may be misled by."""

    position: int  # index into the output's tokens
    what: str


@dataclass(frozen=True, slots=True)
class ThinkTrace:
    """What happened in one output.

    `closed_by` is "model" (an EOS turned into an end cannot be told from it), "budget", "boundary", "loop", "implicit" (a
    tool call's opener, with which the answer begins: the text has no end marker), "prompt" or "none". A token was forced if
    deciding on its prefix forces it; "implicit" with forced tokens is an opener that was half written at a budget.
    """

    reasoning: str  # text of all thinking blocks of the output, white space around it removed
    answer: str
    thinking_tokens: int  # by the policy's way of counting, the prompt's part of the turn included
    answer_tokens: int  # that were not forced
    think_blocks: int
    closed_by: str
    finished: bool  # an EOS was seen
    phase: str  # where the output stands at its end
    forced: tuple[int, ...]  # indices into the output's tokens
    skipped: tuple[int, ...]  # where optional text was due, a message or white space, and somebody else had banned it
    look_alikes: tuple[str, ...]  # what reads like a marker and is none, each with a little of what follows it
    violations: tuple[Violation, ...]

    @property
    def well_formed(self) -> bool:
        """Whether the thinking, if any, was closed, an answer follows, and nothing illegal happened on the way."""
        return bool(self.answer) and not self.violations and self.phase in ("answering", "done")

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self) | {"well_formed": self.well_formed}


def _name(value: Phase | ClosedBy) -> str:
    return value.name.lower()


class _Segments:
    """The reasoning's and the answer's stretches of the output's bytes."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.stretches: dict[str, list[tuple[int, int]]] = {"reasoning": [], "answer": []}
        self.open: tuple[str, int] | None = None

    def begin(self, name: str | None, end_of_last: int, begin: int) -> None:
        """End the stretch that is open at one offset and begin another one at the next."""
        if self.open:
            self.stretches[self.open[0]].append((self.open[1], max(end_of_last, self.open[1])))
        self.open = (name, begin) if name else None

    def is_blank(self, end: int) -> bool:
        """Whether the open stretch holds but white space up to an offset."""
        return self.open is None or not self.text[self.open[1] : end].strip(_WHITE.encode())

    def read(self, name: str) -> str:
        """The stretches of one kind as text, white space around each removed and an empty line between two."""
        texts = (self.text[a:b].decode("utf-8", "replace").strip(_WHITE) for a, b in self.stretches[name])
        return "\n\n".join(text for text in texts if text)


_STRETCHES = {Phase.THINKING: "reasoning", Phase.CLOSING: "reasoning", Phase.ANSWERING: "answer"}


def _stretch_of(phase: int) -> str | None:
    return _STRETCHES.get(Phase(phase))


def explain(state: ThinkState, output_ids: Sequence[int], vocabulary: Vocabulary, format: ThinkFormat) -> ThinkTrace:
    """Walk `output_ids` from `state`, which stands behind the prompt and is moved to the output's end.

    `vocabulary` and `format` are those of the program that the state belongs to.
    """
    tables = state.policy.tables
    segments = _Segments()
    segments.begin(_stretch_of(state.phase), 0, 0)
    forced: list[int] = []
    skipped: list[int] = []
    violations: list[Violation] = []
    for position, token_id in enumerate(_plain(output_ids)):
        if state.phase == Phase.DONE:
            break
        before, action = state.as_dict(), state.decide()
        _, event_index = tables.step(before["node"], token_id if 0 <= token_id < 2**31 else 0, before["pair"])
        event = tables.arrays["events"][event_index]
        state.advance(token_id if 0 <= token_id < 2**31 else -1)
        if action.kind == ActionKind.FORCE and action.token == token_id:
            forced.append(position)
        what = _violation(vocabulary, before, action, state, token_id, event)
        if _skips(before, action, state, token_id):
            skipped.append(position)
        elif what:
            violations.append(Violation(position, what))
        if state.flags & StateFlag.INERT:
            break
        if state.phase == Phase.DONE:
            segments.begin(None, len(segments.text), 0)
            break
        if token_id < vocabulary.num_tokens:
            segments.text += vocabulary.token_bytes(token_id)
        _note(segments, before, state, event)
    segments.begin(None, len(segments.text), 0)
    answer = segments.read("answer").strip(_WHITE)
    for closer in format.answer_ends:
        answer = answer.removesuffix(closer).strip(_WHITE)
    counters = state.as_dict()
    return ThinkTrace(
        reasoning=segments.read("reasoning").strip(_WHITE),
        answer=answer,
        thinking_tokens=counters["thinking"],
        answer_tokens=counters["answer"],
        think_blocks=counters["blocks"],
        closed_by=_name(ClosedBy.NONE if _stretch_of(state.phase) == "reasoning" else ClosedBy(state.closed_by)),
        finished=state.phase == Phase.DONE,
        phase=_name(Phase(state.phase)),
        forced=tuple(forced),
        skipped=tuple(skipped),
        look_alikes=look_alikes_in(segments.text.decode("utf-8", "replace"), format),
        violations=tuple(violations),
    )


def _plain(ids: Iterable[int]) -> Iterator[int]:
    known = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(known, Iterable) or isinstance(known, (str, bytes)):
        raise InputError(f"output_ids is a {type(ids).__name__}: wanted one row of whole numbers")
    for token_id in known:
        yield token_id if type(token_id) is int else index_of("output_ids", token_id)


def _note(segments: _Segments, before: dict[str, int], state: ThinkState, event: Any) -> None:
    """Begin another stretch where a token's last marker, or the first visible text, ended the one before."""
    was, now = _stretch_of(before["phase"]), _stretch_of(state.phase)
    restarted = now == "reasoning" and bool(event["last"] & Kind.START) and state.as_dict()["blocks"] > before["blocks"]
    opened = now == "answer" and bool(event["last"] & Kind.ANSWER)
    behind = len(segments.text) - int(event["tail_bytes"])
    marker = max(behind - int(event["marker_bytes"]), 0)
    lone = was == now == "answer" and event["last"] == Kind.END and state.policy.source.markers_in_answer == "ban"
    if was == now and not restarted and not opened and not (lone and segments.is_blank(marker)):
        return
    if not event["last"]:
        segments.begin(now, len(segments.text), 0)
        return
    segments.begin(now, marker, marker if event["last"] == Kind.IMPLICIT else behind)


def _skips(before: dict[str, int], action: Action, state: ThinkState, token_id: int) -> bool:
    """Whether a token stands where another was due that is optional: of a message, or white space beside a marker."""
    if action.kind != ActionKind.FORCE or action.allows(token_id) or not action.allows_in_place(token_id):
        return False
    if before["phase"] == Phase.CLOSING:
        return bool(token_id == action.as_dict()["aim"])  # the end goes on without what stands before it
    if before["phase"] == Phase.THINKING:
        # An extension's message, white space behind a start, or an end behind it, where nothing may be thought.
        return before["seq"] in (Seq.EXTEND, Seq.OPEN) or state.forced
    return before["phase"] == Phase.ANSWERING and action.token not in state.policy.eos_token_ids


def _violation(
    vocabulary: Vocabulary, before: dict[str, int], action: Action, state: ThinkState, token_id: int, event: Any
) -> str:
    """Say in words what the guard would not have let happen."""
    phase = Phase(before["phase"])
    if state.flags & StateFlag.INERT:
        return f"{token_id} is no token id: nothing is enforced from here on"
    if state.flags & StateFlag.VIOLATION:
        kind = int(event["last"])
        if state.phase == Phase.DONE:
            unclosed = phase in (Phase.THINKING, Phase.CLOSING)
            return "EOS before the thinking was closed" if unclosed else "EOS before an answer"
        if int(event["kinds"]) & Kind.MULTI:
            return "one token completes more than one marker"
        name = (
            "start"
            if kind & Kind.START
            else "end"
            if kind & Kind.END
            else "channel"
            if kind > Kind.SPELLED
            else "answer"
        )
        if phase == Phase.ANSWERING and state.policy.source.markers_in_answer == "allow":
            reader = "text" if kind & Kind.SPELLED else "text or tokens"
            return f"{name} marker quoted in the answer: a reader by {reader} is misled"
        return f"{name} marker out of place, while {_name(phase)}"
    if action.kind == ActionKind.FORCE and action.token != token_id:
        return f"token {_named(vocabulary, action.token)} was due, but {_named(vocabulary, token_id)} was sampled"
    if not action.allows(token_id) and not _nearly_completes(state.policy.tables, before, token_id, event):
        return f"token {_named(vocabulary, token_id)} was banned, but sampled"
    return ""


def _nearly_completes(tables: Tables, before: dict[str, int], token_id: int, event: Any) -> bool:
    """Whether a token spells a marker up to its last character: a marker or a look-alike may become of that, or nothing."""
    node = before["pair"] * (len(tables.arrays["except_offset"]) - 1) + before["node"]
    begin, end = (int(at) for at in tables.arrays["mark_offset"][node : node + 2])
    marks = tables.arrays["mark_token"][begin:end]
    at = int(marks.searchsorted(token_id))
    mask = int(tables.arrays["mark_mask"][begin + at]) if at < len(marks) and marks[at] == token_id else 0
    return not event["kinds"] and bool(mask & (Kind.START | Kind.END | Kind.SPELLED))


def _named(vocabulary: Vocabulary, token_id: int) -> str:
    """A token's id and what it spells."""
    if token_id >= vocabulary.num_tokens:
        return f"{token_id} (no text)"
    return f"{token_id} {vocabulary.token_bytes(token_id).decode('utf-8', 'replace')!r}"
