"""What is known beside a chat template: what the data hold, and how the trainer uses the template."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from thinkguard.doctor.records.record import IN_FIELD, INLINE
from thinkguard.doctor.records.record import PARTS as CONTENT_AS_PARTS
from thinkguard.doctor.records.trainers import trainer_of
from thinkguard.doctor.template.probes import PARTS


@dataclass(frozen=True, slots=True)
class Situation:
    """Counts of the data, if there are any, and the trainer's name, if one was named."""

    facts: Counter[str] | None = None
    trainer: str | None = None

    def count(self, *facts: str) -> int:
        """How many records the data have of these; 0 without data."""
        return sum(self.facts[fact] for fact in facts) if self.facts is not None else 0

    def uses(self, form: str) -> int:
        """How many records hand reasoning over in a form."""
        if form == "content":
            return self.count(INLINE)
        if form == "text part":
            return min(self.count(CONTENT_AS_PARTS), self.count(INLINE))
        return self.count(IN_FIELD + ("thinking part" if form in PARTS else form))

    @property
    def renders(self) -> bool:
        """Whether the trainer writes its training texts with this template."""
        return self.trainer is None or trainer_of(self.trainer).uses_template

    @property
    def learns_earlier_turns(self) -> bool:
        """Whether the loss is on earlier turns as well, as it is by default where no trainer is named."""
        return self.trainer is None or trainer_of(self.trainer).loss not in ("last", "completion")
