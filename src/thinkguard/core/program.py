"""ThinkProgram: a format compiled against a vocabulary, and the calls that walk sequences through it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkguard.core._core import Action, BoundPolicy, StateBatch, Tables, ThinkState, int32_of
from thinkguard.core.compile import Compiled, compile_format, signed
from thinkguard.core.ids import MOST_ID, count_of, eos_ids_of, no_id, row_of
from thinkguard.core.names import (
    NO_LIMIT,
    AnswerPrefixOn,
    BudgetPer,
    CloseAt,
    MarkersInAnswer,
    OnEos,
    Opening,
    Phase,
    Seq,
    StateFlag,
)
from thinkguard.core.trace import ThinkTrace, explain
from thinkguard.errors import FormatError, InputError, PolicyError
from thinkguard.formats import ThinkFormat
from thinkguard.formats.fit import views_of
from thinkguard.formats.resolve import resolve_format
from thinkguard.policy import POLICY_FIELDS, ThinkPolicy, shown
from thinkguard.vocabulary import TokenFlag, Vocabulary

_MAX_BOUND = 256  # policies kept bound to a program


_CHOICES = {"budget_per": BudgetPer, "close_at": CloseAt, "on_eos": OnEos, "opening": Opening}
_CHOICES |= {"markers_in_answer": MarkersInAnswer, "answer_prefix_on": AnswerPrefixOn}
_FIRST_WINDOW = 256  # tokens of a prompt that are looked at first
_WIDTH = "the width of the logits, or None"
_SPELLED = ("close_message", "extend_message", "answer_prefix")  # fields that reach C as sequences of tokens


def _fields_of(policy: ThinkPolicy) -> dict[str, int | float]:
    """A policy's fields as tg_policy has them, under the same names."""
    fields = {name: getattr(policy, name) for name in POLICY_FIELDS if name not in _SPELLED}
    choices = {name: int(enum[fields[name].upper()]) for name, enum in _CHOICES.items()}
    return {name: NO_LIMIT if value is None else value for name, value in fields.items()} | choices


def _joined(behind: str, prefix: str) -> str:
    """A prefix behind a text; white space that it begins with and the text ends in is written once."""
    lead = prefix[: len(prefix) - len(prefix.lstrip(" \t\n\r\f\v"))]
    twice = next((length for length in range(len(lead), 0, -1) if behind.endswith(lead[:length])), 0)
    return behind + prefix[twice:]


