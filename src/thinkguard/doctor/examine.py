"""The whole report: tokenizer, template, data and loss mask, each examined with what the others found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Final

from thinkguard.doctor.audit.data_checks import data_checks, data_facts, data_plots
from thinkguard.doctor.audit.plan import AuditOptions
from thinkguard.doctor.audit.run import audit
from thinkguard.doctor.check import Check, Plot, Report
from thinkguard.doctor.files.sources import files_of, raw_records
from thinkguard.doctor.mask.mask_checks import mask_checks
from thinkguard.doctor.records.dataset_info import columns_of
from thinkguard.doctor.records.record import Record
from thinkguard.doctor.records.shapes import reader_of
from thinkguard.doctor.records.trainers import trainer_of
from thinkguard.doctor.template.readings import Readings, read_template
from thinkguard.doctor.template.sandbox import Renderer
from thinkguard.doctor.template.template_checks import differs_checks, template_checks
from thinkguard.doctor.tokenizer.checkpoint import Checkpoint, load_checkpoint
from thinkguard.doctor.tokenizer.compared import against_checks
from thinkguard.doctor.tokenizer.tokenizer_checks import tokenizer_checks
from thinkguard.doctor.tokenizer.weights import weight_checks
from thinkguard.errors import InputError

_SAMPLE: Final = 200  # records that are rendered and tokenized as the trainer does


def examine(
    path: Path,
    *,
    data: Sequence[Path] = (),
    against: Path | None = None,
    template: Path | None = None,
    trainer: str | None = None,
    cutoff_len: int | None = None,
    format: str | None = None,
    num_processes: int | None = None,
    progress: bool = False,
    renderer: Renderer | None = None,
) -> Report:
    """Examine a checkpoint or tokenizer folder, and the data and the served tokenizer beside it.

    Loads the tokenizer, never the model; templates render in a sandboxed child. InputError for a path, trainer or format
    that does not exist; whatever else is wrong is a check. A given `renderer` is used, and left open.
    """
    if trainer is not None:
        trainer_of(trainer)
    with _renderer_or_new(renderer) as renderer:
        checkpoint, checks = load_checkpoint(path, template=template, format=format, renderer=renderer)
        readings = read(renderer, checkpoint)
        found = [*checks, *tokenizer_checks(checkpoint), *weight_checks(checkpoint)]
        differences: list[Check] = []
        if against is not None:
            served, _ = load_checkpoint(against, format=format, renderer=renderer)
            found += against_checks(checkpoint, served)
            names = (checkpoint.template_name, f"{against} {served.template_name}")
            differences += differs_checks(readings, read(renderer, served), names)
        data_part: list[Check] = []
        facts: tuple[tuple[str, str], ...] = ()
        plots: tuple[Plot, ...] = ()
        data_counts: Counter[str] | None = None
        if data:
            options = AuditOptions(
                trainer=trainer,
                format=checkpoint.format,
                tokenizer_path=path if checkpoint.tokenizer is not None else None,
                cutoff_len=cutoff_len,
                num_processes=num_processes,
                progress=progress,
                prompt_opens=readings.prompt_state == "open",
                template_known=True,
            )
            summary = audit(data, options)
            data_counts = summary.facts
            data_part += data_checks(summary, options)
            facts, plots = data_facts(summary, options), data_plots(summary, options)
            data_part += mask_checks(renderer, checkpoint, readings, sample(data, trainer), trainer)
        found += [*template_checks(readings, data_counts, trainer), *differences, *data_part]
    return Report(_subject(path, checkpoint), tuple(found), facts, plots)


def _renderer_or_new(renderer: Renderer | None) -> AbstractContextManager[Renderer]:
    """Return a new renderer, to be closed here, or the given one, which its owner closes."""
    return Renderer() if renderer is None else nullcontext(renderer)


def read(renderer: Renderer, checkpoint: Checkpoint) -> Readings:
    """Read a checkpoint's chat template by rendering it."""
    return read_template(
        renderer,
        checkpoint.template or "",
        checkpoint.format,
        bos=checkpoint.bos,
        eos=checkpoint.eos,
        tokenizer=checkpoint.tokenizer,
    )


def sample(paths: Sequence[Path], trainer: str | None, num: int = _SAMPLE) -> list[Record]:
    """Return the first records of every file that can be read: at most `num`, an equal share from each file."""
    files = files_of(paths)
    each = -(-num // max(len(files), 1))
    found: list[Record] = []
    for file in files:
        values = [raw.value for raw in islice(raw_records(file), each) if raw.value is not None]
        if values:
            reader = reader_of(values, trainer=trainer, columns=columns_of(file, trainer))
            found += [record for record in map(reader.read, values) if isinstance(record, Record)]
    return found[:num]


def _subject(path: Path, checkpoint: Checkpoint) -> str:
    if checkpoint.format is None:
        return f"{path}, no thinking format found"
    return f"{path}, format {checkpoint.format.name!r}: {checkpoint.format.starts[0]} ... {checkpoint.format.ends[0]}"


def mend_template(
    path: Path, out: Path, *, template: Path | None = None, format: str | None = None, renderer: Renderer | None = None
) -> list[str]:
    """Write a chat template that keeps the reasoning of training texts; returns what was done, in words."""
    from thinkguard.doctor.template.fix_template import fix_template

    with _renderer_or_new(renderer) as renderer:
        checkpoint, _ = load_checkpoint(path, template=template, format=format, renderer=renderer)
        if not checkpoint.template:
            raise InputError(f"{path} has no chat template to mend: give one with --template FILE")
        if checkpoint.format is None:
            raise InputError(f"{path}: which markers to keep is not known; name the format: --format think")
        return fix_template(renderer, read(renderer, checkpoint), out)


def mend_tokenizer(path: Path, out_dir: Path, *, format: str | None = None, renderer: Renderer | None = None) -> list[str]:
    """Write a copy of the tokenizer with its markers added, not special; returns what was done, in words."""
    from thinkguard.doctor.tokenizer.fix_tokenizer import fix_tokenizer

    with _renderer_or_new(renderer) as renderer:
        checkpoint, _ = load_checkpoint(path, format=format, renderer=renderer)
        return fix_tokenizer(checkpoint, out_dir)
