"""A check is one thing that was looked at, as data; a report is what was examined and every check of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from thinkguard.errors import InputError

Status = Literal["ok", "problem", "skipped", "not applicable", "could not tell"]
_STATUSES: Final = get_args(Status)
_WIDTH: Final = max(map(len, _STATUSES))


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. A problem names what was wanted and how to fix it."""

    name: str
    status: Status
    found: str
    wanted: str = ""
    fix: str = ""
    evidence: tuple[str, ...] = ()  # what was seen, word for word

    def __post_init__(self) -> None:
        if self.status not in _STATUSES:
            raise InputError(f"check {self.name!r}: status={self.status!r} is none of {', '.join(_STATUSES)}")
        if self.status == "problem" and not (self.wanted and self.fix):
            raise InputError(f"check {self.name!r}: a problem has to say what was wanted and how to fix it")

    def lines(self, width: int) -> Iterator[str]:
        """Spell the check, its name padded to `width`."""
        yield f"{self.status:{_WIDTH}}  {self.name:{width}}  {self.found}".rstrip()
        indent = " " * (_WIDTH + 2)
        for label, text in (("wanted", self.wanted), ("fix", self.fix)):
            if text and self.status != "ok":
                yield f"{indent}{label + ':':{width}}  {text}"
        for text in self.evidence:
            yield f"{indent}{'seen:':{width}}  {text}"


@dataclass(frozen=True, slots=True)
class Report:
    """What was examined, and what was found."""

    subject: str
    checks: tuple[Check, ...]

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that found something to fix."""
        return tuple(check for check in self.checks if check.status == "problem")

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        checks = [asdict(check) | {"evidence": list(check.evidence)} for check in self.checks]
        return {"subject": self.subject, "ok": not self.problems, "checks": checks}

    def as_text(self) -> str:
        """The report for a terminal: a line per check, and what to do below those that found something."""
        width = max((len(check.name) for check in self.checks), default=0)
        width = max(width, len("wanted:"))
        return "\n".join([self.subject, *(line for check in self.checks for line in check.lines(width))])

    def summary(self) -> str:
        """Count the checks by status."""
        counts = {status: sum(check.status == status for check in self.checks) for status in _STATUSES}
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        return f"{len(self.checks)} checks: {told}"
