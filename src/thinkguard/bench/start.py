"""Cost of starting: set up for a vocabulary, admit a request behind a short and a long prompt, and the memory of both."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from thinkguard.bench.alternatives.alternative import Alternative, Cannot
from thinkguard.bench.setting import Request, Setting
from thinkguard.bench.timing import Spread, spread

PROMPTS: Final = (1_000, 10_000, 100_000)  # tokens
_BUDGET: Final = 1_000
_HELD: Final = 4096  # requests whose memory is taken together


def run(setting: Setting, classes: Mapping[str, type[Alternative]], *, repeats: int) -> list[dict[str, Any]]:
    """Measure. Returns a row per alternative: "setup" in ms, "admission" in us by prompt length, and bytes of both.

    Bytes are what the process grew by, and None where the system does not tell; prompts are the host's own and not counted.
    """
    return [_row(name, cls, setting, repeats) for name, cls in classes.items()]


def _row(name: str, cls: type[Alternative], setting: Setting, repeats: int) -> dict[str, Any]:
    row: dict[str, Any] = {"alternative": name}
    try:
        cls(setting)  # what is imported and cached at the first time is not counted
    except Cannot as reason:
        return {**row, "cannot": str(reason)}
    times, bytes_, kept = [], [], []
    for _ in range(repeats):
        grown, (seconds, made) = _growth(lambda: _timed(lambda: cls(setting)))
        times.append(seconds * 1e3)
        bytes_.append(grown)
        kept.append(made)
    row["setup"], row["setup_bytes"] = spread(times, "ms"), _middle(bytes_)
    alternative: Alternative = kept[-1]
    words = setting.encode(" the") * max(PROMPTS)
    row["admission"] = {}
    for length in PROMPTS:
        request = Request([*words[: length - 8], *setting.encode("<|im_start|>assistant\n" + setting.start + "\n")], _BUDGET)
        times = []
        for _ in range(3 * repeats):
            begin = time.perf_counter()
            alternative.start([request])
            times.append((time.perf_counter() - begin) * 1e6)
        row["admission"][str(length)] = spread(times, "us")
    short = setting.encode("<|im_start|>assistant\n" + setting.start + "\n")
    several = [Request(list(short), _BUDGET) for _ in range(_HELD)]
    alternative.start(several[:2])
    grown, batch = _growth(lambda: alternative.start(several))
    row["request_bytes"] = None if grown is None else grown / _HELD
    assert batch is not None
    return row


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def _growth(function: Callable[[], Any]) -> tuple[int | None, Any]:
    """(bytes that the process grew by, result)"""
    before = _resident()
    result = function()
    after = _resident()
    return (None if before is None or after is None else max(after - before, 0)), result


def _resident() -> int | None:
    """Bytes of memory in use, what was freed given back first; None where the system does not say."""
    gc.collect()
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _middle(values: list[int | None]) -> Spread | None:
    known = [float(value) for value in values if value is not None]
    return spread(known, "bytes") if known else None