class ThinkProgram:
    """A format x vocabulary, compiled: immutable, shared between threads, picklable.

    `tokenizer` is anything `Vocabulary.from_tokenizer` takes; `format` a ThinkFormat, a family's name, or None to detect
    it. `vocab_size`, the logits' width, is only checked to be one: logits may be narrower or wider than the tokenizer's ids,
    and ids beyond those are tokens without text. Compiling takes some tens of milliseconds for 150,000 tokens.
    """

    def __init__(self, format: ThinkFormat | str | None, tokenizer: object, vocab_size: int | None = None) -> None:
        self.vocabulary = Vocabulary.from_tokenizer(tokenizer)
        self.format = resolve_format(format, self.vocabulary)
        if vocab_size is not None and not count_of("vocab_size", vocab_size, _WIDTH):
            raise InputError(f"vocab_size={vocab_size}: must be {_WIDTH}")
        self._finish(compile_format(self.format, self.vocabulary))

    def _finish(self, compiled: Compiled) -> None:
        self._compiled = compiled
        turns, shown = (Tables(*more) if more else None for more in (compiled.turns, compiled.shown))
        self.tables = Tables(compiled.arrays, compiled.scalars, turns, shown)
        self._views = views_of(self.format)
        self._lead = int(compiled.turns[0]["depth"].max()) if compiled.turns else 1  # symbols of the longest boundary
        self._bound: OrderedDict[tuple[ThinkPolicy, tuple[int, ...], bool], BoundPolicy] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary, "format": self.format, "compiled": self._compiled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.vocabulary, self.format = state["vocabulary"], state["format"]
        self._finish(state["compiled"])

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a sequence where the host names none: the tokenizer's EOS and the format's turn ends."""
        return self._compiled.eos_token_ids

    @property
    def nbytes(self) -> int:
        """Bytes that the compiled tables take, the vocabulary's own text left out."""
        more = (tables[0].values() for tables in (self._compiled.turns, self._compiled.shown) if tables)
        arrays = {id(array): array for array in chain(self._compiled.arrays.values(), *more)}
        return sum(array.nbytes for array in arrays.values())

    # --- binding a policy ---

    def bind(
        self, policy: ThinkPolicy, eos_token_ids: Iterable[int] | None = None, *, bare_close: bool = False
    ) -> BoundPolicy:
        """Spell a policy's messages and resolve its EOS set; bound policies are kept.

        `eos_token_ids` are all ids that end a sequence, in place of `program.eos_token_ids`; the first is the one that
        is forced at `max_answer_tokens`. With `bare_close` nothing is forced behind an end marker: a host's grammar
        takes over there. FormatError if an EOS is an end marker, or for `bare_close` where the end marker is no single
        token; PolicyError for a message that could complete a marker.
        """
        if not isinstance(policy, ThinkPolicy):
            raise InputError(f"policy={shown(policy)}: wanted a ThinkPolicy; ThinkPolicy.from_mapping makes one of a dict")
        eos = self.eos_token_ids if eos_token_ids is None else eos_ids_of(eos_token_ids)
        key = (policy, eos, bare_close)
        with self._lock:
            if key in self._bound:
                self._bound.move_to_end(key)
                return self._bound[key]
        bound = self._bind(policy, eos, bare_close)
        with self._lock:
            bound = self._bound.setdefault(key, bound)  # another thread's, if it was faster: states of one policy share it
            if len(self._bound) > _MAX_BOUND:
                self._bound.popitem(last=False)
        return bound

    def _bind(self, policy: ThinkPolicy, eos: tuple[int, ...], bare_close: bool) -> BoundPolicy:
        for token_id in eos:
            if token_id in self._compiled.end_ids:
                raise FormatError(
                    f"format {self.format.name!r}: the end marker {self.format.ends[0]!r} is token {token_id}, which is "
                    "also in the EOS set, so the sequence would stop where the thinking ends; pass eos_token_id= without it"
                )
        if policy.max_answer_tokens is not None and not eos:
            raise PolicyError(
                f"max_answer_tokens={policy.max_answer_tokens} forces EOS, but no EOS is known: pass eos_token_id="
            )
        off, bares = self._compiled.off, self._compiled.bare
        closes = tuple(self._close(policy.close_message, pair) for pair in range(len(self._views)))
        if bare_close:
            if policy.answer_prefix:
                raise PolicyError(
                    f"answer_prefix={policy.answer_prefix!r} with a grammar for the answer: the grammar decides how the "
                    "answer begins; leave answer_prefix out, or put it into the grammar"
                )
            closes, off, bares = tuple(map(self._bare, closes)), self._bare(off), tuple(map(self._bare, bares))
        extend, lead = self._extension(policy.extend_message or "")
        prefix, space = self._prefix(policy.answer_prefix)
        off = self._off(policy.answer_prefix) if prefix else off
        scalars = self._compiled.scalars
        longest = max(*map(len, closes), scalars["longest_finish"], scalars["longest_call"]) + len(prefix)
        fields = _fields_of(policy) | {"opening": self._opening(policy), "longest_close": longest} | lead
        fields["prefix_space"] = space
        fields["closes_line"] = int(not policy.close_message and self.format.close_text.startswith("\n"))
        opening = self._compiled.open
        sequences = [[opening, close, off, extend, bare, prefix] for close, bare in zip(closes, bares, strict=True)]
        bound = BoundPolicy(self.tables, policy, fields, sequences, eos)
        self._refuse_eos_in(eos, bound.tokens.tolist())
        return bound

    def _opening(self, policy: ThinkPolicy) -> Opening:
        """`opening` as it is for this format: only where its prompts have to be asked is "auto" left to each of them."""
        if policy.opening == "auto" and not self.format.on_texts:
            return Opening.FORCE if self.format.on_texts is None else Opening.ALLOW
        return Opening[policy.opening.upper()]

    def _bare(self, token_ids: list[int]) -> list[int]:
        """What is forced up to an end marker and no further; whole where none is in it."""
        if self.format.channel or self.tables.scalars["longest_finish"]:
            raise FormatError(
                f"format {self.format.name!r}: bare_close needs an end marker that is one token and leads straight to the "
                f"answer, and {self.format.ends[0]!r} is spelled out or followed by a header"
            )
        ends = [i for i, token_id in enumerate(token_ids) if token_id in self._compiled.end_ids]
        return token_ids[: ends[-1] + 1] if ends else token_ids

    def _kinds_of(self, token_ids: list[int], pair: int = 0) -> int:
        """The kinds of marker that a sequence completes by itself, behind a start of a pair."""
        node = kinds = 0
        for token_id in token_ids:
            node, event = self.tables.step(node, token_id, pair)
            kinds |= int(self.tables.arrays["events"]["kinds"][event])
        return kinds

    def _refuse_eos_in(self, eos: tuple[int, ...], forced: list[int]) -> None:
        """An EOS inside what is forced would end the sequence in the middle of it."""
        for token_id in sorted(set(eos) & {*forced, *self._compiled.arrays["seq_token"].tolist()}):
            raise FormatError(
                f"format {self.format.name!r}: token {token_id}, {self.vocabulary.token_bytes(token_id)!r}, is in the EOS "
                "set and also needed to write a marker, its white space or a message: pass eos_token_id= without it"
            )

    def _close(self, message: str, pair: int) -> list[int]:
        """A pair's close sequence, spelled as one text: what stands in front of white space changes how it is spelled."""
        if not self._message("close_message", message):
            return self._compiled.close[pair]
        text = message + self._views[pair].close_text
        close = self.vocabulary.encode_bytes(text.encode(), before_text=True)
        wanted = self._kinds_of(self._compiled.close[pair], pair)
        on_the_way = self.tables.kinds_on_the_way(np.array(close, np.int32), pair)
        if on_the_way & ~wanted or self._kinds_of(close, pair) != wanted:
            raise PolicyError(
                f"close_message={message!r} could complete a marker together with the close sequence of "
                f"format {self.format.name!r}: reword its end"
            )
        return close

    def _prefix(self, prefix: str) -> tuple[list[int], int]:
        """What is forced behind an end marker, and how many of its tokens are the canonical white space there.

        The canonical text behind the marker stands in front; line breaks that the prefix begins with too are written once.
        """
        if not self._message("answer_prefix", prefix):
            return [], 0
        behind = "" if self.format.channel else self.format.close_text.rpartition(self.format.ends[0])[2]
        token_ids = self.vocabulary.encode(_joined(behind, prefix))
        wanted = self._kinds_of(self.vocabulary.encode(behind)) if behind else 0
        if self._kinds_of(token_ids) != wanted or self.tables.kinds_on_the_way(np.array(token_ids, np.int32)) & ~wanted:
            raise PolicyError(
                f"answer_prefix={prefix!r} could complete a marker together with what format {self.format.name!r} writes "
                "behind an end marker: reword its beginning"
            )
        ends = accumulate(len(self.vocabulary.token_bytes(token_id)) for token_id in token_ids)
        space = len(behind) - len(behind.lstrip(" \t\n\r\f\v"))
        return token_ids, sum(end <= space for end in ends)

    def _off(self, prefix: str) -> list[int]:
        """The thinking-off text with the answer's prefix behind it."""
        token_ids = self.vocabulary.encode(_joined(self._off_text, prefix))
        if self._kinds_of(token_ids) != self._kinds_of(self._compiled.off):
            raise PolicyError(
                f"answer_prefix={prefix!r} could complete a marker together with {self._off_text!r}, which format "
                f"{self.format.name!r} writes where thinking is off: reword its beginning"
            )
        return token_ids

    @property
    def _off_text(self) -> str:
        return self.format.off_text or self.format.open_text + self.format.close_text

    def _extension(self, message: str) -> tuple[list[int], dict[str, Any]]:
        """The extension's words, and the line breaks in front of them as tg_policy has them.

        A wish to end leads to the line breaks first, which are text like any other; only the words begin the message.
        """
        lead = message[: len(message) - len(message.lstrip(" \t\n\r\f\v"))]
        lead = lead[: lead.rfind("\n") + 1] if lead != message else ""
        if not lead:
            return self._message("extend_message", message), {"lead_word": 0, "lead_bytes": 0, "lead": [-1] * 4}
        if len(lead) > 4:
            raise PolicyError(f"extend_message={message!r} begins with {len(lead)} bytes of line breaks: leave at most 4")
        whole = self._message("extend_message", message)
        words = whole[len(self.vocabulary.encode_bytes(lead.encode(), before_text=True)) :]
        if b"".join(map(self.vocabulary.token_bytes, words)) != message[len(lead) :].encode():
            words = self._message("extend_message", message[len(lead) :])
        breaks = [self.vocabulary.encode_bytes(lead[at:].encode(), before_text=True)[0] for at in range(len(lead))]
        return words, {
            "lead_word": signed(int.from_bytes(lead.encode(), "big")),
            "lead_bytes": len(lead),
            "lead": breaks + [-1] * (4 - len(lead)),
        }

    def _message(self, field: str, text: str) -> list[int]:
        """Spell a message; refuse one that holds special tokens, or that could complete a marker from any state."""
        if not text:
            return []
        token_ids = self.vocabulary.encode(text)
        if (self.vocabulary.flags[token_ids] & TokenFlag.SPECIAL.value).any():
            raise PolicyError(
                f"{field}={text!r} holds a special token, which a reader may drop or stop at: leave it out"
            )
        if self.tables.kinds_on_the_way(np.array(token_ids, np.int32)):
            raise PolicyError(f"{field}={text!r} could complete a marker of format {self.format.name!r}: reword it")
        return token_ids

    # --- walking a sequence ---

    def start(
        self,
        prompt_ids: Sequence[int] | npt.NDArray[np.integer[Any]],
        policy: ThinkPolicy | None = None,
        *,
        max_tokens: int | None = None,
        eos_token_ids: Iterable[int] | None = None,
        turn_start: int | None = None,
    ) -> ThinkState:
        """Start a sequence behind a prompt; markers count only in the assistant's own turn.

        `max_tokens` bounds the output, so that closing and the reserved answer still fit into it; `turn_start` is the
        index in `prompt_ids` where the assistant's turn starts, found by the format's boundaries if None. Only that turn
        is read, whatever stands before it, so the cost is the turn's length, but for a prompt that has to say whether
        thinking is on (`ThinkFormat.on_texts`), which is read from its beginning. InputError for ids there that are no token
        ids, and for a `max_tokens` that cannot hold opening, closing, answer and EOS.
        """
        bound = self.bind(ThinkPolicy() if policy is None else policy, eos_token_ids)
        return self.start_bound(prompt_ids, bound, max_tokens, turn_start)

    def start_bound(
        self,
        prompt_ids: Sequence[int] | npt.NDArray[np.integer[Any]],
        bound: BoundPolicy,
        max_tokens: int | None = None,
        turn_start: int | None = None,
    ) -> ThinkState:
        """`start` for a policy that is bound already."""
        if not isinstance(bound, BoundPolicy) or bound.tables is not self.tables:
            whose = "another program's" if isinstance(bound, BoundPolicy) else f"a {type(bound).__name__}"
            raise InputError(f"bound is {whose}: wanted what this program's bind() returns")
        if max_tokens is not None:
            max_tokens = count_of("max_tokens", max_tokens, "how many tokens the output may have, None if unknown")
        begin, raw = self.turn(prompt_ids, turn_start)
        state = ThinkState(bound)
        limit = NO_LIMIT if max_tokens is None else min(max_tokens, 2**30)
        state.start(as_token_ids("prompt_ids", prompt_ids[begin:]), raw, limit)
        if state.is_open():
            state.open(as_token_ids("prompt_ids", prompt_ids))
        if max_tokens is not None:
            self._check_room(state, max_tokens)
        return state

    def turn(
        self,
        prompt_ids: Sequence[int] | npt.NDArray[np.integer[Any]],
        turn_start: int | None = None,
        read: Callable[[Any], npt.NDArray[np.int32]] | None = None,
    ) -> tuple[int, bool]:
        """(index of the turn's first own token, whether the prompt shows no chat): the header's own text is skipped.

        The prompt is read from its end, in windows that grow until the turn's start is found. `read` makes contiguous
        int32 of a slice of it; by default ids that are no token ids raise InputError.
        """
        read = read or partial(as_token_ids, "prompt_ids")
        try:
            length = len(prompt_ids)
            prompt_ids[length:]
        except (TypeError, LookupError):  # no sequence: a set, a dict, a number
            as_token_ids("prompt_ids", prompt_ids)  # says what is wrong
            raise InputError(f"prompt_ids is a {type(prompt_ids).__name__}: wanted a list or an array of ids") from None
        if turn_start is not None:
            meaning = f"an index into the {length} prompt ids, or their number"
            return count_of("turn_start", turn_start, meaning, length), False
        window = _FIRST_WINDOW
        while True:
            skipped = max(length - window, 0)
            ids = read(prompt_ids[skipped:])
            begin, raw = self.tables.turn_start(ids, self._lead if skipped else 0)
            if begin >= 0:
                break
            window *= 16
        return skipped + begin, raw

    def most_room(self, bound: BoundPolicy) -> int:
        """Tokens of output that opening, closing, the least answer and EOS take at most, wherever a prompt ends."""
        opens = max(self.tables.scalars["header_tokens"], len(bound.sequence(Seq.OPEN)), len(bound.sequence(Seq.OFF)))
        return opens + bound.close_room

    def _check_room(self, state: ThinkState, max_tokens: int) -> None:
        """Refuse a limit into which what is forced, the least answer and, behind thinking, EOS do not fit."""
        policy, phase = state.policy.source, state.phase
        is_forced = state.policy.fields["opening"] == Opening.FORCE or bool(state.flags & StateFlag.OPENS)
        opens, closes = self._left_of_sequence(state) if phase == Phase.THINKING else 0, 0
        if (phase == Phase.BEFORE and not is_forced and policy.opening != "forbid") or phase == Phase.HEADING:
            opens = self.tables.scalars["header_tokens"]
        elif phase == Phase.BEFORE:
            opens = len(state.policy.sequence(Seq.OPEN if is_forced else Seq.OFF))
        if phase in (Phase.THINKING, Phase.CLOSING) or (phase == Phase.BEFORE and is_forced):
            closes = state.policy.close_room - policy.min_answer_tokens
        needed = opens + closes + policy.min_answer_tokens
        if phase not in (Phase.ANSWERING, Phase.DONE) and max_tokens < needed:
            raise InputError(
                f"max_tokens={max_tokens} is too small: opening, closing and an answer of "
                f"{max(policy.min_answer_tokens, policy.reserve_answer_tokens)} take {needed}; raise max_tokens or lower "
                "reserve_answer_tokens or min_answer_tokens, or shorten close_message or answer_prefix"
            )

    def _left_of_sequence(self, state: ThinkState) -> int:
        """Tokens that are still forced: white space behind a start where the prompt ends, in thinking."""
        now = state.as_dict()
        if now["seq"] == Seq.NONE:
            return 0
        if now["seq"] < Seq.PROGRAM:
            return len(state.policy.sequence(now["seq"], now["pair"])) - now["pos"]
        offsets, at = self.tables.arrays["seq_offset"], now["seq"] - Seq.PROGRAM
        return int(offsets[at + 1] - offsets[at]) - now["pos"]

    def advance(self, state: ThinkState, token_id: int) -> None:
        """Account for one sampled token. An impossible id makes the state inert: nothing is enforced any more.

        InputError for what is no whole number.
        """
        _checked(state).advance(token_id)

    def decide(self, state: ThinkState) -> Action:
        """Say what the sequence's next step needs."""
        return _checked(state).decide()

    def apply(self, states: Sequence[ThinkState] | StateBatch, logits: Any) -> int:
        """Edit logits in place so that each sequence can only go on as its policy allows; row i belongs to state i.

        logits: [num_states, width] of float32, float16 or bfloat16, a numpy array or a torch tensor on the CPU, of any
        strides. Returns in how many rows another processor had banned the token that was due, which is then skipped, or all
        that is legal, which leaves the row as it was.
        """
        if isinstance(states, StateBatch):
            return states.edit(logits)
        try:
            batch = StateBatch(list(states))
        except TypeError:  # no iterable
            raise InputError(f"states is a {type(states).__name__}: wanted a list of states, one for each row") from None
        return batch.edit(logits)

    def explain(
        self,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
        policy: ThinkPolicy | None = None,
        *,
        max_tokens: int | None = None,
        eos_token_ids: Iterable[int] | None = None,
        turn_start: int | None = None,
    ) -> ThinkTrace:
        """Walk a finished output again and say what happened in it; the arguments are those of `start`."""
        state = self.start(prompt_ids, policy, max_tokens=max_tokens, eos_token_ids=eos_token_ids, turn_start=turn_start)
        return explain(state, output_ids, self.vocabulary, self.format)


def _checked(state: ThinkState) -> ThinkState:
    if type(state) is not ThinkState:
        raise InputError(f"state is a {type(state).__name__}, wanted what ThinkProgram.start returns")
    return state


def as_token_ids(name: str, ids: Any) -> npt.NDArray[np.int32]:
    """Return ids as a contiguous int32 array; InputError for anything that is not a row of token ids."""
    if (known := int32_of(name, ids)) is not None:
        return known
    array = row_of(name, ids)
    if len(array) and (array.min() < 0 or array.max() > MOST_ID):
        raise no_id(name, int(array.min() if array.min() < 0 else array.max()))
    return np.require(array, np.int32, ["C", "A"])
