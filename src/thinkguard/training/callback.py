"""TagMonitorCallback: a TagMonitor in any trainer that takes transformers' callbacks.

A callback is handed neither the trainer nor its log. So a reading asks for a log entry of its step, and is put into that
entry when it comes by, in front of the callbacks that report to W&B or TensorBoard.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState

from thinkguard.errors import InputError
from thinkguard.training.labels import spread
from thinkguard.training.model import is_sharded, undisturbed
from thinkguard.training.monitor import TagMonitor

_LOG: Final = logging.getLogger("thinkguard.training")
_PREFIX: Final = "thinkguard/"
_WITHOUT: Final = {True: "and nothing is sampled any more", False: "and the watch ends here"}


class TagMonitorCallback(TrainerCallback):  # type: ignore[misc]
    """Watch the thinking markers of a model in training; the monitor's own options are keywords, see TagMonitor.

    records: what is asked and answered; without them both come from the training rows.
    tokenizer: the trainer's, if None.
    read_steps, sample_steps: steps between two readings by teacher forcing and between two samplings, 0 for none; both
    happen at every evaluation and at the last step as well.
    label_rows: how many training rows are looked at before the first step, spread over the data.

    An error at the start is raised; later an error is logged, and ends the sampling or the watch, never the training.
    """

    def __init__(
        self,
        records: Iterable[Any] = (),
        *,
        tokenizer: Any = None,
        read_steps: int = 50,
        sample_steps: int = 500,
        label_rows: int = 64,
        **options: Any,
    ) -> None:
        numbers = {"read_steps": read_steps, "sample_steps": sample_steps, "label_rows": label_rows}
        for name, number in numbers.items():
            if not isinstance(number, int) or number < 0:
                raise InputError(f"{name}={number!r}: wanted a whole number, 0 for none")
        known = set(inspect.signature(TagMonitor).parameters) - {"model", "tokenizer", "records", "quiet"}
        if unknown := sorted(set(options) - known):
            raise InputError(f"{unknown[0]}= is no option: wanted some of {', '.join(sorted(known))}")
        self.records, self.tokenizer, self.options = list(records), tokenizer, options
        self.read_steps, self.sample_steps, self.label_rows = read_steps, sample_steps, label_rows
        self.monitor: TagMonitor | None = None
        self._pending: dict[str, float] = {}  # read, but not logged yet
        self._last: dict[str, float] = {}
        self._step: int | None = None  # of the last reading
        self._broken = self._sharded = self._samples = False

    # --- events ---

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at training data, before a step is spent on it."""
        _move_to_front(self)
        self._start(kwargs, control)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Read at the wanted steps, in front of an evaluation, and at the last step."""
        step = state.global_step
        sample = control.should_evaluate or step >= state.max_steps or _is_due(step, self.sample_steps)
        if sample or _is_due(step, self.read_steps):
            self._read(args, step, sample, control)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Read in front of an evaluation that comes with the end of an epoch."""
        if control.should_evaluate:
            self._read(args, state.global_step, True, control)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Put the step's reading into the evaluation's metrics, so that the best model can be chosen by it."""
        if self._step is None:
            self._start(kwargs, control)  # evaluated without training
        if self._read(args, state.global_step, True, control, log=False) and state.log_history:
            state.log_history[-1].update(self._last)  # the evaluation's own entry was written a moment ago
        metrics.update({f"eval_{name}": value for name, value in self._last.items()})

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Put what was read into the entry that is being logged."""
        if self._pending and logs is not None:
            logs.update(self._pending)
            if state.log_history:
                state.log_history[-1].update(self._pending)
            self._pending = {}

    # --- what every rank does at the same step; only the first reads, unless all hold parts of the model ---

    def _start(self, kwargs: Mapping[str, Any], control: TrainerControl) -> None:
        model, first = kwargs["model"], _rank() == 0
        self._step, self._last, self.monitor = -1, {}, None
        self._broken, self._sharded = False, _is_distributed() and is_sharded(model)
        self._samples = not self._sharded
        error: Exception | None = None
        labels: dict[str, float] = {}
        try:
            if first or self._sharded:
                self.monitor = TagMonitor(model, self._tokenizer(kwargs), self.records, **self.options, quiet=not first)
            if first and self.monitor:
                loaders = (kwargs.get("train_dataloader"), kwargs.get("eval_dataloader"))
                with undisturbed(model):  # a data set may draw random numbers
                    self.monitor.look_at(_batches(next((x for x in loaders if x is not None), None), self.label_rows))
                labels = self.monitor.labels.metrics() if self.monitor.labels else {}
        except Exception as caught:
            error = caught
        watched = self.monitor.watched if self._sharded and self.monitor else None
        stops = self.monitor is not None and self.monitor.should_stop
        failure = f"{type(error).__name__} on the first rank: {error}" if error else ""
        failure, labels, watched, stops = _from_first((failure, labels, watched, stops))
        if error or failure:
            raise error or InputError(failure)
        if self._sharded and self.monitor:
            self.monitor.watched = watched
        self._pending = {_PREFIX + name: value for name, value in labels.items()}
        control.should_training_stop |= stops

    def _read(self, args: Any, step: int, sample: bool, control: TrainerControl, *, log: bool = True) -> bool:
        """Read, once per step, and ask for a log entry; returns whether something was read."""
        if step == self._step or self._broken:
            return False
        self._step, sample = step, sample and self._samples
        failed, values, stops = False, {}, False
        if self.monitor:
            try:
                reading = self.monitor.check(step, sample=sample)
                values, stops = reading.metrics(), self.monitor.should_stop
            except Exception as caught:
                failed, what = True, f"step {step}: {type(caught).__name__}: {caught}"
                _LOG.warning("%s; the training goes on, %s", what, _WITHOUT[sample])
        failed, values, stops = _from_first((failed, values, stops))
        if failed:
            self._samples, self._broken = False, not sample
        self._last = {_PREFIX + name: value for name, value in values.items()}
        control.should_training_stop |= stops
        if log:
            self._pending.update(self._last)
            control.should_log |= bool(self._last) and args.logging_strategy != "no"
        return bool(self._last)

    def _tokenizer(self, kwargs: Mapping[str, Any]) -> Any:
        tokenizer = self.tokenizer if self.tokenizer is not None else kwargs.get("processing_class")
        if tokenizer is None:
            raise InputError("this trainer has no tokenizer (processing_class): pass tokenizer= to TagMonitorCallback")
        return tokenizer


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _is_distributed() -> bool:
    group = torch.distributed
    return bool(group.is_available() and group.is_initialized() and group.get_world_size() > 1)


