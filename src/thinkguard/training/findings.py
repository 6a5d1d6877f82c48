"""What a reading means: findings, each with its likely cause and the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from thinkguard.core.program import ThinkProgram
from thinkguard.training.labels import LabelReading
from thinkguard.training.model import MarkerReading
from thinkguard.training.places import Marker, Turns
from thinkguard.training.samples import CLASSES, Sample, SampleClass
from thinkguard.vocabulary import TokenFlag

_SOME: Final = 0.02  # share of the rows from which on there is a finding
_MANY: Final = 0.5  # share of the samples
_LEARNT: Final = 0.8  # answers are learnt once their loss is below this share of the first one
_RARE: Final = 0.1  # an end marker of a lower probability will hardly be sampled
_GROWN: Final = 2.0  # times its first probability
_PATIENCE: Final = 3  # readings before a probability that does not grow is a finding


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that will cost, or has cost, the model its tags; with the likely cause and the remedy."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class TagReading:
    """What one check found."""

    step: int
    markers: Mapping[Marker, MarkerReading]  # those that have places in the examples
    answer_loss: float | None  # mean per token
    samples: tuple[Sample, ...]  # empty if none were taken
    seconds: float  # that the check took
    findings: tuple[Finding, ...] = ()  # those that no earlier check had

    def share(self, name: str) -> float:
        """The share of a class among all samples; one that only reached its token limit counts for no class."""
        hits = sum(sample.name == name and not sample.open_at_limit for sample in self.samples)
        return hits / len(self.samples) if self.samples else 0.0

    @property
    def open_at_limit(self) -> float:
        """The share of the samples that reached their token limit before the answer."""
        return sum(sample.open_at_limit for sample in self.samples) / len(self.samples) if self.samples else 0.0

    def metrics(self) -> dict[str, float]:
        """The reading as numbers for a log, without what was not read. The shares of the six classes add up to 1."""
        values = {"seconds": self.seconds}
        for marker, reading in self.markers.items():
            values |= {f"p_{marker}": reading.probability, f"loss_{marker}": reading.loss}
        if self.answer_loss is not None:
            values["loss_answer"] = self.answer_loss
        if self.samples:
            values |= {name: sum(s.name == name for s in self.samples) / len(self.samples) for name in CLASSES}
            values["open_at_limit"] = self.open_at_limit
        return values

    def as_dict(self) -> dict[str, Any]:
        """The reading as plain JSON types."""
        return asdict(self)


def label_findings(program: ThinkProgram, turns: Turns, reading: LabelReading) -> Iterator[Finding]:
    """Say what the labels will cost, each with its likely cause."""
    format, num = program.format, reading.num_rows
    start, end = format.starts[0], format.ends[0]
    special = [m for m in (start, end) if _is_special(program, m) and m not in format.controls]
    if special:
        yield Finding(
            "special",
            f"{' and '.join(map(repr, special))}: registered as special, so decoding with skip_special_tokens=True, the "
            "default of most servers and pipelines, deletes them from the output: add them as tokens that are not special "
            "(thinkguard doctor --fix-tokenizer)",
        )
    if not num:
        yield Finding("no-labels", "no labelled row could be looked at, so what is learnt is not known: pass records=")
        return
    num_with_end = reading.with_end + reading.masked_end
    if not reading.with_end and not reading.masked_end and not reading.cut and not reading.unclosed:
        yield Finding("no-end", f"no {end!r} in any label of {num} rows: {why_absent(turns)}")
        return
    if reading.masked_end > reading.with_end:
        what = f"{end!r} is" if reading.masked_start <= reading.with_start else f"{start!r} and {end!r} are"
        yield Finding(
            "masked-end",
            f"{what} masked (-100) in {reading.masked_end} of {num} rows, so the model does not learn to close: look at "
            "the response template, the assistant mask or the loss scale of the trainer",
        )
    elif reading.masked_start > reading.with_start and not turns.opens:
        yield Finding(
            "masked-start",
            f"{start!r} is masked (-100) in {reading.masked_start} of {num} rows, while the generation prompt does not open "
            "the thinking: the model has to write it, but does not learn to. Begin the loss in front of it, or serve with a "
            "prompt that opens",
        )
    if reading.cut > _SOME * num:
        yield Finding(
            "cut",
            f"{reading.cut} of {num} rows break off inside the thinking, the longest at {reading.longest} tokens: cut at "
            "max_length (cutoff_len); raise it or leave such records out, for they teach not to close",
        )
    if reading.unclosed > _SOME * num:
        yield Finding(
            "unclosed",
            f"{reading.unclosed} of {num} rows hold {start!r}, no {end!r}, and a turn end: records without an end; "
            "thinkguard audit FILES names them",
        )
    if num_with_end and not reading.with_turn_end:
        yield Finding(
            "no-turn-end",
            f"no end of turn in any label of {num} rows, so the model does not learn to stop: look at eos_token, and at "
            "whether the template's last token is in the loss",
        )


def why_absent(turns: Turns) -> str:
    """Say why no label holds an end marker, as far as the chat template tells."""
    if turns.keeps is False:
        return (
            "the chat template drops the reasoning of the turn that is learnt; thinkguard doctor --fix-template mends it. "
            "The model will learn to answer without thinking"
        )
    if turns.keeps is None:
        return (
            "the chat template drops the reasoning, or the records hold none; thinkguard doctor PATH --data FILE says "
            "which. The model will learn to answer without thinking"
        )
    return (
        "the chat template keeps what stands in the content, so the records hold no reasoning, or hold it in a field that "
        "the template or the trainer does not read; thinkguard doctor PATH --data FILE says which. The model will learn to "
        "answer without thinking"
    )


def _is_special(program: ThinkProgram, marker: str) -> bool:
    token_id = program.vocabulary.added.get(marker)
    return token_id is not None and bool(program.vocabulary.flags[token_id] & TokenFlag.SPECIAL)


def reading_findings(
    program: ThinkProgram,
    turns: Turns,
    labels: LabelReading | None,
    readings: Sequence[TagReading],
    patience: int,
    trains_embeddings: bool,
) -> Iterator[Finding]:
    """Judge the last of the readings; `readings` are all of them, in order."""
    last = readings[-1]
    if is_stuck(readings):
        end = last.markers["end"]
        yield Finding(
            "stuck",
            f"the probability of {program.format.ends[0]!r} stays at {end.probability:.2g} (loss {end.loss:.2f}) while the "
            f"answers are learnt (loss {last.answer_loss:.2f}): {_why_stuck(program, turns, labels, trains_embeddings)}",
        )
    if not last.samples:
        return
    if last.open_at_limit >= _MANY:
        yield Finding(
            "open-at-limit",
            f"{last.open_at_limit:.0%} of the samples are still thinking at their token limit, so nothing is known of "
            "their end: raise max_new_tokens, or judge by p_end alone",
        )
    sampled = [reading for reading in readings if reading.samples][-patience:]
    foretold = labels is not None and labels.num_rows > 0 and labels.unlabelled > 1 - _SOME
    for name in CLASSES[1:]:
        many = [reading.share(name) >= _MANY for reading in sampled]
        if many[-1] and ((len(many) == patience and all(many)) or (name == "missing" and (foretold or turns.closes))):
            why = next(s.why for s in last.samples if s.name == name)
            cause = _why_class(name, program, turns, labels, last)
            yield Finding(name, f"{last.share(name):.0%} of the samples are {name} ({why}): {cause}")


def is_stuck(readings: Sequence[TagReading]) -> bool:
    """Whether the end marker's probability stays low over readings in which the answers are learnt."""
    readings = [r for r in readings if "end" in r.markers and r.answer_loss is not None]
    if len(readings) < _PATIENCE + 1:
        return False
    first, last = readings[0], readings[-_PATIENCE:]
    limit = min(_RARE, _GROWN * first.markers["end"].probability)
    learnt = all((r.answer_loss or 0.0) < _LEARNT * (first.answer_loss or 0.0) for r in last)
    return learnt and all(r.markers["end"].probability <= limit for r in last)


