"""ThinkTrace: what happened in a finished output, found by walking it again."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from thinkguard.core._core import Action, Row
from thinkguard.core.compile import Kind
from thinkguard.errors import InputError
from thinkguard.formats import ThinkFormat
from thinkguard.vocabulary import Vocabulary

PHASES = ("before", "thinking", "closing", "heading", "answering", "done")
CLOSED_BY = ("none", "model", "budget", "boundary", "loop", "implicit", "prompt")
_FORCE = 1
_INERT, _VIOLATION = 1, 8
_WHITE = " \t\n\r\f\v"


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that the guard would not have let happen, or that a reader may be misled by."""

    position: int  # index into the output's tokens
    what: str


@dataclass(frozen=True, slots=True)
class ThinkTrace:
    """What happened in one output.

    `closed_by` is "model" (an EOS turned into an end cannot be told from it), "budget", "boundary", "loop", "implicit",
    "prompt" or "none". A token was forced if deciding on its prefix forces it.
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
    violations: tuple[Violation, ...]

    @property
    def well_formed(self) -> bool:
        """Whether the thinking, if any, was closed, an answer follows, and nothing illegal happened on the way."""
        return bool(self.answer) and not self.violations and self.phase in ("answering", "done")

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self) | {"well_formed": self.well_formed}


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


def _stretch_of(phase: int) -> str | None:
    return {1: "reasoning", 2: "reasoning", 4: "answer"}.get(phase)


def explain(row: Row, output_ids: Sequence[int], vocabulary: Vocabulary, format: ThinkFormat) -> ThinkTrace:
    """Walk `output_ids` from `row`, which stands behind the prompt and is moved to the output's end.

    `vocabulary` and `format` are those of the program that the row belongs to.
    """
    tables = row.policy.tables
    segments = _Segments()
    segments.begin(_stretch_of(row.phase), 0, 0)
    forced: list[int] = []
    violations: list[Violation] = []
    for position, token_id in enumerate(_plain(output_ids)):
        if PHASES[row.phase] == "done":
            break
        before, action = row.as_dict(), row.decide()
        _, event_index = tables.step(before["node"], token_id if 0 <= token_id < 2**31 else 0)
        event = tables.arrays["events"][event_index]
        row.advance(token_id if 0 <= token_id < 2**31 else -1)
        if action.kind == _FORCE and action.token == token_id:
            forced.append(position)
        what = _violation(vocabulary, before, action, row, token_id, event)
        if what:
            violations.append(Violation(position, what))
        if row.flags & _INERT:
            break
        if PHASES[row.phase] == "done":
            segments.begin(None, len(segments.text), 0)
            break
        if token_id < vocabulary.num_tokens:
            segments.text += vocabulary.token_bytes(token_id)
        _note(segments, before, row, event)
    segments.begin(None, len(segments.text), 0)
    answer = segments.read("answer").strip(_WHITE)
    for closer in format.answer_ends:
        answer = answer.removesuffix(closer).strip(_WHITE)
    state = row.as_dict()
    return ThinkTrace(
        reasoning=segments.read("reasoning").strip(_WHITE),
        answer=answer,
        thinking_tokens=state["thinking"],
        answer_tokens=state["answer"],
        think_blocks=state["blocks"],
        closed_by=CLOSED_BY[state["closed_by"]] if row.phase not in (1, 2) else "none",
        finished=PHASES[row.phase] == "done",
        phase=PHASES[row.phase],
        forced=tuple(forced),
        violations=tuple(violations),
    )


def _plain(ids: Sequence[int]) -> Iterator[int]:
    for token_id in ids.tolist() if hasattr(ids, "tolist") else ids:
        try:
            yield operator.index(token_id)
        except TypeError:
            raise InputError(f"output_ids holds {token_id!r}: wanted one row of whole numbers") from None


def _note(segments: _Segments, before: dict[str, int], row: Row, event: Any) -> None:
    """Begin another stretch where a token's last marker, or the first visible text, ended the one before."""
    was, now = _stretch_of(before["phase"]), _stretch_of(row.phase)
    restarted = now == "reasoning" and bool(event[1] & Kind.START) and row.as_dict()["blocks"] > before["blocks"]
    opened = now == "answer" and bool(event[1] & Kind.ANSWER)
    behind = len(segments.text) - int(event[3])
    marker = max(behind - int(event[6]), 0)
    lone = was == now == "answer" and event[1] == Kind.END and not row.policy.fields["markers_allowed"]
    if was == now and not restarted and not opened and not (lone and segments.is_blank(marker)):
        return
    if not event[1]:
        segments.begin(now, len(segments.text), 0)
        return
    segments.begin(now, marker, marker if event[1] == Kind.IMPLICIT else behind)


def _violation(
    vocabulary: Vocabulary, before: dict[str, int], action: Action, row: Row, token_id: int, event: Any
) -> str:
    """Say in words what the guard would not have let happen."""
    phase = PHASES[before["phase"]]
    if row.flags & _INERT:
        return f"{token_id} is no token id: nothing is enforced from here on"
    if row.flags & _VIOLATION:
        kind = int(event[1])
        if PHASES[row.phase] == "done":
            return "EOS before the thinking was closed" if phase in ("thinking", "closing") else "EOS before an answer"
        if int(event[0]) & Kind.MULTI:
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
        if phase == "answering" and row.policy.fields["markers_allowed"]:
            reader = "text" if kind & Kind.SPELLED else "text or tokens"
            return f"{name} marker quoted in the answer: a reader by {reader} is misled"
        return f"{name} marker out of place, while {phase}"
    if action.kind == _FORCE and action.token != token_id:
        return f"token {_named(vocabulary, action.token)} was due, but {_named(vocabulary, token_id)} was sampled"
    if not action.allows(token_id):
        return f"token {_named(vocabulary, token_id)} was banned, but sampled"
    return ""


def _named(vocabulary: Vocabulary, token_id: int) -> str:
    """A token's id and what it spells."""
    if token_id >= vocabulary.num_tokens:
        return f"{token_id} (no text)"
    return f"{token_id} {vocabulary.token_bytes(token_id).decode('utf-8', 'replace')!r}"
