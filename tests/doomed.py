"""An audit's plan whose readers die or sleep where a record says so; a module of its own, because workers import it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from thinkguard.doctor.audit.plan import AuditOptions, Plan, Task, plan_of
from thinkguard.doctor.records.record import Record


class Doomed:
    """A reader that dies, or sleeps, on a record that says so."""

    shape = "messages"

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def read(self, value: dict[str, Any]) -> Record | str:
        if value.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if value.get("sleep"):
            time.sleep(600)
        return self.reader.read(value)


def doomed(paths: list[Path]) -> Plan:
    plan = plan_of(paths, AuditOptions())
    tasks = tuple(Task(task.file, task.shard, Doomed(task.reader)) for task in plan.tasks)  # type: ignore[arg-type]
    return Plan(tasks, plan.markers, plan.limit, plan.tokenizer, plan.settings)
