"""The audit on Ray Data: tasks are mapped to summaries, and those are added up."""

from __future__ import annotations

import os
import pickle
from typing import Any

from thinkguard.doctor.audit.plan import Plan, num_workers
from thinkguard.doctor.audit.summary import Summary


class _Map:
    """Run a task per row; one of these lives in each of Ray's actors."""

    def __init__(self, plan: bytes) -> None:
        from thinkguard.doctor.audit.auditor import Auditor

        self._plan: Plan = pickle.loads(plan)
        self._auditor = Auditor(self._plan)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        summary = Summary()
        for part in self._auditor.run(self._plan.tasks[row["id"]]):
            summary.merge(part)
        return {"summary": pickle.dumps(summary)}


def run(plan: Plan, num_processes: int | None, progress: bool) -> Summary:
    """Run every task of the plan on the cluster of RAY_ADDRESS, or on one of this machine's own that ends afterwards.

    On a cluster the files have to lie where every node finds them.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.data import ActorPoolStrategy, DataContext
    except ImportError as error:
        raise ImportError("engine='ray' needs Ray Data: pip install 'ray[data]'") from error
    num = min(num_workers(num_processes), len(plan.tasks))
    ours = not ray.is_initialized()
    if ours and "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
    elif ours:
        ray.init("local", num_cpus=num, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        DataContext.get_current().enable_progress_bars = progress
        tasks = ray.data.range(len(plan.tasks), override_num_blocks=len(plan.tasks))
        found = tasks.map(_Map, fn_constructor_args=(pickle.dumps(plan),), compute=ActorPoolStrategy(size=num))
        summary = Summary(plan.settings)
        for row in found.iter_rows():
            summary.merge(pickle.loads(row["summary"]))
    finally:
        if ours:
            ray.shutdown()
    return summary