def _rank() -> int:
    return torch.distributed.get_rank() if _is_distributed() else 0


def _from_first(value: Any) -> Any:
    """Return the first rank's value on every rank. All ranks have to call this at the same steps."""
    if not _is_distributed():
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def _batches(loader: Any, num: int) -> Iterator[Mapping[str, Any]]:
    """Collate single examples of a loader's data. The loader itself is not iterated: that would move its random state."""
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if dataset is None or collate is None:
        return
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        examples: Iterator[Any] = (dataset[i] for i in spread(len(dataset), num))
    else:
        source = getattr(dataset, "dataset", dataset)  # accelerate wraps a stream per rank
        examples = itertools.islice(iter(source), num) if hasattr(source, "take") else iter(())
    for example in examples:
        batch = collate([example])
        if isinstance(batch, Mapping):
            yield batch


def _move_to_front(callback: TrainerCallback) -> None:
    """Let a callback see each log entry before the callbacks that report it, but after the one that asks for it.

    No event hands out the list of callbacks, so its owner is looked for among the callers; without it the values reach
    the trainer's history and the callbacks behind this one.
    """
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), CallbackHandler):
        frame = frame.f_back
    if frame is None or callback not in frame.f_locals["self"].callbacks:
        return
    handler = frame.f_locals["self"]
    others = [other for other in handler.callbacks if other is not callback]
    first = max((i + 1 for i, other in enumerate(others) if isinstance(other, DefaultFlowCallback)), default=0)
    handler.callbacks = [*others[:first], callback, *others[first:]]
