"""The audit: files to records to judges to one summary, in one process, in several, or on Ray Data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from thinkguard.doctor.audit import processes
from thinkguard.doctor.audit.plan import AuditOptions, plan_of
from thinkguard.doctor.audit.summary import MISSING, Summary
from thinkguard.doctor.files.sources import digest_of
from thinkguard.errors import InputError


def audit(paths: Sequence[Path], options: AuditOptions) -> Summary:
    """Judge every record of the files and folders. InputError for a path, trainer or engine that is not there."""
    if options.engine not in ("local", "ray"):
        raise InputError(f"engine={options.engine!r} is unknown: give 'local' or 'ray'")
    plan = plan_of(paths, options)
    if options.engine == "ray":
        from thinkguard.doctor.audit import ray_engine

        summary = ray_engine.run(plan, options.num_processes, options.progress)
    else:
        summary = processes.run(plan, options.num_processes, options.progress)
    for file, named_by in plan.missing:
        why = f"{named_by} names it, but it is not there: put it there, or drop the entry"
        summary.add_error(str(file), 0, MISSING, why)
    summary.inputs = {digest: str(task.file) for task in plan.tasks if (digest := digest_of(task.file))}
    return summary
