"""Memory that an alternative takes: set up for a vocabulary, and for each request that runs.

    python -m benches.memory NAME TOKENIZER --width NUM --json FILE

The figures come from a process that is forked off one in which the alternative and the tokenizer are loaded. What a process
loads once and shares is left out: of two that are set up behind each other, the growth of the second is taken. Linux alone
tells what is asked for here.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from benches.alternatives.alternative import MODULES, Alternative, Cannot, load, set_up
from benches.setting import Request, Setting

_HELD: Final = 4096  # requests whose memory is taken together
_GROWTH: Final = 2**18  # bytes by which the process has grown when no hole of a size is left
_HEAD: Final = sys.getsizeof(b"")


def _grown(cls: type[Alternative], setting: Setting) -> dict[str, Any]:
    """Set up, admit. Returns bytes by "setup" and "request" and the "seconds" of setting up, or {"cannot": why}."""
    prompt = setting.encode("<|im_start|>assistant\n" + setting.start + "\n")
    requests = [Request(list(prompt), 1000) for _ in range(_HELD)]
    setting.received(requests)
    first = set_up(cls, setting)
    if isinstance(first, Cannot):
        return {"cannot": str(first)}
    warm = first.start(requests[:2])
    resident()  # its first call takes memory of its own
    filled = [_fill()]
    before, begin = resident(), time.perf_counter()
    second = cls(setting)
    seconds = time.perf_counter() - begin
    ready = resident()
    filled.append(_fill())  # what the second needed for a while only
    empty = resident()
    batch = second.start(requests)
    held = resident()
    assert all(filled)
    assert warm is not None
    assert batch is not None
    return {"setup": max(ready - before, 0), "request": max(held - empty, 0) / _HELD, "seconds": seconds}


def _fill() -> list[Any]:
    """Take all small pieces of memory that were freed and not given back, which would hide what is asked for next.

    Both allocators keep them by size: of each size, the greatest first, so much is taken that the process grows by it.
    """
    allocate = ctypes.CDLL(None).malloc
    allocate.restype = ctypes.c_void_p
    taken: list[Any] = []
    for make, sizes in ((lambda size: bytes(size - _HEAD), range(512, _HEAD, -16)), (allocate, range(4096, 0, -16))):
        for size in sizes:
            least = _in_use() + _GROWTH
            while _in_use() < least:
                taken += [make(size) for _ in range(_GROWTH // size)]
    return taken


def _forked(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a function in a copy of this process."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(theirs, json.dumps(function()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise RuntimeError(f"a process that measured memory exited with {os.waitstatus_to_exitcode(status)}")
    found: dict[str, Any] = json.loads(told)
    return found


def resident() -> int:
    """Bytes of memory in use, what was freed given back first."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    found = re.search(r"^Rss: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _in_use() -> int:
    """The same, quicker, and off by what the kernel has not added up yet."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measure in this process, which is made for it, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(MODULES))
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    try:
        cls, setting = load(options.name), Setting.load(options.tokenizer, options.width)
        found = _forked(lambda: _grown(cls, setting))
    except Cannot as reason:
        found = {"cannot": str(reason)}
    options.json.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
