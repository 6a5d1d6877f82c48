"""`audit --fix`: records are made regular where that is safe; the others are set aside, each with its reason.

A change is safe if it leaves every word of reasoning and answer as it is. It may spell markers, set the white space around
them, write a start that is missing before reasoning, and move reasoning to the place that the trainer reads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from thinkguard.doctor.audit.auditor import Auditor
from thinkguard.doctor.audit.data_checks import lenient
from thinkguard.doctor.audit.mend_record import Repair, repair
from thinkguard.doctor.audit.plan import Plan, plan_of
from thinkguard.doctor.files.sources import Raw, files_of, raw_records
from thinkguard.doctor.judges import tags
from thinkguard.doctor.records.dataset_info import entry_for, entry_of
from thinkguard.doctor.records.record import Record
from thinkguard.doctor.records.shapes import NOTHING, RecordReader
from thinkguard.errors import InputError

if TYPE_CHECKING:
    from thinkguard.doctor.audit.plan import AuditOptions


@dataclass(slots=True)
class MendSummary:
    """What was written where, and why."""

    out: Path
    rejected: Path
    unchanged: int = 0
    changed: Counter[str] = field(default_factory=Counter)  # what was done -> records
    mended: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # why -> records set aside
    unread: int = 0  # files and parts of files that could not be read
    shapes: tuple[str, ...] = ()  # of the files
    entry: dict[str, Any] | None = None  # of dataset_info.json: makes a trainer read `out` as it read the files

    def as_text(self) -> str:
        """One line per file, and what was done."""
        aside = self.reasons.total()
        lines = [f"{self.out}: {self.unchanged + self.mended:,} records, {self.mended:,} of them changed"]
        lines += [f"  {num:,}: {what}" for what, num in self.changed.most_common()]
        if len(self.shapes) > 1:
            lines.append(f"  of several shapes, as its files were: {', '.join(self.shapes)}; trainers want one in a file")
        lines.append(f"{self.rejected}: {aside:,} records set aside")
        if aside and not self.unchanged + self.mended:
            lines.insert(0, f"nothing could be kept: each of the {aside:,} records was set aside, and {self.out} is empty")
        lines += [f"  {num:,}: {reason}" for reason, num in self.reasons.most_common()]
        if self.unread:
            lines.append(f"  and {self.unread:,} where a file, or a part of one, cannot be read")
        if self.entry is not None:
            lines.append(f"dataset_info.json needs: {json.dumps(self.entry, ensure_ascii=False)}")
        return "\n".join(lines)


def mend(paths: Sequence[Path], out: Path, options: AuditOptions, *, place: str | None = None) -> MendSummary:
    """Write regular records to `out` and the others to `OUT.rejected.jsonl`, each in their order; returns what was done.

    place: where the reasoning shall stand, "inline" or in a field such as "reasoning_content"; None leaves it in every
    place that the trainer reads. InputError as of `refuse`.
    """
    refuse(paths, out, options.trainer)
    plan = plan_of(paths, replace(options, engine="local"))
    rejected = _rejected(out)
    shapes = {task.reader.shape: None for task in plan.tasks if task.reader.shape != NOTHING}
    summary = MendSummary(out, rejected, shapes=tuple(shapes), entry=_entry(plan.tasks[0].file, out, options.trainer))
    mender = _Mender(plan, place)
    files: list[Path] = []
    try:
        with _create(out, files) as good, _create(rejected, files) as bad:
            for raw, reader in _raws(plan):
                if raw.lost == "nothing":
                    continue
                outcome = mender.mend(raw, reader)
                if isinstance(outcome, Repair):
                    outcome = _write(good, outcome, summary) or outcome
                if isinstance(outcome, str):
                    if raw.lost == "record":
                        summary.reasons[outcome] += 1
                    else:
                        summary.unread += 1
                    source = {"file": raw.file, "line": raw.line}
                    rejection = {"reason": outcome, **source, "error": raw.error, "record": raw.value}
                    bad.write(_line(rejection, str) + "\n")
    except BaseException:
        for path in files:
            path.unlink()
        raise
    return summary


def refuse(paths: Sequence[Path], out: Path, trainer: str | None) -> None:
    """Raise InputError where `mend` would: a file that it writes exists, or no single entry could read `out`."""
    for path in (out, _rejected(out)):
        if path.exists():
            raise InputError(f"{path} exists, and nothing is overwritten: give another name, or remove it")
    alike: dict[str, str] = {}
    for file in files_of(paths):
        found = entry_of(file, trainer)
        shape = "" if found is None else json.dumps(entry_for(found[1], ""), sort_keys=True)
        alike.setdefault(shape, f"{file} ({'no entry' if found is None else repr(found[0])})")
    if len(alike) > 1:
        raise InputError(
            f"--fix {out}: dataset_info.json gives these files different shapes, and one file has one: "
            f"{', '.join(list(alike.values())[:4])}; mend each of them alone, to a file of its own"
        )


def _rejected(out: Path) -> Path:
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.rejected.jsonl")


def _entry(file: Path, out: Path, trainer: str | None) -> dict[str, Any] | None:
    """Return the entry that reads `out`, under a name of its own; None if the file has none."""
    found = entry_of(file, trainer)
    return None if found is None else {out.stem: entry_for(found[1], out.name)}


def _create(path: Path, files: list[Path]) -> TextIO:
    try:
        file = open(path, "x", encoding="utf-8", newline="\n")  # noqa: SIM115  # the caller closes it
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; give a place that can be") from None
    files.append(path)
    return file


def _raws(plan: Plan) -> Iterator[tuple[Raw, RecordReader]]:
    for task in plan.tasks:
        if task.shard[0] == 0:
            for raw in raw_records(task.file):
                yield raw, task.reader


def _write(file: TextIO, mended: Repair, summary: MendSummary) -> str:
    """Write a record; returns why it cannot be written, "" if it was."""
    try:
        line = _line(mended.value, _plain)
    except TypeError as error:
        return f"holds what JSON has no type for: {error}"
    file.write(line + "\n")
    if mended.changes:
        summary.mended += 1
        summary.changed.update(set(mended.changes))
    else:
        summary.unchanged += 1
    return ""


def _plain(value: Any) -> str:
    if isinstance(value, (date, time)):
        return value.isoformat()
    raise TypeError(type(value).__name__)


def _line(value: Mapping[str, Any], default: Any) -> str:
    line = json.dumps(value, ensure_ascii=False, default=default)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(value, default=default)
    return line


class _Mender:
    """Mends one record after the other, and judges what came out."""

    def __init__(self, plan: Plan, place: str | None) -> None:
        self._plan, self._place = plan, place
        self._auditor = Auditor(plan)

    def mend(self, raw: Raw, reader: RecordReader) -> Repair | str:
        """Return the record to write, or why it is set aside."""
        if raw.value is None:
            return "cannot be read"
        record = reader.read(raw.value)
        if isinstance(record, str):
            return f"its shape is not known: {record}"
        if record.kind != "training":
            return "not a training record"
        outcome = repair(raw.value, record, self._plan.markers, self._place, reader)
        if isinstance(outcome, str):
            return outcome
        mended = reader.read(outcome.value) if outcome.changes else record
        if not isinstance(mended, Record):
            return f"cannot be read any more once it is mended: {mended}"
        return self._fault(mended) or outcome

    def _fault(self, record: Record) -> str:
        """Return what is wrong with a record after mending; "" for nothing."""
        judged = tags.look(record, self._plan.markers)
        hits = [*judged.hits, *self._auditor.cut(record, judged)]
        for hit in hits:
            if hit.check in ("no-reasoning", "empty-reasoning") or lenient(hit.check, hit.kind, self._plan.markers.trainer):
                continue
            return f"{hit.check}: {hit.kind}"
        return ""
