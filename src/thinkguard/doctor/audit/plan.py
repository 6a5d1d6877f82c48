"""An audit's options, and how its files are cut into tasks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from thinkguard.doctor.audit.lengths import Limit, limit_of
from thinkguard.doctor.files.sources import files_of, raw_records
from thinkguard.doctor.judges.marker_forms import Markers
from thinkguard.doctor.records.dataset_info import columns_of, missing_files
from thinkguard.doctor.records.record import Record
from thinkguard.doctor.records.shapes import RecordReader, reader_of
from thinkguard.doctor.records.trainers import trainer_of
from thinkguard.errors import InputError
from thinkguard.formats import ThinkFormat
from thinkguard.formats.marks import marks_in

_SAMPLE: Final = 64  # records that tell a file's shape and, if no format is given, the markers
_SPLIT_BYTES: Final = 8 << 20  # a larger file is read by several processes


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """The options of an audit."""

    trainer: str | None = None  # None: everything counts as read
    format: ThinkFormat | None = None  # None: found in the data
    tokenizer_path: Path | None = None  # None: lengths are counted in characters, and cut-offs are not judged
    cutoff_len: int | None = None  # None: the trainer's
    num_processes: int | None = None  # None: one per core
    engine: Literal["local", "ray"] = "local"
    progress: bool = False  # a bar on stderr
    prompt_opens: bool | None = None  # None: only where a record's prompt ends in a start
    template_known: bool = False  # whether the chat template is rendered beside the audit, to see which fields it reads


@dataclass(frozen=True, slots=True)
class Task:
    """A part of a file."""

    file: Path
    shard: tuple[int, int]
    reader: RecordReader


@dataclass(frozen=True, slots=True)
class Plan:
    """What every process has to know; picklable."""

    tasks: tuple[Task, ...]
    markers: Markers
    limit: Limit | None
    tokenizer: Path | None
    settings: dict[str, Any]
    missing: tuple[tuple[Path, str], ...] = ()  # files that are not there, each with what names it


def plan_of(paths: Sequence[Path], options: AuditOptions) -> Plan:
    """Look at the first records of every file, and cut the work into tasks."""
    if options.trainer is not None:
        trainer_of(options.trainer)
    files = files_of(paths)
    tasks: list[Task] = []
    sample: list[Record] = []
    for file in files:
        values = [raw.value for raw in islice(raw_records(file), _SAMPLE) if raw.value is not None]
        reader = reader_of(values, trainer=options.trainer, columns=columns_of(file, options.trainer))
        if options.format is None and len(sample) < 4 * _SAMPLE:
            sample += [record for record in map(reader.read, values) if isinstance(record, Record)]
        large = file.stat().st_size > _SPLIT_BYTES
        num = num_workers(options.num_processes) if large and len(files) < 64 else 1
        tasks += [Task(file, (index, num), reader) for index in range(num)]
    format = options.format or guess(sample)
    tokenizer = _tokenizer_file(options.tokenizer_path)
    limit = limit_of(options.trainer, options.cutoff_len)
    settings = {
        "format": "" if format is None else format.name,
        "trainer": options.trainer or "",
        "unit": "characters" if tokenizer is None else "tokens",
        "cutoff": None if limit is None else limit.tokens,
    }
    markers = Markers.of(format, trainer=options.trainer, prompt_opens=options.prompt_opens)
    missing = missing_files(files, [path for path in paths if path.is_dir()], options.trainer)
    return Plan(tuple(tasks), markers, limit, tokenizer, settings, tuple(missing))


def _tokenizer_file(path: Path | None) -> Path | None:
    if path is None:
        return None
    if not path.exists():
        raise InputError(f"tokenizer {path} does not exist: give the folder of a checkpoint or tokenizer")
    file = path / "tokenizer.json" if path.is_dir() else path
    return file if file.is_file() else None


def guess(records: Sequence[Record]) -> ThinkFormat | None:
    """Find the markers that the data themselves use most; None if there are none."""
    found = Counter(
        marks
        for record in records
        for turn in record.turns
        if turn.role == "assistant" and (marks := marks_in(turn.content, "")) is not None
    )
    if not found:
        return None
    marks = max(found, key=lambda marks: found[marks])
    formats = map(ThinkFormat.from_name, ThinkFormat.names())
    return next(format for format in formats if (format.starts, format.ends) == (marks.starts, marks.ends))


def num_workers(num_processes: int | None) -> int:
    """Return how many processes to use: `num_processes`, or one per core that this process may use."""
    if num_processes is not None:
        if num_processes < 1:
            raise InputError(f"num_processes={num_processes} is less than 1: give how many processes may work, or None")
        return num_processes
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
