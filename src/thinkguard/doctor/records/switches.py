"""What a record itself says about thinking: a switch in a text, template arguments, a column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from thinkguard.doctor.records.record import Turn

_SLASH: Final = re.compile(r"(?<![\w<./])/(no_?think|think)(?![\w/>])")
_DETAILED: Final = re.compile(r"detailed thinking (on|off)")
_ARGUMENTS: Final = ("enable_thinking", "thinking", "thinking_mode", "reasoning_effort", "reasoning")
_COLUMNS: Final = (
    *("enable_thinking", "thinking_mode", "reasoning_mode", "reasoning", "thinking", "think", "think_mode"),
    *("reasoning_effort", "no_think", "mode"),
)
_COLUMN_NAMES: Final = frozenset(_COLUMNS)
_ON: Final = ("on", "true", "think", "thinking", "enabled", "low", "medium", "high", "yes")
_OFF: Final = (
    "off",
    "false",
    "no_think",
    "nothink",
    "no_thinking",
    "non-thinking",
    "non_thinking",
    "disabled",
    "none",
    "no",
)
_LONGEST: Final = 16  # characters of a value that is a switch, not a text


def switch_of(value: Mapping[str, Any], turns: Sequence[Turn]) -> tuple[bool | None, str]:
    """Return (whether the record says that it thinks, the words that say so); (None, "") if it does not say.

    What is nearest to the model counts: the last switch in a user's text, then a system's, then template arguments, then
    columns of the data set.
    """
    for role in ("user", "system"):
        for turn in reversed(turns):
            if turn.role == role and (found := _in_text(turn.content, role)):
                return found
    arguments = value.get("chat_template_kwargs")
    if arguments and isinstance(arguments, Mapping):
        for name in _ARGUMENTS:
            if name in arguments and (thinks := _meaning(arguments[name])) is not None:
                return thinks, f"chat_template_kwargs {name}={arguments[name]}"
    for name in () if _COLUMN_NAMES.isdisjoint(value) else _COLUMNS:
        if name in value and (thinks := _meaning(value[name])) is not None:
            return (not thinks if name == "no_think" else thinks), f"column {name}={value[name]}"
    return None, ""


def _in_text(text: str, role: str) -> tuple[bool, str] | None:
    """Find the last switch in a text."""
    if role == "system" and "detailed thinking " in text and (found := _DETAILED.findall(text)):
        return found[-1] == "on", f"detailed thinking {found[-1]}"
    if "/" in text and "think" in text and (found := _SLASH.findall(text)):
        return found[-1] == "think", f"/{found[-1]}"
    return None


def _meaning(value: Any) -> bool | None:
    """Return whether a switch's value means thinking; None for a value that is no switch's."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= _LONGEST:
        plain = value.strip().lower()
        return True if plain in _ON else False if plain in _OFF else None
    return None
