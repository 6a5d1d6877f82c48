"""The policies that are tried: ways to close a thinking at a cap, and to lengthen it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from thinkguard.policy import ThinkPolicy

ALONE: Final = "alone"
"""The model without a guard."""
MESSAGE: Final = "I have to answer now."
PREFIX: Final = "Answer:"
_LATEST: Final = 12  # tokens before the cap in which a boundary is waited for


def _grace(cap: int) -> dict[str, Any]:
    return {"grace_tokens": min(_LATEST, cap)}


def _bias(cap: int) -> dict[str, Any]:
    return {"soft_thinking_tokens": cap // 3, "close_bias": 8.0}


def _longer(cap: int) -> dict[str, Any]:
    return {"min_thinking_tokens": cap // 2, "extend_message": "\nWait,", "max_extensions": 2}


WAYS: Final[Mapping[str, Callable[[int], dict[str, Any]]]] = {
    "hard": lambda cap: {},
    "line": lambda cap: {**_grace(cap), "close_at": "line"},
    "sentence": lambda cap: {**_grace(cap), "close_at": "sentence"},
    "message": lambda cap: {"close_message": MESSAGE},
    "prefix": lambda cap: {**_grace(cap), "close_at": "sentence", "answer_prefix": PREFIX},
    "bias": _bias,
    "extend": _longer,
}
"""Name -> the fields that go with a cap. What a name means is said in `MEANINGS`."""
MEANINGS: Final = {
    ALONE: "the model without a guard",
    "hard": "closed at the cap",
    "line": f"closed at the first end of a line within {_LATEST} tokens of the cap",
    "sentence": f"closed at the first end of a sentence within {_LATEST} tokens of the cap",
    "message": f'closed at the cap with "{MESSAGE}"',
    "prefix": f'as "sentence", and every answer begins with "{PREFIX}"',
    "bias": "the end's logit raised from a third of the cap on, by 8 at the cap",
    "extend": 'at least half the cap, an earlier end becomes "Wait," at most twice',
}


@dataclass(frozen=True, slots=True)
class Way:
    """One way at one cap, written `line:48`; alone there is no cap."""

    name: str
    cap: int = 0

    @classmethod
    def parse(cls, text: str) -> Way:
        """Read `alone` or `NAME:CAP`; ValueError says what is wrong."""
        name, _, cap = text.partition(":")
        if name == ALONE and not cap:
            return cls(ALONE)
        if name not in WAYS:
            raise ValueError(f"policy {text!r}: must be {ALONE}, or one of {', '.join(WAYS)} with a cap, as in line:48")
        if not cap.isdigit() or int(cap) < 6:
            raise ValueError(f"policy {text!r}: must end in a cap of 6 thinking tokens or more, as in {name}:48")
        return cls(name, int(cap))

    def __str__(self) -> str:
        return f"{self.name}:{self.cap}" if self.cap else self.name

    @property
    def policy(self) -> ThinkPolicy | None:
        """The policy; None for the model alone."""
        if self.name == ALONE:
            return None
        return ThinkPolicy(max_thinking_tokens=self.cap, **WAYS[self.name](self.cap))


CAP: Final = 32
CURVE: Final = (16, 48, 96)
FULL: Final = (
    Way(ALONE), *(Way(name, CAP) for name in WAYS),
    *(Way(name, cap) for cap in CURVE for name in ("hard", "line", "sentence", "message")),
)  # fmt: skip
"""What `make quality` asks: every way at one cap, and those that close at others too."""
