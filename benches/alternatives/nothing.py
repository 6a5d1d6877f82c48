"""Doing nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from benches.setting import Request, Setting


class Nothing:
    """What a host does by itself."""

    version, path = "-", "-"
    cannot: ClassVar[dict[str, str]] = dict.fromkeys(
        ("budget", "message", "ban EOS", "one block", "utf-8"), "nothing is done"
    )

    def __init__(self, setting: Setting) -> None: ...

    def start(self, requests: Sequence[Request]) -> Nothing:
        """Admit requests, of which nothing is kept."""
        return self

    def step(self, sampled: Sequence[int] | None, logits: Any) -> None:
        """Leave the logits as they are."""

    def resume(self, row: int, request: Request) -> None:
        """Nothing was kept, so nothing is lost."""
