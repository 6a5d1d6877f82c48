"""What became of the tags in one sampled output, judged together with the end of its prompt."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from thinkguard.core._core import ThinkState
from thinkguard.core.names import ClosedBy, Kind, Phase, StateFlag
from thinkguard.core.program import ThinkProgram
from thinkguard.core.trace import explain
from thinkguard.formats.marks import found_in
from thinkguard.policy import ThinkPolicy

SampleClass = Literal["valid", "empty", "truncated", "missing", "doubled", "leaked"]
CLASSES: Final[tuple[SampleClass, ...]] = ("valid", "empty", "truncated", "missing", "doubled", "leaked")
_FREE: Final = ThinkPolicy(opening="allow")  # nothing was asked for: only the structure is judged
_SHOWN: Final = 60  # characters of the prompt's end


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled output and its class."""

    name: SampleClass
    why: str  # "" for a valid one
    open_at_limit: bool  # truncated by the token limit, not by the model: nothing is known of its end
    prompt_tail: str
    text: str  # special tokens kept


@dataclass(slots=True)
class _Tally:
    """The markers in one output, counted with those in the prompt's part of the turn."""

    starts: int
    late: bool = False  # a first start behind visible text
    stray: bool = False  # an end in an answer that follows a block
    orphan: bool = False  # an end without a start
    early_eos: bool = False


def classify(program: ThinkProgram, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> Sample:
    """Put one output into its class; ids behind its first EOS are left out."""
    eos = program.eos_token_ids
    length = next((i + 1 for i, token_id in enumerate(output_ids) if token_id in eos), len(output_ids))
    output = list(output_ids[:length])
    name, why, at_limit = _class(program, prompt_ids, output)
    tail = _text(program, prompt_ids[-_SHOWN:])[-_SHOWN:]
    return Sample(name, why, at_limit, tail, _text(program, output))


def _class(program: ThinkProgram, prompt_ids: Sequence[int], output: Sequence[int]) -> tuple[SampleClass, str, bool]:
    state = program.start(prompt_ids, _FREE)
    by_prompt = state.closed_by != ClosedBy.NONE and state.phase == Phase.ANSWERING
    tally = _walk(program, state.copy(), output)
    trace = explain(state, output, program.vocabulary, program.format)
    format = program.format
    if tally.starts > 1:
        return "doubled", f"a second {format.starts[0]!r}", False
    if tally.late or tally.stray:
        return "leaked", f"{(format.starts if tally.late else format.ends)[0]!r} in the answer", False
    if tally.orphan and not by_prompt:
        return "missing", f"{format.ends[0]!r} without a start", False
    foreign = _foreign(program, trace.answer)
    if foreign:
        return "leaked", f"{foreign} in the answer", False
    if by_prompt:
        return "missing", "the prompt closes the thinking", False
    if not tally.starts:
        return "missing", "no block", False
    if tally.early_eos:
        return "truncated", "the model stopped inside the thinking", False
    if trace.phase in ("thinking", "closing"):
        return "truncated", "still thinking at the token limit", True
    if not trace.reasoning and not _thought_in_prompt(program, prompt_ids):
        return "empty", "nothing in the block", False
    if not trace.answer and trace.closed_by != "implicit":
        return ("empty", "no answer", False) if trace.finished else ("truncated", "no answer at the token limit", True)
    return "valid", "", False


def _walk(program: ThinkProgram, state: ThinkState, output: Sequence[int]) -> _Tally:
    tally = _Tally(starts=state.as_dict()["blocks"])
    for token_id in output:
        before = state.as_dict()
        phase = Phase(before["phase"])
        _, number = program.tables.step(before["node"], token_id, before["pair"])
        kind = int(program.tables.arrays["events"]["last"][number])
        state.advance(token_id)
        if kind & Kind.START:
            tally.late |= phase == Phase.ANSWERING and not tally.starts
            tally.starts += 1
        elif kind & Kind.END:
            tally.orphan |= not tally.starts
            tally.stray |= tally.starts > 0 and bool(state.flags & StateFlag.VIOLATION)
        elif token_id in program.eos_token_ids:
            tally.early_eos |= phase in (Phase.THINKING, Phase.CLOSING)
    return tally


def _foreign(program: ThinkProgram, answer: str) -> str:
    """A marker in the answer that is of another family or spelling, "" for none."""
    for marker in found_in(answer, None):
        return repr(marker)
    plain = html.unescape(answer).casefold()
    markers = program.format.starts + program.format.ends
    return next((f"a look-alike of {marker!r}" for marker in markers if marker.casefold() in plain), "")


def _thought_in_prompt(program: ThinkProgram, prompt_ids: Sequence[int]) -> bool:
    """Whether the prompt holds thinking beyond its start marker (a continued turn)."""
    return program.start(prompt_ids, _FREE).thinking_tokens > 0


def _text(program: ThinkProgram, ids: Sequence[int]) -> str:
    vocabulary = program.vocabulary
    known = (vocabulary.token_bytes(t) for t in ids if 0 <= t < vocabulary.num_tokens)
    return b"".join(known).decode("utf-8", "replace")
