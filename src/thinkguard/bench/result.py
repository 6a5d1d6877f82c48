"""What `thinkguard bench` is asked, and what it answers: as JSON, and as lines to read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from thinkguard.bench.timing import Ratio, ratio


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for; the names are the command's options."""

    model: str  # a folder, or a name that transformers finds
    batch: int = 1
    new_tokens: int = 128
    pairs: int = 12
    device: str | None = None  # None: the best that torch has here
    format: str | None = None  # None: detected

    @property
    def max_thinking_tokens(self) -> int:
        """The guard's budget."""
        return self.new_tokens // 2


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured, and what has to be known to read it."""

    plan: Plan
    format: str
    prompt_tokens: int
    device: str
    device_name: str
    threads: int | None  # torch's, where the device is the CPU
    dtype: str
    versions: dict[str, str]
    seconds: dict[str, list[float]]  # "alone" and "guarded" -> mean seconds of one run, by pair
    closed_by: dict[str, int]  # what ended the thinking of the guarded outputs, all of which were checked

    @property
    def ratio(self) -> Ratio:
        """Tokens per second guarded over alone."""
        return ratio(self.seconds["alone"], self.seconds["guarded"])

    @property
    def tokens_per_second(self) -> dict[str, float]:
        """The median over the pairs, of the whole batch; reading the prompt is in it."""
        tokens = self.plan.batch * self.plan.new_tokens
        return {name: tokens / median(seconds) for name, seconds in self.seconds.items()}

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {
            "tokens_per_second": self.tokens_per_second, "ratio": asdict(self.ratio), "seconds": self.seconds,
            "model": self.plan.model, "format": self.format, "batch": self.plan.batch, "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.plan.new_tokens, "max_thinking_tokens": self.plan.max_thinking_tokens,
            "closed_by": self.closed_by, "device": self.device, "device_name": self.device_name, "threads": self.threads,
            "dtype": self.dtype, "versions": self.versions,
        }  # fmt: skip

    def as_text(self) -> str:
        """The figures as aligned lines, and below what they were measured on."""
        found, plan = self.ratio, self.plan
        pairs = "1 pair" if found.pairs == 1 else f"{found.pairs} pairs"
        interval = f"95 %: {found.low:.3f} to {found.high:.3f}; {pairs} in the order a b b a"
        rates = [(name, f"{_rate(rate)} tokens/s") for name, rate in self.tokens_per_second.items()]
        rows = [*rates, ("guarded / alone", f"{found.median:.3f}  ({interval})")]
        lines = [f"{name:17}{value}" for name, value in rows]
        threads = "" if self.threads is None else f", {self.threads} thread(s)"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        closed = ", ".join(f"{name} {num}" for name, num in self.closed_by.items())
        about = [
            ("model", f"{Path(plan.model).name}, {self.dtype}, format {self.format}"),
            ("device", f"{self.device}{threads}, {self.device_name}"),
            ("batch", f"{plan.batch}, prompt {self.prompt_tokens} tokens, new {plan.new_tokens}"),
            ("thinking", f"at most {plan.max_thinking_tokens} tokens in every guarded output; closed by: {closed}"),
            ("versions", versions),
        ]
        return "\n".join([*lines, "", *(f"{name:17}{value}" for name, value in about)])


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
