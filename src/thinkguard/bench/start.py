"""Cost of starting: set up for a vocabulary, admit a request behind a short and a long prompt.

A request is admitted whose like, with the same budget, was admitted before: grammars and policies are compiled. thinkguard,
vLLM's holder and the plain processor find out from the prompt whether the thinking is open; who hands a grammar to xgrammar,
llguidance or SGLang has to know, so that is found out before the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from thinkguard.bench.alternatives.alternative import Alternative, Cannot, set_up
from thinkguard.bench.setting import Request, Setting
from thinkguard.bench.timing import Round, spread_of_rounds, with_pace

PROMPTS: Final = (1_000, 10_000, 100_000)  # tokens
_BUDGET: Final = 1_000


def run(
    setting: Setting, classes: Mapping[str, type[Alternative]], *, repeats: int, num_rounds: int = 2
) -> list[dict[str, Any]]:
    """Measure in rounds. Returns a row per alternative: "setup" in ms, "admission" in us by prompt length."""
    # What is imported and cached at the first time is not counted.
    made = {name: set_up(cls, setting) for name, cls in classes.items()}
    requests = {length: Request(_prompt(setting, length), _BUDGET) for length in PROMPTS}
    setting.received(list(requests.values()))
    found: dict[str, dict[int, list[Round]]] = {name: {length: [] for length in (0, *PROMPTS)} for name in made}
    for _ in range(num_rounds):
        for name, alternative in made.items():
            if isinstance(alternative, Cannot):
                continue
            found[name][0].append(_timed(partial(classes[name], setting), repeats, 1e3))
            for length, request in requests.items():
                alternative.start([request])
                found[name][length].append(_timed(partial(alternative.start, [request]), 3 * repeats, 1e6))
    return [_row(name, alternative, found[name]) for name, alternative in made.items()]


def _prompt(setting: Setting, length: int) -> list[int]:
    """About so many tokens, behind which the thinking is open."""
    words = setting.encode(" the") * length
    return [*words[: length - 8], *setting.encode("<|im_start|>assistant\n" + setting.start + "\n")]


def _timed(function: Callable[[], object], repeats: int, per_second: float) -> Round:
    """Time some calls, with the pace of the machine around them."""

    def seconds() -> float:
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    return with_pace(lambda: [seconds() * per_second for _ in range(repeats)])


def _row(name: str, alternative: Alternative | Cannot, found: Mapping[int, list[Round]]) -> dict[str, Any]:
    """`found`: rounds by the prompt's length, 0 for setting up"""
    if isinstance(alternative, Cannot):
        return {"alternative": name, "cannot": str(alternative)}
    admission = {str(length): spread_of_rounds(found[length], "us") for length in PROMPTS}
    return {"alternative": name, "setup": spread_of_rounds(found[0], "ms"), "admission": admission}
