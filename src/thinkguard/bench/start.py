"""Cost of starting: set up for a vocabulary, admit a request behind a short and a long prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from thinkguard.bench.alternatives.alternative import Alternative, Cannot, set_up
from thinkguard.bench.setting import Request, Setting
from thinkguard.bench.timing import Spread, spread, with_pace

PROMPTS: Final = (1_000, 10_000, 100_000)  # tokens
_BUDGET: Final = 1_000


def run(setting: Setting, classes: Mapping[str, type[Alternative]], *, repeats: int) -> list[dict[str, Any]]:
    """Measure. Returns a row per alternative: "setup" in ms, "admission" in us by prompt length."""
    return [_row(name, cls, setting, repeats) for name, cls in classes.items()]


def _row(name: str, cls: type[Alternative], setting: Setting, repeats: int) -> dict[str, Any]:
    row: dict[str, Any] = {"alternative": name}
    alternative = set_up(cls, setting)  # what is imported and cached at the first time is not counted
    if isinstance(alternative, Cannot):
        return {**row, "cannot": str(alternative)}
    row["setup"] = _spread(lambda: cls(setting), repeats, 1e3, "ms")
    words = setting.encode(" the") * max(PROMPTS)
    row["admission"] = {}
    for length in PROMPTS:
        request = Request([*words[: length - 8], *setting.encode("<|im_start|>assistant\n" + setting.start + "\n")], _BUDGET)
        row["admission"][str(length)] = _spread(partial(alternative.start, [request]), 3 * repeats, 1e6, "us")
    return row


def _spread(function: Callable[[], object], repeats: int, per_second: float, unit: str) -> Spread:
    times, pace = with_pace(lambda: [_timed(function) * per_second for _ in range(repeats)])
    return spread(times, unit, pace)


def _timed(function: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
