"""From a raw record, in whatever shape it was published or logged, to turns that the checks can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from thinkguard.doctor.records.column_shapes import answer_turn, answers_of, combined, names_of, prompt_turns, unknown_shape
from thinkguard.doctor.records.conversations import turns_of
from thinkguard.doctor.records.dataset_info import Columns
from thinkguard.doctor.records.llamafactory import ADDED, llamafactory_turns, skipped, switched_off
from thinkguard.doctor.records.logs import is_output, outputs_of
from thinkguard.doctor.records.record import Record, Turn
from thinkguard.doctor.records.rendered import turns_of_text
from thinkguard.doctor.records.switches import switch_of
from thinkguard.doctor.records.trainers import trainer_of
from thinkguard.doctor.records.turns import Reads, ShapeError

_CONTAINERS: Final = (
    *("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "reannotated_messages"),
)
NOTHING: Final = "nothing"
"""The shape of a file in which no record was recognised."""


@dataclass(slots=True)
class RecordReader:
    """Reads the records of one file; picklable.

    A preference pair is read as what is chosen: what is rejected need not be well-formed. A row with a label (KTO) is
    read whichever its label, and of several answers to one question `read` takes the first.
    """

    trainer: str | None = None
    columns: Columns | None = None
    shape: str = NOTHING  # what was recognised: "messages", "sharegpt", "alpaca", "prompt/completion", ...
    _reads: Reads = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._reads = None if self.trainer is None else trainer_of(self.trainer).fields

    def read(self, value: Mapping[str, Any]) -> Record | str:
        """Make a Record; a str says why it cannot be read."""
        try:
            return self._read(value)[1]
        except ShapeError as error:
            return str(error)

    def read_all(self, value: Mapping[str, Any]) -> list[Record | str]:
        """Like `read`, with a Record for each of several answers (`generations`, `choices`)."""
        try:
            shape, record = self._read(value)
            if record.kind == "output":
                return [*outputs_of(value, self._reads)]
            if shape == "several answers":
                texts = answers_of(value, names_of(tuple(value)))
                return [self._record(value, [*record.turns[:-1], Turn("assistant", text)]) for text in texts]
        except ShapeError as error:
            return [str(error)]
        return [record]

    def shape_of(self, value: Mapping[str, Any]) -> str:
        """Name the shape of one record; "" if it has none."""
        try:
            return self._read(value)[0]
        except ShapeError:
            return ""

    def _read(self, value: Mapping[str, Any]) -> tuple[str, Record]:
        if "input_ids" in value and isinstance(value["input_ids"], Sequence):
            return "input_ids/labels" if "labels" in value else "input_ids", Record([], "tokenized", raw=value)
        if self.columns is not None:
            turns = llamafactory_turns(value, self.columns, self._reads)
            record = self._record(value, turns)
            if record.thinks is not False and switched_off(value, self.columns, turns):
                record.thinks, record.switch = False, ADDED
            return f"{self.columns.formatting}, by dataset_info.json", record
        if is_output(value) and (records := outputs_of(value, self._reads)):
            return "saved output", records[0]
        shape, turns = self._turns(value)
        return shape, self._record(value, turns)

    def _record(self, value: Mapping[str, Any], turns: list[Turn]) -> Record:
        thinks, switch = switch_of(value, turns)
        return Record(turns, "training", thinks, switch, raw=value)

    def _turns(self, value: Mapping[str, Any]) -> tuple[str, list[Turn]]:
        """Recognise the keys, the most telling first."""
        reads = self._reads
        if "chosen" in value and not isinstance(value["chosen"], (int, float)):
            return "preference pair", _preferred(value, reads)
        for name in _CONTAINERS:
            if name in value and value[name] is not None:
                return self._conversation(name, value)
        if "row" in value and isinstance(value["row"], Mapping):  # as the Hub's viewer hands rows out
            return self._turns(value["row"])
        names = names_of(tuple(value))
        if found := answer_turn(value, names, reads):
            turns, source = found
            if names.question:
                return _column_shape(value, source), [*prompt_turns(value, names, reads), *turns]
        if names.question and (turn := combined(value, reads)):
            return "thought and solution", [*prompt_turns(value, names, reads), turn]
        if names.question and (answers := answers_of(value, names)):
            return "several answers", [*prompt_turns(value, names, reads), Turn("assistant", answers[0])]
        if isinstance(value.get("text"), str):
            return "text", turns_of_text(value["text"])
        if isinstance(value.get("prompt"), list):
            return "prompts", turns_of(value["prompt"], reads)
        raise unknown_shape(value)

    def _conversation(self, name: str, value: Mapping[str, Any]) -> tuple[str, list[Turn]]:
        turns = turns_of(value[name], self._reads)
        first = value[name][0] if isinstance(value[name], list) else None
        shape = "sharegpt" if isinstance(first, dict) and "from" in first else name
        if turns[-1].role != "assistant":  # some sets keep the answer beside the prompt
            found = answer_turn(value, names_of(tuple(value)), self._reads)
            if found and any(turn.reasoning or turn.content for turn in found[0]):
                turns += found[0]
                shape = f"{shape} with columns {found[1]}"
        if turns[0].role != "system":
            system = value.get("system") or value.get("system_prompt")
            if isinstance(system, str):
                turns.insert(0, Turn("system", system))
        if self.trainer == "llamafactory" and (why := skipped(turns, merges=shape != "sharegpt")):
            raise ShapeError(why)
        return shape, turns


def _preferred(value: Mapping[str, Any], reads: Reads) -> list[Turn]:
    """Read the chosen answer, a text, a message or a whole conversation, after its prompt."""
    chosen = value["chosen"]
    if isinstance(chosen, Mapping):
        chosen = [chosen]
    turns = turns_of(chosen, reads) if isinstance(chosen, list) else turns_of_text(chosen) if isinstance(chosen, str) else []
    if not turns:
        raise ShapeError(f"chosen is {chosen!r:.40}: wanted is a text, a message or a list of messages")
    if any(turn.role == "user" for turn in turns):
        return turns
    for name in _CONTAINERS:
        if isinstance(value.get(name), list) and value[name]:
            return [*turns_of(value[name], reads), *turns]
    return [*prompt_turns(value, names_of(tuple(value)), reads), *turns]


def _column_shape(value: Mapping[str, Any], source: str) -> str:
    if "instruction" in value:
        return "alpaca" if source == "output" else f"instruction and {source}"
    if "prompt" in value and source == "completion":
        return "prompt/completion"
    return f"columns {source}"


def reader_of(sample: Sequence[Mapping[str, Any]], *, trainer: str | None, columns: Columns | None) -> RecordReader:
    """Make the reader of a file, and name its shape by its first records.

    `columns` are LLaMA-Factory's and count for no other trainer. Records of other shapes in the same file are read too.
    """
    reader = RecordReader(trainer, columns if trainer in (None, "llamafactory") else None)
    shapes = Counter(filter(None, map(reader.shape_of, sample)))
    if shapes:
        reader.shape = shapes.most_common(1)[0][0]
    return reader
