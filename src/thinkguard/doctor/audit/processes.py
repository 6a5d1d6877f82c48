"""The audit's tasks in this process or in several; a process that dies costs its own task only."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Final

from thinkguard.doctor.audit.auditor import Auditor
from thinkguard.doctor.audit.plan import Plan, Task, num_workers
from thinkguard.doctor.audit.summary import LOSSES, Summary

_SMALL_BYTES: Final = 64 << 20  # smaller data are read in about the time that processes take to start
_COUNTING: Final = 8  # reading takes so many times as long if tokens are counted
_WAIT: Final = 0.5  # seconds between two looks at the progress
_DIED: Final = "the process that read this part died, perhaps of too little memory; try `--processes 1`, or smaller files"


def run(plan: Plan, num_processes: int | None, progress: bool) -> Summary:
    """Run every task of the plan."""
    num = min(num_workers(num_processes), len(plan.tasks))
    size = sum(file.stat().st_size for file in {task.file for task in plan.tasks}) * (_COUNTING if plan.tokenizer else 1)
    with Bar(progress) as bar:
        if num == 1 or (num_processes is None and size < _SMALL_BYTES):
            return _run_here(plan, bar)
        return _run_in_processes(plan, num, bar)


def _run_here(plan: Plan, bar: Bar) -> Summary:
    summary = Summary(plan.settings)
    auditor = Auditor(plan)
    for task in plan.tasks:
        for part in auditor.run(task):
            summary.merge(part)
            bar.show(summary.records)
    return summary


def _run_in_processes(plan: Plan, num: int, bar: Bar) -> Summary:
    summary = Summary(plan.settings)
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    num_done = context.Value("q", 0)
    before = set(multiprocessing.active_children())
    left = list(plan.tasks)
    try:
        left = _run_pool(left, _pool(context, num, plan, num_done), summary, bar, num_done)
        while left:  # lost with a process that died: one process does them in order, and dies of the first that is left
            left = _run_pool(left, _pool(context, 1, plan, num_done), summary, bar, num_done)
            if left:
                summary.add_error(str(left.pop(0).file), 0, LOSSES["part"], _DIED)
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    return summary


def _pool(context: Any, num: int, plan: Plan, num_done: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(num, mp_context=context, initializer=_begin, initargs=(plan, num_done))


def _run_pool(tasks: Sequence[Task], pool: ProcessPoolExecutor, summary: Summary, bar: Bar, num_done: Any) -> list[Task]:
    """Run tasks in a pool, and close it; returns the tasks that were lost with a process that died, in order."""
    futures: dict[Future[Summary], Task] = {}
    lost: list[Task] = []
    pending: set[Future[Summary]] = set()
    try:
        for task in tasks:
            try:
                futures[pool.submit(_work, task)] = task
            except BrokenProcessPool:
                lost.append(task)
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, _WAIT, FIRST_COMPLETED)
            for future in finished:
                try:
                    summary.merge(future.result())
                except BrokenProcessPool:
                    lost.append(futures[future])
            bar.show(num_done.value)
    finally:
        pool.shutdown(wait=not pending, cancel_futures=True)
    return [task for task in tasks if task in lost]


_auditor: Auditor | None = None
_num_done: Any = None


def _begin(plan: Plan, num_done: Any) -> None:
    """Prepare a worker process. It ignores Ctrl-C, which is for its parent to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    global _auditor, _num_done
    _auditor, _num_done = Auditor(plan), num_done


def _work(task: Task) -> Summary:
    if _auditor is None:
        raise RuntimeError("a worker was given a task before it was prepared")
    summary = Summary()
    for part in _auditor.run(task):
        summary.merge(part)
        with _num_done.get_lock():
            _num_done.value += part.records
    return summary


class Bar:
    """A progress bar of records on stderr; without `progress` it shows nothing."""

    def __init__(self, progress: bool) -> None:
        self._bar: Any = None
        if progress:
            try:
                from tqdm import tqdm
            except ImportError as error:
                raise ImportError("a progress bar needs tqdm: pip install 'thinkguard[doctor]'") from error
            self._bar = tqdm(unit=" records", unit_scale=True)

    def show(self, num: int) -> None:
        """Move the bar to `num` records, all that are done so far."""
        if self._bar is not None:
            self._bar.update(num - self._bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
