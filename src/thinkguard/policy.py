"""ThinkPolicy: what one request asks of its thinking and its answer."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from thinkguard.errors import PolicyError

CHOICES: dict[str, tuple[str, ...]] = {
    "close_at": ("line", "sentence"),
    "on_eos": ("close", "ban"),
    "budget_per": ("turn", "block"),
    "opening": ("force", "allow", "forbid", "auto"),
    "markers_in_answer": ("ban", "allow"),
    "answer_prefix_on": ("any", "forced"),
}
# field -> (lowest, highest or None, may be None)
COUNTS: dict[str, tuple[int, int | None, bool]] = {
    "max_thinking_tokens": (0, None, True),
    "min_thinking_tokens": (0, None, False),
    "grace_tokens": (0, None, False),
    "soft_thinking_tokens": (0, None, True),
    "max_extensions": (0, None, False),
    "max_think_blocks": (1, None, False),
    "min_answer_tokens": (0, None, False),
    "max_answer_tokens": (1, None, True),
    "reserve_answer_tokens": (0, None, False),
    "loop_tokens": (0, 256, False),
}
MOST = 2**30  # counts stay far inside int32, so that sums of two of them do too
MAX_MESSAGE_BYTES = 1024  # of UTF-8, in each message of a served request: engines keep a table of this many tokens per slot
_LONGEST_SHOWN = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkPolicy:
    """What one request asks for. Frozen; a field that contradicts another one raises PolicyError when it is made.

    Limits are in tokens. Thinking is counted per turn, over all its blocks, what the prompt already holds included, but for
    the maximum and the bias under `budget_per="block"`; forced tokens are not counted.
    """

    max_thinking_tokens: int | None = None  # the model samples at most this many; the close sequence comes on top
    budget_per: Literal["turn", "block"] = "turn"  # whether each block of interleaved thinking has its own maximum
    min_thinking_tokens: int = 0  # until then the end marker cannot be completed
    grace_tokens: int = 0  # within the last ones before the cap, close at the first boundary
    close_at: Literal["line", "sentence"] = "line"
    close_message: str = ""  # said before the end marker, only when the guard closes
    soft_thinking_tokens: int | None = None  # from here on the end marker's logit rises ...
    close_bias: float = 0.0  # ... linearly, by this much at the cap
    extend_message: str | None = None  # said in place of an end that comes before min_thinking_tokens ("Wait")
    max_extensions: int = 0
    on_eos: Literal["close", "ban"] = "close"  # EOS while thinking: ends the thinking, or is banned
    opening: Literal["force", "allow", "forbid", "auto"] = "auto"  # auto: force, but where the prompt may say not to think
    max_think_blocks: int = 1  # more allow interleaved thinking
    min_answer_tokens: int = 1  # visible tokens before EOS is allowed
    max_answer_tokens: int | None = None
    reserve_answer_tokens: int = 0  # kept free of thinking where max_tokens is known
    loop_tokens: int = 0  # close when the last ones repeat with a period of at most a quarter of them; 0: off
    markers_in_answer: Literal["ban", "allow"] = "ban"
    answer_prefix: str = ""  # said right behind the end marker: the answer begins with it
    answer_prefix_on: Literal["any", "forced"] = "any"  # behind every end, or only where the guard closes

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in POLICY_FIELDS}
        for name, value in values.items():
            check_value(name, value)
        for _, message in contradictions(values):
            raise PolicyError(message)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ThinkPolicy:
        """Make a policy from a dict, as configuration files and requests hold it; an unknown field names the nearest."""
        check_names(values)
        return cls(**values)


POLICY_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(ThinkPolicy))
POLICY_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(ThinkPolicy)}


def check_names(values: Mapping[str, Any], also: tuple[str, ...] = ()) -> None:
    """Raise PolicyError for a name that is no field of ThinkPolicy nor one of `also`."""
    known = (*POLICY_FIELDS, *also)
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(known)}"
            raise PolicyError(f"unknown policy field {shown(name)}: {hint}")


def check_value(name: str, value: object) -> None:
    """Raise PolicyError for a value that a field cannot have, whatever the other fields are."""
    if name in COUNTS:
        lowest, highest, optional = COUNTS[name]
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            none = " or None" if optional else ""
            raise PolicyError(f"{name}={shown(value)}: must be a whole number of tokens{none}")
        if not lowest <= value <= (highest or MOST):
            raise PolicyError(f"{name}={shown(value)}: must lie between {lowest} and {highest or MOST}")
        if name == "loop_tokens" and 0 < value < 4:
            raise PolicyError(f"loop_tokens={value}: must be 0 (off) or between 4 and 256")
    elif name in CHOICES:
        choices = CHOICES[name]
        if not isinstance(value, str) or value not in choices:
            near = difflib.get_close_matches(str(value), choices, 1) if isinstance(value, str) else ()
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise PolicyError(f"{name}={shown(value)}: must be one of {', '.join(map(repr, choices))}{hint}")
    elif name == "close_bias":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e6:
            raise PolicyError(f"close_bias={shown(value)}: must be a number of logits between 0 and 1,000,000")
    else:
        _check_message(name, value)


def _check_message(name: str, value: object) -> None:
    if name in ("close_message", "answer_prefix") and not isinstance(value, str):
        raise PolicyError(f"{name}={shown(value)}: must be a string; leave it out for none")
    if name == "extend_message" and value is not None and (not isinstance(value, str) or not value):
        raise PolicyError(f"extend_message={shown(value)}: must be a string with text in it, or None")
    if isinstance(value, str) and value.encode("utf-8", "ignore").decode() != value:
        raise PolicyError(f"{name}={shown(value)}: holds half a surrogate pair, which no token spells; write it whole")


def contradictions(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield (the two fields, what is wrong and the remedy) wherever possible values do not go together.

    values: all fields. Of the two fields the first depends on the second.
    """
    most, least = values["max_thinking_tokens"], values["min_thinking_tokens"]
    grace, soft, bias = values["grace_tokens"], values["soft_thinking_tokens"], values["close_bias"]
    extend, extensions = values["extend_message"], values["max_extensions"]
    if most is not None and least > most:
        message = f"min_thinking_tokens={least} exceeds max_thinking_tokens={most}: lower it to {most} or less"
        yield ("min_thinking_tokens", "max_thinking_tokens"), message
    if grace and most is None:
        message = f"grace_tokens={grace} needs a cap to precede: set max_thinking_tokens"
        yield ("grace_tokens", "max_thinking_tokens"), message
    if most is not None and grace > most:
        message = f"grace_tokens={grace} exceeds max_thinking_tokens={most}: lower it to {most} or less"
        yield ("grace_tokens", "max_thinking_tokens"), message
    if (soft is None) != (bias == 0):
        message = f"soft_thinking_tokens={soft} with close_bias={bias}: set both or neither"
        yield ("close_bias", "soft_thinking_tokens"), message
    if soft is not None and (most is None or soft >= most):
        message = f"soft_thinking_tokens={soft} must lie below max_thinking_tokens={most}: the bias is whole at the cap"
        yield ("soft_thinking_tokens", "max_thinking_tokens"), message
    if soft is not None and soft < least:
        message = (
            f"soft_thinking_tokens={soft} lies below min_thinking_tokens={least}, where the end is banned: "
            f"raise it to {least}"
        )
        yield ("soft_thinking_tokens", "min_thinking_tokens"), message
    if (extend is None) != (extensions == 0):
        message = f"extend_message={shown(extend)} with max_extensions={extensions}: set both or neither"
        yield ("extend_message", "max_extensions"), message
    if extensions and not least:
        message = (
            f"max_extensions={extensions} never applies with min_thinking_tokens=0: set min_thinking_tokens to how long the "
            "thinking should be before it may end"
        )
        yield ("max_extensions", "min_thinking_tokens"), message
    if values["opening"] == "forbid" and least:
        message = f"opening='forbid' with min_thinking_tokens={least}: thinking that is forbidden has no minimum"
        yield ("min_thinking_tokens", "opening"), message
    yield from _block_contradictions(values)
    answer = values["max_answer_tokens"]
    for name in ("min_answer_tokens", "reserve_answer_tokens"):
        if answer is not None and values[name] > answer:
            message = f"{name}={values[name]} exceeds max_answer_tokens={answer}: lower it to {answer} or less"
            yield (name, "max_answer_tokens"), message


def _block_contradictions(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    blocks = values["max_think_blocks"]
    if values["opening"] == "forbid" and blocks > 1:
        message = f"opening='forbid' with max_think_blocks={blocks}: no block is allowed at all; leave it at 1"
        yield ("max_think_blocks", "opening"), message
    if values["markers_in_answer"] == "allow" and blocks > 1:
        message = (
            f"markers_in_answer='allow' with max_think_blocks={blocks}: a quoted marker cannot be told from a new block; "
            "choose one of the two"
        )
        yield ("max_think_blocks", "markers_in_answer"), message


def shown(value: object) -> str:
    """Spell a value for an error message, cut off where it would flood one."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(text)} characters)"
