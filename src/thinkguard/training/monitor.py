"""The monitor itself: it reads the labels first, then one model by teacher forcing and by samples, whoever trains it."""

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
from thinkguard.training.labels import LabelReading, examples_of, read_labels
from thinkguard.training.places import Example, turns_of
from thinkguard.training.records import Prompt, of_records, opening_example, prompt_of
from thinkguard.training.samples import CLASSES, classify

_LOG: Final = logging.getLogger("thinkguard.training")
_STOPS: Final = (*CLASSES[1:], "unlabelled")
Watched = tuple[list[Prompt], list[Example]]


class TagMonitor:
    """Watch a model's thinking markers: `look_at` the training data once, then `check` now and then.

    records: what is asked and, where known, answered: a user's words, a list of messages, or a mapping with `messages` or
    with `prompt` and `completion`. An answer is spelled here, not through the chat template, and read by teacher forcing.
    Prompts or answers that the records lack are taken from the rows that `look_at` reads.
    stop_on: class -> share of the samples; `should_stop` is set once it is met `patience` samplings in a row. The key
    "unlabelled" is the share of the rows that teach no end marker; it sets `should_stop` at once.
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
        self._prompts, self._examples = of_records(self.program, self.turns, tokenizer, records, kwargs)
        self.labels: LabelReading | None = None
        self.readings: list[TagReading] = []
        self.should_stop = False
        self._reported: set[str] = set()  # names of findings
        self._streak = 0  # samplings in a row at which stop_on was met

    def look_at(self, batches: Iterable[Mapping[str, Any]]) -> tuple[Finding, ...]:
        """Read what labelled batches (`input_ids`, `labels`) teach, and keep some of their examples for `check`."""
        examples = [example for batch in batches for example in examples_of(batch)]
        self.labels = read_labels(self.program, self.turns, examples)
        self._examples = self._examples or self._worth_reading(examples)
        self._prompts = self._prompts or self._worth_asking(examples)
        found = list(label_findings(self.program, self.turns, self.labels))
        if examples and self.labels.unlabelled >= self.stop_on.get("unlabelled", 2.0):
            self.should_stop = True
            share = f"{self.labels.unlabelled:.0%} of {len(examples)} rows"
            found.append(Finding("stop", f"stop_on is met: {share} teach no end"))
        return self._report(found)

    def _worth_reading(self, examples: Sequence[Example]) -> list[Example]:
        """Prefer examples with an end marker that is learnt, then those whose end marker is masked, then the others."""
        forced = [(read.forced_example(self.program, self.turns, e), e) for e in examples]
        ends = [([read.is_learnt(e, p) for p in f.places if p.marker == "end"], e) for f, e in forced if f]
        ends.sort(key=lambda pair: (not any(pair[0]), not pair[0]))
        return [example for _, example in ends][: self.num_rows]

    def _worth_asking(self, examples: Sequence[Example]) -> list[Prompt]:
        prompts = dict.fromkeys(prompt_of(self.program, self.turns, example) for example in examples)
        return [p for p in prompts if p and len(p) <= self.max_prompt_tokens][: self.num_prompts]

    @property
    def watched(self) -> Watched:
        """Return (prompts, examples): those that `check` uses.

        Ranks that read a sharded model together need the same ones; therefore they can be set.
        """
        return self._prompts[: self.num_prompts], self._examples[: self.num_rows]

    @watched.setter
    def watched(self, watched: Watched) -> None:
        self._prompts, self._examples = watched

    def check(self, step: int, *, sample: bool = True) -> TagReading:
        """Read the model and leave it as it was. Sampling takes up to `max_new_tokens` steps of one batch."""
        begin = time.perf_counter()
        prompts, examples = self.watched
        forced = self._forced(examples)
        if not any(place.marker == "start" for f in forced for place in f.places):
            openings = (opening_example(self.program, prompt) for prompt in prompts)
            forced += self._forced(opening for opening in openings if opening)
        questions = prompts if sample else []
        with read.undisturbed(self.model):
            markers, answer_loss = read.read_forced(self.model, forced)
            outputs = self._outputs(questions)
        samples = tuple(classify(self.program, p, o) for p, o in zip(questions, outputs, strict=True))
        reading = TagReading(step, markers, answer_loss, samples, time.perf_counter() - begin)
        readings, embeddings = [*self.readings, reading], self._trains_embeddings()
        found = [*reading_findings(self.program, self.turns, self.labels, readings, self.patience, embeddings)]
        reading = replace(reading, findings=self._report([*found, *self._stops(reading)]))
        self.readings.append(reading)
        return reading

    def _forced(self, examples: Iterable[Example]) -> list[read.ForcedExample]:
        return [f for f in (read.forced_example(self.program, self.turns, e) for e in examples) if f]

    def _stops(self, reading: TagReading) -> Iterator[Finding]:
        """Count the samplings in a row at which `stop_on` is met, and set `should_stop` once they are enough."""
        if not reading.samples:
            return
        classes = [name for name in CLASSES if reading.share(name) >= self.stop_on.get(name, 2.0)]
        self._streak = self._streak + 1 if classes else 0
        if self._streak >= self.patience:
            self.should_stop = True
            times = f"{self.patience} samplings in a row" if self.patience > 1 else "a sampling"
            yield Finding("stop", f"stop_on is met at {times}: {reading.share(classes[0]):.0%} of the last are {classes[0]}")

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

    def _report(self, findings: Iterable[Finding]) -> tuple[Finding, ...]:
        """Log the findings that were not reported before, and return these."""
        new = tuple(finding for finding in findings if finding.name not in self._reported)
        for finding in new:
            self._reported.add(finding.name)
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
