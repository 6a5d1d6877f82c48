"""A check is one thing that was looked at, as data; a report holds every check of what was examined."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from thinkguard.doctor.catalogue import Entry, entries
from thinkguard.errors import InputError

Status = Literal["ok", "note", "problem", "skipped", "not applicable", "could not tell"]
_STATUSES: Final = get_args(Status)
_WIDTH: Final = max(map(len, _STATUSES))
LOST: Final = ("⟦", "⟧")
"""Evidence puts what was lost, or what should not be there, between these."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, named as in the catalogue.

    A problem loses reasoning or answers now. A note is a hazard that strikes only on certain input, and says on which.
    If `wanted` or `fix` of a problem or a note is empty, it comes from the catalogue. A problem needs both.
    """

    name: str
    status: Status
    found: str
    wanted: str = ""
    fix: str = ""
    evidence: tuple[str, ...] = ()  # what was seen, word for word

    def __post_init__(self) -> None:
        if self.name not in entries():
            raise InputError(f"check {self.name!r} is not in the catalogue: add it to doctor/catalogue/*.json")
        if self.status not in _STATUSES:
            raise InputError(f"check {self.name!r}: status={self.status!r} is none of {', '.join(_STATUSES)}")
        for field in ("wanted", "fix"):
            if self.fired and not getattr(self, field):
                object.__setattr__(self, field, getattr(self.entry, field))
        if self.status == "problem" and not (self.wanted and self.fix):
            raise InputError(f"check {self.name!r}: a problem has to say what was wanted and how to fix it")

    @property
    def entry(self) -> Entry:
        """What the catalogue says about this check."""
        return entries()[self.name]

    @property
    def fired(self) -> bool:
        """Whether there is something to tell: a problem or a note."""
        return self.status in ("problem", "note")

    def lines(self, width: int) -> Iterator[str]:
        """Spell the check, its name padded to `width`."""
        yield f"{self.status:{_WIDTH}}  {self.name:{width}}  {self.found}".rstrip()
        indent = " " * (_WIDTH + 2)
        why = self.entry.why if self.fired else ""
        for label, text in (("wanted", self.wanted), ("why", why), ("fix", self.fix)):
            if text and self.status != "ok":
                yield f"{indent}{label + ':':{width}}  {text}"
        for text in self.evidence:
            yield f"{indent}{'seen:':{width}}  {text}"
        if self.fired and self.entry.references:
            yield f"{indent}{'see:':{width}}  {', '.join(self.entry.references)}"


@dataclass(frozen=True, slots=True)
class Plot:
    """A histogram or a curve of a report."""

    title: str
    x_label: str
    y_label: str
    x: tuple[float, ...]  # left edges of the bars, in order
    y: tuple[float, ...]
    marks: tuple[tuple[float, str], ...] = ()  # vertical lines, each with what it stands for


@dataclass(frozen=True, slots=True)
class Report:
    """What was examined, and what was found."""

    subject: str
    checks: tuple[Check, ...]
    facts: tuple[tuple[str, str], ...] = ()  # (name, value), neither good nor bad, such as a policy line to paste
    plots: tuple[Plot, ...] = ()

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that found something to fix."""
        return tuple(check for check in self.checks if check.status == "problem")

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return {
            "subject": self.subject,
            "ok": not self.problems,
            "facts": dict(self.facts),
            "checks": [_as_dict(check) for check in self.checks],
            "plots": [asdict(plot) for plot in self.plots],
        }

    def as_text(self) -> str:
        """The report for a terminal: a line per check, and what to do below those that found something."""
        width = max((len(check.name) for check in self.checks), default=0)
        width = max(width, len("wanted:"))
        lines = [self.subject, *(f"{name}: {value}" for name, value in self.facts)]
        return "\n".join([*lines, *(line for check in self.checks for line in check.lines(width))])

    def summary(self) -> str:
        """Count the checks by status."""
        counts = {status: sum(check.status == status for check in self.checks) for status in _STATUSES}
        numbers = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        return f"{len(self.checks)} checks: {numbers}"


def _as_dict(check: Check) -> dict[str, Any]:
    values = {"part": check.entry.part, **asdict(check), "evidence": list(check.evidence)}
    if check.fired:
        values |= {"why": check.entry.why, "references": list(check.entry.references)}
    return values
