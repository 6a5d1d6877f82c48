"""The loss mask that a trainer would make of some records, by rendering and tokenising them as it does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from thinkguard.doctor.catalogue import entries
from thinkguard.doctor.check import Check
from thinkguard.doctor.judges.mask import IGNORED, judge_row, row_of
from thinkguard.doctor.judges.tags import Markers
from thinkguard.doctor.mask.labels import Labelled, Labeller, labeller_of
from thinkguard.doctor.records.record import Hit, Record
from thinkguard.formats import facts_of
from thinkguard.formats.fit import any_of
from thinkguard.vocabulary import Vocabulary

if TYPE_CHECKING:
    from thinkguard.doctor.template.readings import Readings
    from thinkguard.doctor.template.sandbox import Job, Renderer
    from thinkguard.doctor.tokenizer.checkpoint import Checkpoint

_MOST: Final = 200
_BATCH: Final = 25  # records that are rendered at once, within the renderer's time limit
_WANTED: Final = {
    "mask-start": "the start marker in the loss: the prompt does not open the block, so the model has to write it",
    "mask-end": "end marker, answer and turn end in the loss",
    "mask-body": "the reasoning in the loss",
}
_AXOLOTL_START: Final = (
    "axolotl compares the turn with a dummy for which this template writes an empty block, and so takes the start marker "
    "for the template's own: set train_on_inputs: true, or give a chat_template that writes no block of its own"
)


def mask_checks(
    renderer: Renderer, checkpoint: Checkpoint, readings: Readings, records: Sequence[Record], trainer: str | None
) -> tuple[Check, ...]:
    """Judge the loss on up to 200 of the records; nothing if they are tokenised rows, which the audit judges as they are."""
    if any(record.kind == "tokenized" for record in records):
        return ()
    training = [record for record in records if record.kind == "training"][:_MOST]
    if not training:
        return _all("not applicable", "no training records")
    if checkpoint.vocabulary is None or not getattr(checkpoint.tokenizer, "is_fast", False):
        return _all("could not tell", "without a fast tokenizer records cannot be tokenised as the trainer does")
    if not readings.works:
        return _all("skipped", "the chat template renders no training text: see template-renders")
    labeller = labeller_of(checkpoint, training[0], trainer, readings.needs_tools)
    if isinstance(labeller, str):
        return _all("could not tell", labeller)
    markers = Markers.of(checkpoint.format, prompt_opens=readings.prompt_state == "open")
    return _Masks(labeller, checkpoint.vocabulary, markers, training, trainer).checks(renderer)


def _all(status: Any, found: str) -> tuple[Check, ...]:
    return tuple(Check(name, status, found) for name, entry in entries().items() if entry.part == "mask")


class _Masks:
    """What was found in the labels of some records."""

    def __init__(
        self, labeller: Labeller, vocabulary: Vocabulary, markers: Markers, records: Sequence[Record], trainer: str | None
    ) -> None:
        self.labeller, self.vocabulary, self.markers = labeller, vocabulary, markers
        self.records, self.trainer = records, trainer
        self.hits: Counter[tuple[str, str]] = Counter()
        self.hit_records: Counter[str] = Counter()
        self.evidence: dict[str, list[str]] = {}
        self.reasons: Counter[str] = Counter()  # why a record could not be followed
        self.unread: Counter[str] = Counter()  # why its tokens could not be read back
        self.rows = self.blocks = 0
        starts, ends = (any_of(marks).encode() for marks in (markers.format.starts, markers.format.ends))
        self._block = re.compile(b"(?:" + starts + b").*?(?:" + ends + b")", re.DOTALL)

    def checks(self, renderer: Renderer) -> tuple[Check, ...]:
        """Judge the records, and put together what was found."""
        for number, labelled in self._labelled(renderer):
            if isinstance(labelled, str):
                self.reasons[labelled] += 1
                continue
            self.rows += 1
            for hit in self._judged(labelled):
                self.hits[hit.check, hit.kind] += 1
                self.evidence.setdefault(hit.check, []).append(f"record {number + 1}: {hit.excerpt}")
        special = {"mask-empty-block": self._empty, "row-ids": self._read, "packed-rows": _packed}
        names = [name for name, entry in entries().items() if entry.part == "mask"]
        return tuple(special.get(name, self._check)(name) for name in names)

    def _labelled(self, renderer: Renderer) -> Iterator[tuple[int, Labelled | str]]:
        source = self.labeller.checkpoint.template or ""
        for begin in range(0, len(self.records), _BATCH):
            batch = self.records[begin : begin + _BATCH]
            jobs_per_record = [self.labeller.jobs_of(record) for record in batch]
            jobs: list[Job] = [job for part in jobs_per_record if not isinstance(part, str) for job in part]
            renders = iter(renderer.render(source, jobs))
            for number, (record, part) in enumerate(zip(batch, jobs_per_record, strict=True), begin):
                if isinstance(part, str):
                    yield number, part
                else:
                    yield number, self.labeller.labelled(record, [next(renders) for _ in part])

    def _judged(self, labelled: Labelled) -> list[Hit]:
        vocabulary = self.vocabulary
        labels = [i if learned else IGNORED for i, learned in zip(labelled.ids, labelled.loss, strict=True)]
        row = row_of({"input_ids": labelled.ids, "labels": labels}, vocabulary)
        if isinstance(row, str):
            self.unread[row] += 1
            return []
        self.blocks += self._block.search(row.text) is not None
        hits = judge_row(row, self.markers, vocabulary)
        for check in {hit.check for hit in hits}:
            self.hit_records[check] += 1
        return hits

    def _check(self, name: str) -> Check:
        kinds = {kind: num for (check, kind), num in self.hits.items() if check == name}
        if kinds:
            kind_counts = "; ".join(f"{kind} ({num})" for kind, num in kinds.items())
            found = f"{self.hit_records[name]} of {self.rows} records: {kind_counts}, by {self.labeller.how}"
            fix = _AXOLOTL_START if name == "mask-start" and self.trainer == "axolotl" else ""
            return Check(name, "problem", found, _WANTED[name], fix, tuple(self.evidence[name][:3]))
        if not self.rows:
            reason, num = self.reasons.most_common(1)[0]
            return Check(name, "could not tell", f"none of {num} records can be followed: {reason}")
        if not self.blocks:
            if any(_reasons(record, self.markers) for record in self.records):
                found = "the training text has lost the reasoning: see final-reasoning and reasoning-field"
                return Check(name, "skipped", found)
            return Check(name, "not applicable", "no record has reasoning that the trainer reads")
        return Check(name, "ok", f"{self.rows} records, by {self.labeller.how}")

    def _read(self, name: str) -> Check:
        if self.unread:
            found = f"{sum(self.unread.values())} of {self.rows} records have {self.unread.most_common(1)[0][0]}"
            return Check(name, "problem", found, "a tokenizer and a vocabulary that agree, see checkpoint")
        return Check(name, "ok" if self.rows else "could not tell", f"{self.rows} records were tokenised")

    def _empty(self, name: str) -> Check:
        num = self.hit_records[name]
        if num:
            why = "the template inserts it, see empty-block, or the records hold it, see empty-reasoning"
            return Check(name, "skipped", f"{num} of {self.rows} records have an empty block in the loss: {why}")
        bare = sum(not _reasons(record, self.markers) for record in self.records)
        if bare and self.trainer == "llamafactory":
            templates = ", ".join(facts_of(self.markers.format.name).llamafactory_templates)
            which = f"a reasoning template{templates and f' ({templates})'}"
            found = f"{bare} records have no reasoning: {which} with enable_thinking: true "
            return Check(name, "could not tell", found + "gives them an empty block in the loss, other templates do not")
        if not self.rows:
            return Check(name, "could not tell", f"no record can be followed: {self.reasons.most_common(1)[0][0]}")
        return Check(name, "ok", f"none in the loss of {self.rows} records")


def _reasons(record: Record, markers: Markers) -> bool:
    """Whether a record's last turn holds reasoning that the trainer reads."""
    last = next((turn for turn in reversed(record.turns) if turn.role == "assistant"), None)
    if last is None:
        return False
    return bool(last.reasoning and last.read) or any(mark in last.content for mark in markers.format.ends)


def _packed(name: str) -> Check:
    found = "if the trainer packs, it does so later: give its tokenised rows as data to have them judged"
    return Check(name, "not applicable", found)
