"""What is known beside a chat template: what the data hold, and how the trainer uses the template."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from thinkguard.doctor.check import Check
from thinkguard.doctor.records.record import IN_FIELD, INLINE, MISSPELLED
from thinkguard.doctor.records.record import PARTS as CONTENT_AS_PARTS
from thinkguard.doctor.records.trainers import trainer_of
from thinkguard.doctor.template.probes import PARTS


@dataclass(frozen=True, slots=True)
class Situation:
    """Counts of the data, if there are any, and the trainer's name, if one was named."""

    facts: Counter[str] | None = None
    trainer: str | None = None

    def count(self, *facts: str) -> int:
        """Return how many records have these facts, added up; 0 without data."""
        return sum(self.facts[fact] for fact in facts) if self.facts is not None else 0

    def uses(self, form: str) -> int:
        """Return how many records hand reasoning over in `form`; inline forms count only in the family's own markers."""
        if form == "content":
            return self.count(INLINE)
        if form == "text part":
            return min(self.count(CONTENT_AS_PARTS), self.count(INLINE))
        return self.count(IN_FIELD + ("thinking part" if form in PARTS else form))

    @property
    def misspelled(self) -> dict[str, int]:
        """Check -> how many records it found to have inline reasoning in markers that are not the family's own."""
        facts = Counter(self.facts)
        return {fact.removeprefix(MISSPELLED): num for fact, num in facts.items() if fact.startswith(MISSPELLED) and num}

    def respelled(self) -> Situation:
        """Return the situation as it would be if the misspelled records were written in the family's own markers."""
        return replace(self, facts=Counter(self.facts) + Counter({INLINE: sum(self.misspelled.values())}))

    def follows(self, check: Check, respelled: Check) -> Check:
        """Return the check; a note that `respelled` makes a problem is skipped, and names the checks to mend first.

        `respelled` is the same check, made as if the records were written in the family's own markers.
        """
        if check.status != "note" or respelled.status != "problem":
            return check
        stands = f"{' and '.join(self.misspelled)} stands for it: the data do not write the family's own markers"
        return replace(check, status="skipped", found=f"{stands}; with those, {check.found}", wanted="", evidence=())

    @property
    def renders(self) -> bool:
        """Whether the trainer writes its training texts with this template."""
        return self.trainer is None or trainer_of(self.trainer).uses_template

    @property
    def learns_earlier_turns(self) -> bool:
        """Whether the loss is on earlier turns as well, as it is by default where no trainer is named."""
        return self.trainer is None or trainer_of(self.trainer).loss not in ("last", "completion")

    def for_trainer(self, check: Check) -> Check:
        """Return the check; a problem with training texts becomes a note if the trainer does not use this template."""
        if check.status != "problem" or self.renders or check.name == "template-renders" or not self.trainer:
            return check
        title = trainer_of(self.trainer).title
        other = f"{title} writes training texts with templates of its own, not with this one"
        return replace(check, status="note", found=f"{check.found}. {other}; it counts where this one is used")
