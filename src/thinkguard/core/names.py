"""The header's enums under Python's names; their values are read from the compiled core, the only place that has them."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from thinkguard.core._core import CONSTANTS as _C
from thinkguard.core._core import STATE_FIELDS as _STATE_FIELDS


class Kind(IntFlag):
    """What a marker is."""

    START = _C["START"]
    END = _C["END"]
    ANSWER = _C["ANSWER"]
    IMPLICIT = _C["IMPLICIT"]
    SPELLED = _C["SPELLED"]
    TOOL = _C["TOOL"]
    BODY = _C["BODY"]
    HEADER = _C["HEADER"]
    CALL_END = _C["CALL_END"]
    RECIPIENT = _C["RECIPIENT"]
    MULTI = _C["MULTI"]
    GROWS_END = _C["GROWS_END"]
    EXTENDS = _C["EXTENDS"]
    BEGINS_END = _C["BEGINS_END"]
    HALF_START = _C["HALF_START"]
    HALF_END = _C["HALF_END"]


class TokenInfo(IntFlag):
    """What a token is: the low byte of the table `info`."""

    TEXT = _C["TEXT"]
    VISIBLE = _C["VISIBLE"]
    INERT = _C["INERT"]
    BOUNDARY = _C["BOUNDARY"]
    RAW = _C["RAW"]
    MARKUP = _C["MARKUP"]


class Phase(IntEnum):
    """Where a sequence stands."""

    BEFORE = _C["BEFORE"]
    THINKING = _C["THINKING"]
    CLOSING = _C["CLOSING"]
    HEADING = _C["HEADING"]
    ANSWERING = _C["ANSWERING"]
    DONE = _C["DONE"]


class ClosedBy(IntEnum):
    """What ended the thinking."""

    NONE = _C["BY_NONE"]
    MODEL = _C["BY_MODEL"]
    BUDGET = _C["BY_BUDGET"]
    BOUNDARY = _C["BY_BOUNDARY"]
    LOOP = _C["BY_LOOP"]
    IMPLICIT = _C["BY_IMPLICIT"]
    PROMPT = _C["BY_PROMPT"]


class Body(IntEnum):
    """What a channel format's message is."""

    NONE = _C["BODY_NONE"]
    FREE = _C["BODY_FREE"]
    FINAL = _C["BODY_FINAL"]
    CALL = _C["BODY_CALL"]
    PREAMBLE = _C["BODY_PREAMBLE"]


class StateFlag(IntFlag):
    """What is noted of a sequence beside its counters."""

    INERT = _C["STATE_INERT"]
    LOOP = _C["STATE_LOOP"]
    RECIPIENT = _C["STATE_RECIPIENT"]
    VIOLATION = _C["STATE_VIOLATION"]
    FORCED = _C["STATE_FORCED"]
    OPENS = _C["STATE_OPENS"]
    NO_CHAT = _C["STATE_NO_CHAT"]
    MARKUP = _C["STATE_MARKUP"]
    PARAGRAPH = _C["STATE_PARAGRAPH"]
    SPOKEN = _C["STATE_SPOKEN"]
    BARE = _C["STATE_BARE"]


class Seq(IntEnum):
    """Sequences of tokens that may be forced: a policy's own, and the number of the program's first."""

    NONE = _C["SEQ_NONE"]
    OPEN = _C["SEQ_OPEN"]
    CLOSE = _C["SEQ_CLOSE"]
    OFF = _C["SEQ_OFF"]
    EXTEND = _C["SEQ_EXTEND"]
    BARE = _C["SEQ_BARE"]
    PREFIX = _C["SEQ_PREFIX"]
    PROGRAM = _C["SEQ_PROGRAM"]


class ActionKind(IntEnum):
    """What the next step of a sequence needs."""

    FREE = _C["FREE"]
    FORCE = _C["FORCE"]
    EDIT = _C["EDIT"]
    ALLOW = _C["ALLOW"]


class Opening(IntEnum):
    """`ThinkPolicy.opening`, in lower case."""

    FORCE = _C["OPEN_FORCE"]
    ALLOW = _C["OPEN_ALLOW"]
    FORBID = _C["OPEN_FORBID"]
    AUTO = _C["OPEN_AUTO"]


class OnEos(IntEnum):
    """`ThinkPolicy.on_eos`, in lower case."""

    CLOSE = _C["EOS_CLOSE"]
    BAN = _C["EOS_BAN"]


class CloseAt(IntEnum):
    """`ThinkPolicy.close_at`, in lower case."""

    LINE = _C["AT_LINE"]
    SENTENCE = _C["AT_SENTENCE"]


class BudgetPer(IntEnum):
    """`ThinkPolicy.budget_per`, in lower case."""

    TURN = _C["PER_TURN"]
    BLOCK = _C["PER_BLOCK"]


class AnswerPrefixOn(IntEnum):
    """`ThinkPolicy.answer_prefix_on`, in lower case."""

    ANY = _C["PREFIX_ANY"]
    FORCED = _C["PREFIX_FORCED"]


class MarkersInAnswer(IntEnum):
    """`ThinkPolicy.markers_in_answer`, in lower case."""

    BAN = _C["MARKERS_BAN"]
    ALLOW = _C["MARKERS_ALLOW"]


class Dtype(IntEnum):
    """Types of logits, as numpy and torch spell them in lower case."""

    FLOAT32 = _C["FLOAT32"]
    FLOAT16 = _C["FLOAT16"]
    BFLOAT16 = _C["BFLOAT16"]


STATE_FIELDS: tuple[str, ...] = _STATE_FIELDS
"""A tg_state's, in its order; `ThinkState.as_dict` has the same."""
NO_LIMIT = _C["NO_LIMIT"]
MAX_EOS = _C["MAX_EOS"]
