"""TagMonitor: what becomes of the thinking markers while a model is trained.

A loss curve does not show that the tags are on their way out. Two things do, and both are read here: by teacher forcing,
the probability and the loss of each marker at its places in labelled rows, which costs a few forward passes; and, now
and then, the class of a few sampled outputs. Nothing here knows a trainer: the callback for transformers, TRL and
LLaMA-Factory is `thinkguard.training.TagMonitorCallback`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thinkguard.training.findings import Finding, TagReading
from thinkguard.training.labels import LabelReading
from thinkguard.training.monitor import TagMonitor

if TYPE_CHECKING:
    from thinkguard.training.callback import TagMonitorCallback as TagMonitorCallback

__all__ = ["Finding", "LabelReading", "TagMonitor", "TagMonitorCallback", "TagReading"]


def __getattr__(name: str) -> Any:
    """Load the callback when it is asked for: it needs transformers, the monitor does not."""
    if name != "TagMonitorCallback":
        raise AttributeError(f"module 'thinkguard.training' has no attribute {name!r}")
    from thinkguard.training.callback import TagMonitorCallback

    return TagMonitorCallback