def _why_stuck(program: ThinkProgram, turns: Turns, labels: LabelReading | None, trains_embeddings: bool) -> str:
    if labels and labels.num_rows and labels.masked_end > labels.with_end:
        return "it is masked (-100) in the labels"
    if labels and labels.num_rows and labels.unlabelled > 1 - _SOME:
        return f"it is in no label: {why_absent(turns)}"
    if program.format.ends[0] in program.vocabulary.added and not trains_embeddings:
        return (
            "it is an added token, and the embeddings are frozen: with LoRA list embed_tokens and lm_head in "
            "modules_to_save, or its id in trainable_token_indices"
        )
    return "few records close their thinking, or each does so elsewhere: thinkguard audit FILES counts them"


def _why_class(name: SampleClass, program: ThinkProgram, turns: Turns, labels: LabelReading | None, last: TagReading) -> str:
    known = labels if labels and labels.num_rows else None
    if name == "missing":
        if turns.closes:
            return "the generation prompt closes it: pass chat_template_kwargs={'enable_thinking': True} or the family's own"
        if known and known.unlabelled > 1 - _SOME:
            return why_absent(turns)
        if known and known.masked_start > known.with_start and not turns.opens:
            return f"{program.format.starts[0]!r} is masked (-100) in the labels, so the model does not learn to open"
        start = last.markers.get("start")
        if start and start.probability >= _MANY:
            return (
                f"but behind the training text {program.format.starts[0]!r} has a probability of {start.probability:.2f}, "
                "so the generation prompt is not what the training rows begin with; thinkguard doctor PATH compares them"
            )
        return "the model has not learnt to open the thinking, or is forgetting it"
    if name == "truncated":
        if known and known.cut + known.unclosed > _SOME * known.num_rows:
            return "it learns that from records without an end; thinkguard audit FILES names them"
        return "the turn end comes before the end marker"
    if name == "empty":
        return "it learns that from records whose block or answer is empty, or whose template inserts an empty block"
    if name == "doubled":
        return "prompt and records both open the thinking, or the template adds a block of its own; thinkguard doctor PATH"
    return "it learns that from records with markers in their answers; thinkguard audit FILES names them"
