"""The monitor itself: labels first, then forced readings and samples of one model, whoever trains it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from thinkguard.core.program import ThinkProgram
from thinkguard.errors import InputError
from thinkguard.formats import ThinkFormat
from thinkguard.training import model as read
from thinkguard.training.findings import Finding, TagReading, label_findings, reading_findings
from thinkguard.training.labels import LabelReading, read_labels, rows_of
from thinkguard.training.places import Row, turns_of
from thinkguard.training.records import Prompt, of_records, opening_row, prompt_of
from thinkguard.training.samples import CLASSES, classify

_LOG: Final = logging.getLogger("thinkguard.training")
_STOPS: Final = (*CLASSES[1:], "unlabelled")
Watched = tuple[list[Prompt], list[Row]]


class TagMonitor:
    """Watch a model's thinking markers: `look_at` the training rows once, then `check` now and then.

    records: what is asked and, where known, answered: a user's words, a list of messages, or a mapping with `messages` or
    with `prompt` and `completion`. An answer is spelled here, not through the chat template, and read by teacher forcing.
    What the records do not give, prompts or answers, is taken from the rows that `look_at` is shown.
    stop_on: class -> share of the samples at which `should_stop` is set, met `patience` samplings in a row; the key
    "unlabelled" is the share of the rows that teach no end marker, and sets it at once.
    generate: [prompt's ids] -> [output's ids], in place of the model's own `generate`; temperature 0 is greedy.
    quiet: findings are returned, but not logged.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        records: Iterable[Any] = (),
        *,
        format: ThinkFormat | str | None = None,
        num_prompts: int = 8,
        num_rows: int = 16,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        max_prompt_tokens: int = 2048,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        stop_on: Mapping[str, float] | None = None,
        patience: int = 2,
        generate: read.Generate | None = None,
        quiet: bool = False,
    ) -> None:
        numbers = {"num_prompts": num_prompts, "num_rows": num_rows, "max_prompt_tokens": max_prompt_tokens}
        _check_numbers(0, **numbers)
        _check_numbers(1, max_new_tokens=max_new_tokens, patience=patience)
        if not temperature >= 0:
            raise InputError(f"temperature={temperature!r}: wanted 0 for greedy samples, or a number above it")
        self.model, self.tokenizer = model, tokenizer
        self.program = ThinkProgram(format, tokenizer)
        self.num_prompts, self.num_rows, self.max_prompt_tokens = num_prompts, num_rows, max_prompt_tokens
        self.max_new_tokens, self.temperature, self.patience = max_new_tokens, temperature, patience
        self.stop_on, self.generate, self.quiet = _checked_stops(stop_on or {}), generate, quiet
        kwargs = chat_template_kwargs or {}
        self.turns = turns_of(self.program, tokenizer, kwargs)
        self._prompts, self._rows = of_records(self.program, self.turns, tokenizer, records, kwargs)
        self.labels: LabelReading | None = None
        self.readings: list[TagReading] = []
        self.should_stop = False
        self._told: set[str] = set()
        self._met = 0  # samplings in a row at which stop_on was met

    def look_at(self, batches: Iterable[Mapping[str, Any]]) -> tuple[Finding, ...]:
        """Read what labelled batches (`input_ids`, `labels`) teach, and keep some of their rows for `check`."""
        rows = [row for batch in batches for row in rows_of(batch)]
        self.labels = read_labels(self.program, self.turns, rows)
        self._rows = self._rows or self._worth_reading(rows)
        self._prompts = self._prompts or self._worth_asking(rows)
        found = list(label_findings(self.program, self.turns, self.labels))
        if rows and self.labels.unlabelled >= self.stop_on.get("unlabelled", 2.0):
            self.should_stop = True
            found.append(Finding("stop", f"stop_on is met: {self.labels.unlabelled:.0%} of {len(rows)} rows teach no end"))
        return self._tell(found)

    def _worth_reading(self, rows: Sequence[Row]) -> list[Row]:
        """Rows with an end marker that is learnt come first, then those with one that is masked, then the others."""
        forced = [(read.forced_of(self.program, self.turns, row), row) for row in rows]
        ends = [([read.is_learnt(row, p) for p in f.places if p.marker == "end"], row) for f, row in forced if f]
        ends.sort(key=lambda pair: (not any(pair[0]), not pair[0]))
        return [row for _, row in ends][: self.num_rows]

    def _worth_asking(self, rows: Sequence[Row]) -> list[Prompt]:
        prompts = dict.fromkeys(prompt_of(self.program, self.turns, row) for row in rows)
        return [p for p in prompts if p and len(p) <= self.max_prompt_tokens][: self.num_prompts]

    @property
    def watched(self) -> Watched:
        """Prompts and rows that `check` uses; ranks that read a sharded model together need the same."""
        return self._prompts[: self.num_prompts], self._rows[: self.num_rows]

    @watched.setter
    def watched(self, watched: Watched) -> None:
        self._prompts, self._rows = watched

    def check(self, step: int, *, sample: bool = True) -> TagReading:
        """Read the model and leave it as it was. Sampling takes up to `max_new_tokens` steps of one batch."""
        begin = time.perf_counter()
        prompts, rows = self.watched
        forced = [f for f in (read.forced_of(self.program, self.turns, row) for row in rows) if f]
        if not any(place.marker == "start" for f in forced for place in f.places):
            opening = (opening_row(self.program, prompt) for prompt in prompts)
            forced += [f for f in (read.forced_of(self.program, self.turns, row) for row in opening if row) if f]
        asked = prompts if sample else []
        with read.undisturbed(self.model):
            markers, answer_loss = read.read_forced(self.model, forced)
            outputs = self._outputs(asked)
        samples = tuple(classify(self.program, p, o) for p, o in zip(asked, outputs, strict=True))
        reading = TagReading(step, markers, answer_loss, samples, time.perf_counter() - begin)
        readings, embeddings = [*self.readings, reading], self._trains_embeddings()
        found = [*reading_findings(self.program, self.turns, self.labels, readings, self.patience, embeddings)]
        reading = replace(reading, findings=self._tell([*found, *self._stops(reading)]))
        self.readings.append(reading)
        return reading

    def _stops(self, reading: TagReading) -> Iterator[Finding]:
        """Count the samplings at which `stop_on` is met, and set `should_stop` when there are enough in a row."""
        if not reading.samples:
            return
        met = [name for name in CLASSES if reading.share(name) >= self.stop_on.get(name, 2.0)]
        self._met = self._met + 1 if met else 0
        if self._met >= self.patience:
            self.should_stop = True
            times = f"{self.patience} samplings in a row" if self.patience > 1 else "a sampling"
            yield Finding("stop", f"stop_on is met at {times}: {reading.share(met[0]):.0%} of the last are {met[0]}")

    def _outputs(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        if not prompts:
            return []
        if self.generate is not None:
            outputs = self.generate([list(prompt) for prompt in prompts])
            if len(outputs) != len(prompts):
                raise InputError(f"generate returned {len(outputs)} outputs for {len(prompts)} prompts: wanted one each")
            return [[int(token_id) for token_id in output] for output in outputs]
        return read.generate(self.model, prompts, self.program.eos_token_ids, self.max_new_tokens, self.temperature)

    def _trains_embeddings(self) -> bool:
        embeddings = self.model.get_input_embeddings() if hasattr(self.model, "get_input_embeddings") else None
        return embeddings is None or any(p.requires_grad for p in embeddings.parameters())

    def _tell(self, findings: Iterable[Finding]) -> tuple[Finding, ...]:
        """Log what was not told before, and return it."""
        new = tuple(finding for finding in findings if finding.name not in self._told)
        for finding in new:
            self._told.add(finding.name)
            if not self.quiet:
                _LOG.warning("%s: %s", finding.name, finding.text)
        return new


def _check_numbers(least: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if not isinstance(number, int) or number < least:
            raise InputError(f"{name}={number!r}: wanted a whole number, {least} or more")


def _checked_stops(stop_on: Mapping[str, float]) -> dict[str, float]:
    for name, share in stop_on.items():
        if name not in _STOPS:
            raise InputError(f"stop_on has {name!r}: wanted some of {', '.join(_STOPS)}")
        if not 0 < share <= 1:
            raise InputError(f"stop_on[{name!r}]={share!r}: wanted a share above 0, at most 1")
    return dict(stop_on)
