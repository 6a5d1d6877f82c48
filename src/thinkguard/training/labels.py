"""What the labels of training examples teach about the tags, before a step is spent on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from thinkguard.core.program import ThinkProgram
from thinkguard.training.places import IGNORED, Example, Turns, places, stretches

_PADDED: Final = ("input_ids", "labels", "position_ids", "attention_mask")


@dataclass(frozen=True, slots=True)
class LabelReading:
    """How many training rows teach each marker, and how many fail to."""

    num_rows: int
    with_start: int  # the start marker is learnt
    with_end: int
    with_turn_end: int
    masked_start: int  # the start marker is there, but not learnt
    masked_end: int
    unclosed: int  # thinking that is learnt and never ends, though the turn does
    cut: int  # thinking inside which the row breaks off
    longest: int  # tokens of the longest row
    opened: int  # 1 if the generation prompt opens the thinking, so that the start need not be learnt, else 0

    @property
    def unlabelled(self) -> float:
        """The share of the rows that teach no end marker."""
        return 1 - self.with_end / self.num_rows if self.num_rows else 0.0

    def metrics(self) -> dict[str, float]:
        """Shares of the rows, for a log."""
        names = ("with_start", "with_end", "with_turn_end", "masked_start", "masked_end", "unclosed", "cut")
        return {f"labels_{name}": getattr(self, name) / max(self.num_rows, 1) for name in names}

    def as_dict(self) -> dict[str, int]:
        """The fields as plain JSON types."""
        return asdict(self)


def examples_of(batch: Mapping[str, Any]) -> Iterator[Example]:
    """Take a collated batch apart into its examples; a packed row gives one for each of its documents.

    input_ids, labels: [num_rows, length], or [length]. `attention_mask` tells the padding, and `position_ids` that start
    again tell where the next document begins.
    """
    ids, labels = batch.get("input_ids"), batch.get("labels")
    if ids is None or labels is None:
        return
    columns = {name: _lists(batch[name]) for name in _PADDED if batch.get(name) is not None and _plain(batch[name])}
    for i, (token_ids, token_labels) in enumerate(zip(columns["input_ids"], columns["labels"], strict=True)):
        length = len(token_ids)
        mask = columns["attention_mask"][i] if "attention_mask" in columns else [1] * length
        mask = mask if len(mask) == length else [1] * length
        tokens = [t for t in range(length) if mask[t]]
        positions = columns["position_ids"][i] if "position_ids" in columns else []
        starts = [t for t in tokens if len(positions) == length and positions[t] == 0 and t != tokens[0]]
        for begin, end in zip([0, *starts], [*starts, length], strict=True):
            part = [t for t in tokens if begin <= t < end]
            if part:
                yield Example(tuple(int(token_ids[t]) for t in part), tuple(int(token_labels[t]) for t in part))


def _plain(column: Any) -> bool:
    """Whether a column has one number per token: attention masks of 4 dimensions and position ids of 3 do not."""
    return getattr(column, "ndim", 2) <= 2


def _lists(column: Any) -> list[list[int]]:
    plain = column.tolist() if hasattr(column, "tolist") else list(column)
    return plain if plain and isinstance(plain[0], list) else [plain]


def read_labels(program: ThinkProgram, turns: Turns, examples: Iterable[Example]) -> LabelReading:
    """Count what the examples teach."""
    counts = dict.fromkeys(("start", "end", "turn_end", "masked_start", "masked_end", "unclosed", "cut"), 0)
    num = longest = 0
    for example in examples:
        num, longest = num + 1, max(longest, len(example.ids))
        for name in _lessons(program, turns, example):
            counts[name] += 1
    return LabelReading(
        num_rows=num,
        with_start=counts["start"],
        with_end=counts["end"],
        with_turn_end=counts["turn_end"],
        masked_start=counts["masked_start"],
        masked_end=counts["masked_end"],
        unclosed=counts["unclosed"],
        cut=counts["cut"],
        longest=longest,
        opened=int(turns.opens),
    )


def _lessons(program: ThinkProgram, turns: Turns, example: Example) -> set[str]:
    """Return what one example teaches, or fails to: keys of the counts in `read_labels`."""
    lessons: set[str] = set()
    for begin, end in stretches(program, turns, example):
        open_at: int | None = None
        ended = False
        for place in places(program, example.ids, begin, end):
            learnt = all(label != IGNORED for label in example.labels[place.begin : place.end])
            if learnt:
                lessons.add(place.marker)
            elif place.marker != "turn_end" and any(label != IGNORED for label in example.labels[place.end : end]):
                lessons.add(f"masked_{place.marker}")
            if place.marker == "start" and any(label != IGNORED for label in example.labels[place.begin : end]):
                open_at = place.begin
            elif place.marker == "end":
                open_at = None
            ended |= place.marker == "turn_end"
        if open_at is not None:
            lessons.add("unclosed" if ended or end < len(example.ids) else "cut")
    return lessons


def spread(length: int, num: int) -> Sequence[int]:
    """At most `num` indices spread evenly over `length`."""
    return range(length) if length <= num else [i * length // num for i in range(num)]
