"""A training record or a saved output, whatever file and format it comes from, as turns that the checks can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

Role = Literal["system", "user", "assistant", "tool"]
Shape = Literal["text", "parts", "none"]  # how a turn's content came: a string, a list of parts, null or absent
Kind = Literal["training", "output", "tokenized"]


@dataclass(slots=True)
class Turn:
    """One message."""

    role: Role
    content: str  # the text; of parts, the text parts one after the other
    reasoning: str | None = None  # reasoning that stands outside the content
    place: str = ""  # where that is: "reasoning_content", "thinking part", "column Complex_CoT", "role reasoning"
    read: bool = True  # whether the trainer reads that place
    shape: Shape = "text"
    calls: int = 0  # tool calls
    calls_beside: bool = False  # whether those stand in `tool_calls`, beside the content, and not in it


@dataclass(slots=True)
class Record:
    """One conversation; the last assistant turn is what is learned, or what was generated."""

    turns: list[Turn]
    kind: Kind = "training"
    thinks: bool | None = None  # what the record itself says about thinking: a switch, a column, a system text
    switch: str = ""  # the words that say so, such as "/no_think"
    finish: str | None = None  # of an output: "stop", "length", "tool_calls"
    prompt: str = ""  # of an output: the rendered prompt, if it was saved
    raw: Mapping[str, Any] = field(default_factory=dict)  # the record as it was read; a mender writes it back changed


class Hit(NamedTuple):
    """One thing found in one record; hits are counted by (check, kind)."""

    check: str  # a name of the catalogue
    kind: str  # the class within the check: "start without end"
    excerpt: str  # what was seen, at most 160 characters, the spot between ⟦ and ⟧


# What a data set holds, counted per record: a template's hazard is a problem only where the data meet it.
WITH_REASONING: Final = "records with reasoning"
WITHOUT_REASONING: Final = "records without reasoning"
EARLIER_REASONING: Final = "records with reasoning in an earlier turn"
TOOL_REASONING: Final = "records with reasoning in a turn with tool calls"
IN_FIELD: Final = "records with reasoning in "  # + Turn.place
INLINE: Final = "records with reasoning in the content"  # in the family's own markers
MISSPELLED: Final = f"{INLINE}, see "  # + the check that says how: in markers that are not the family's own
PARTS: Final = "records with content as parts"
NO_CONTENT: Final = "records with an assistant turn without content"
LITERAL: Final = "records with a marker in an answer or a question"
HALF_OPEN: Final = "records with a start and no end"
OUTPUT_IN: Final = "outputs with reasoning in "  # + Turn.place
