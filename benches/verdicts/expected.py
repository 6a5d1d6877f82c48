"""Where each alternative of the pinned versions fails at what it is for, written down."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from benches.verdicts.cases import SPLITS

WRONG: Final[dict[str, frozenset[str]]] = {
    "nothing": frozenset(),
    "plain torch": frozenset({
        "prompt opened by a longer token", "end in other tokens", "end begun at the cap, in other tokens", SPLITS,
    }),
    "vLLM V1 budget": frozenset({
        "endless thinking, markers as text", "prompt opened by a longer token", "end in other tokens",
        "end begun at the cap, in its own tokens", "end begun at the cap, in other tokens", "forced end preempted",
        "forced message preempted", SPLITS,
    }),
    "vLLM V2 budget": frozenset({
        "prompt opened by a longer token", "end in other tokens", "end begun at the cap, in other tokens", SPLITS,
    }),
    "SGLang processor": frozenset(),
    "SGLang strict thinking": frozenset({"end in other tokens", "end begun at the cap, in other tokens", SPLITS}),
    "xgrammar structural tag": frozenset(),
    "llguidance grammar": frozenset(),
    "thinkguard": frozenset(),
}  # fmt: skip
"""Alternative -> the cases it gets wrong; any other it gets right, or it cannot be asked of it. SPLITS stands for the splits
of every vocabulary whose markers are text."""


def wrong_cases(name: str, cases: Iterable[str]) -> set[str]:
    """Return those cases that an alternative is written down to get wrong, SPLITS as the vocabularies among `cases`."""
    splits = {case for case in cases if case.startswith(SPLITS)}
    return {case for entry in WRONG[name] for case in (splits if entry == SPLITS else {entry})}
