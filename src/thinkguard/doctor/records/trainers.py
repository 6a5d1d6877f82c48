"""What each trainer reads of a record, by its source."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final, Literal

from thinkguard.errors import InputError

MESSAGE_FIELDS: Final = frozenset(
    ("reasoning_content", "reasoning", "thinking", "thinking part", "reasoning part", "role reasoning")
)
"""Places inside of messages that some chat templates read; rendering shows whether the one at hand does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """One trainer's reader, with its defaults."""

    name: str
    title: str  # as it is spelled in prose: "LLaMA-Factory"
    fields: frozenset[str]  # places of reasoning (Turn.place) inside a message that get to the template
    replaces_tool_turns: bool  # whether `tool_calls` take the place of the content beside them
    cutoff: int | None  # the default length limit in tokens, None: the model's
    cutoff_name: str  # the option: "cutoff_len"
    cuts: Literal["end", "drop"]  # what happens to a longer record: its end is cut off, or it is left out
    loss: Literal["last", "assistant", "completion", "all"]  # where the loss is by default
    uses_template: bool  # whether the checkpoint's own chat template renders the text
    source: str  # where that was read

    def reads(self, place: str) -> bool:
        """Whether reasoning that stands in `place` (Turn.place) reaches the training text."""
        return place in self.fields


_ALL: Final = (
    Trainer(
        name="llamafactory",
        title="LLaMA-Factory",
        fields=frozenset(),
        replaces_tool_turns=True,
        cutoff=2048,
        cutoff_name="cutoff_len",
        cuts="end",
        loss="assistant",
        uses_template=False,
        source="src/llamafactory/data/converter.py, data/template.py, data/processor/supervised.py, hparams/data_args.py",
    ),
    Trainer(
        name="trl",
        title="TRL",
        fields=MESSAGE_FIELDS,
        replaces_tool_turns=False,
        cutoff=1024,
        cutoff_name="max_length",
        cuts="end",
        loss="all",
        uses_template=True,
        source="trl/trainer/sft_trainer.py tokenize_fn, trl/trainer/sft_config.py, of 1.16",
    ),
    Trainer(
        name="ms-swift",
        title="ms-swift",
        fields=frozenset(),
        replaces_tool_turns=False,
        cutoff=None,
        cutoff_name="max_length",
        cuts="drop",
        loss="assistant",
        uses_template=False,
        source="swift/llm/dataset/preprocessor/core.py, docs: Command-line-parameters (truncation_strategy)",
    ),
    Trainer(
        name="axolotl",
        title="axolotl",
        fields=MESSAGE_FIELDS,
        replaces_tool_turns=False,
        cutoff=512,
        cutoff_name="sequence_len",
        cuts="drop",
        loss="assistant",
        uses_template=True,
        source="src/axolotl/prompt_strategies/chat_template.py transform_message, docs: config reference",
    ),
    Trainer(
        name="openai",
        title="OpenAI fine-tuning",
        fields=frozenset(),
        replaces_tool_turns=False,
        cutoff=65_536,
        cutoff_name="the model's training context",
        cuts="end",
        loss="assistant",
        uses_template=False,
        source="OpenAI's guide to supervised fine-tuning: messages with role, content, tool_calls, weight",
    ),
)
TRAINERS: Final = {trainer.name: trainer for trainer in _ALL}


def trainer_of(name: str) -> Trainer:
    """Return a trainer by name. InputError naming the nearest."""
    if name not in TRAINERS:
        plain = {known.replace("-", ""): known for known in TRAINERS}
        near = difflib.get_close_matches(name.lower().replace("-", "").replace("_", ""), plain, 1, 0.5)
        hint = f"did you mean {plain[near[0]]!r}? " if near else ""
        raise InputError(f"trainer {name!r} is unknown: {hint}known are {', '.join(TRAINERS)}")
    return TRAINERS[name]
