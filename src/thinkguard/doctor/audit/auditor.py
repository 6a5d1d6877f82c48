"""One worker of an audit: it reads a task's records, has them judged, and sums up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from thinkguard.doctor.audit.lengths import Lengths, TokenCounter, cut, measure
from thinkguard.doctor.audit.plan import Plan, Task
from thinkguard.doctor.audit.summary import LOSSES, UNRECOGNISED, Summary
from thinkguard.doctor.files.sources import raw_records
from thinkguard.doctor.judges import tags
from thinkguard.doctor.records.record import OUTPUT_IN, Hit, Record

if TYPE_CHECKING:
    from thinkguard.vocabulary import Vocabulary

_BATCH: Final = 256  # records whose tokens are counted together, and after which progress is reported


class Auditor:
    """Audits tasks one after the other; holds what is costly to load."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._counter = None if plan.tokenizer is None else TokenCounter(plan.tokenizer)
        self._vocabulary: Vocabulary | None = None

    def run(self, task: Task) -> Iterator[Summary]:
        """Judge a task's records; yields a summary for every batch of them."""
        summary = Summary(self._plan.settings)
        batch: list[tuple[str, int, Record, tags.Judged]] = []
        for raw in raw_records(task.file, shard=task.shard):
            if raw.value is None:
                summary.add_error(raw.file, raw.line, LOSSES[raw.lost], raw.error)
                continue
            records: list[Record | str] = [task.reader.read(raw.value)]
            if isinstance(records[0], Record) and records[0].kind == "output":
                records = task.reader.read_all(raw.value)
            for record in records:
                if isinstance(record, str):
                    summary.add_error(raw.file, raw.line, UNRECOGNISED, record)
                else:
                    batch.append((raw.file, raw.line, record, self._judge(record)))
            if len(batch) >= _BATCH:
                self._count(batch, task.reader.shape, summary)
                yield summary
                summary, batch = Summary(self._plan.settings), []
        self._count(batch, task.reader.shape, summary)
        yield summary

    def cut(self, record: Record, judged: tags.Judged) -> list[Hit]:
        """Return the hit, if there is one, of what a record loses at the length limit."""
        if self._counter is None or self._plan.limit is None:
            return []
        hit = cut(measure([(record, judged)], self._counter)[0], self._plan.limit, self._plan.markers)
        return [] if hit is None else [hit]

    def _judge(self, record: Record) -> tags.Judged:
        markers = self._plan.markers
        if record.kind == "training":
            return tags.look(record, markers)
        if record.kind == "output":  # this judge needs numpy, which takes longer to load than all else here
            from thinkguard.doctor.judges import outputs

            judged = tags.split(record, markers)
            last = record.turns[-1]
            facts = [OUTPUT_IN + last.place] if last.reasoning else []
            return tags.Judged(outputs.judge(record, markers, self._spelled()), facts, judged.reasoning, judged.answer)
        from thinkguard.doctor.judges import mask

        return tags.Judged(mask.judge(record, markers, self._spelled()), [])

    def _spelled(self) -> Vocabulary | None:
        if self._vocabulary is None and self._plan.tokenizer is not None:
            from thinkguard.vocabulary import Vocabulary

            self._vocabulary = Vocabulary.from_tokenizer(self._plan.tokenizer)
        return self._vocabulary

    def _count(self, batch: list[tuple[str, int, Record, tags.Judged]], shape: str, summary: Summary) -> None:
        """Count a batch into the summary, with its lengths."""
        counted: dict[int, Lengths] = {}
        if self._counter is not None:
            texts = [index for index, (*_, record, _) in enumerate(batch) if record.kind != "tokenized"]
            found = measure([(batch[index][2], batch[index][3]) for index in texts], self._counter)
            counted = dict(zip(texts, found, strict=True))
        alike: Counter[tuple[str, str, tuple[str, ...], tuple[str, ...]]] = Counter()
        reasoning, answers = [], []
        for index, (file, line, record, judged) in enumerate(batch):
            lengths = counted.get(index)
            if lengths is not None and self._plan.limit is not None and record.kind == "training":
                if (hit := cut(lengths, self._plan.limit, self._plan.markers)) is not None:
                    judged.hits.append(hit)
            if judged.hits:
                summary.add_hits(file, line, judged.hits)
            alike[file, record.kind, tuple(judged.facts), judged.forms] += 1
            if record.kind != "tokenized":
                reasoning.append(len(judged.reasoning) if lengths is None else lengths.reasoning)
                answers.append(len(judged.answer) if lengths is None else lengths.answer)
        for (file, kind, facts, forms), num in alike.items():
            summary.add(file, kind=kind, shape=shape, facts=facts, forms=forms, num=num)
        summary.add_lengths("reasoning", filter(None, reasoning))
        summary.add_lengths("answer", answers)
