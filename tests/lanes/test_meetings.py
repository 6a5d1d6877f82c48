"""Whether the emulation would find what it is for: a meeting of lanes that is missing from csrc, or that a lane misses.

Each tg_meet() of csrc is left out in turn. Lanes that run in another order then come to another result, or, where two of
them only write the same value, TSan reports them (tools/sanitize.sh runs this file once more under it). So it does where all
lanes write what TG_ALONE leaves to lane 0.
"""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from standin import EVERY, SANITIZE, standin

torch = pytest.importorskip("torch", reason="the device's kernels need torch")

from lanes.crowd import EditsCrowd, SequencesCrowd, SlotsCrowd  # noqa: E402

from thinkguard.device.launch import UnavailableError  # noqa: E402

CSRC = Path(__file__).resolve().parents[2] / "csrc"
WRITE_ALIKE = {
    ("edit.c", "ban_list", 0),  # lists overlap, but all of them are banned
    ("guard.c", "tg_guard_slot", 0),  # a slot that was brought up to date already comes to the same decision
}  # fmt: skip
"""Meetings without which no result differs in any order of lanes: only TSan tells."""
NOT_NEEDED = {
    ("edit.c", "ban_beyond", 0),  # what is written next to these tokens is written by the same lanes
    ("edit.c", "ban_cut", 0),  # ban_beyond follows, whose tokens are others
    ("edit.c", "apply_allow", 0),  # all met behind what they read last
}
"""Meetings without which all is well today."""


def sites():
    """(meeting or TG_ALONE, file, line, function, number of tg_meet before it in the function) of every one in csrc."""
    for path in sorted(CSRC.glob("*.[ch]")):
        function, number = "", 0
        for at, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if (begins := re.match(r"[a-z][^;=]*?(\w+)\(", line)) and path.name != "lanes.h":
                function, number = begins[1], 0
            for found in re.finditer(r"\b(tg_(?:meet|any|count|first|largest)(?=\()|TG_ALONE)", function and line):
                yield found[1], path.name, at, function, number
                number += found[1] == "tg_meet"


ALL = list(sites())
MEETINGS = [one for one in ALL if one[0] != "TG_ALONE"]
UNSEEN = NOT_NEEDED | (set() if SANITIZE == "thread" else WRITE_ALIKE)
FOUND = [one for one in ALL if one[0] == "tg_meet" and (one[1], *one[3:]) not in UNSEEN]
FOUND += [one for one in ALL if one[0] == "TG_ALONE" and SANITIZE == "thread"]


@pytest.fixture(scope="module")
def driver():
    """The emulation, every meeting of which was reached."""
    driver = standin()
    driver.reset()
    assert difference(driver, range(12)) is None
    return driver


def run(crowd, num_steps):
    for _ in range(num_steps):
        crowd.step()


def difference(driver, seeds):
    """What a generated step differs in, None if none does. Edits cost least, and lists of many kinds overlap in them."""
    for seed in seeds:
        crowds = [EditsCrowd(4 * seed + i, driver.kernels(), 48) for i in range(4)]
        crowds += [SlotsCrowd(seed, driver.kernels()), SequencesCrowd(seed, driver.kernels())]
        for crowd in crowds:
            try:
                run(crowd, 4)
            except (AssertionError, UnavailableError) as found:
                return str(found)
    return None


def name(one):
    return f"{one[1]} {one[3]} {one[0]} {one[4]}"


def test_generated_steps_reach_every_meeting(driver):
    assert {(file, line): meeting for meeting, file, line, *_ in ALL} == {
        place: meeting for place, (meeting, _) in driver.sites.items()
    }
    known = {(one[1], *one[3:]) for one in ALL if one[0] == "tg_meet"}
    assert known >= WRITE_ALIKE | NOT_NEEDED, "the tables above are out of date"


@pytest.mark.parametrize("one", FOUND, ids=name)
def test_what_is_left_out_is_found(driver, one):
    with driver.missing(*one[1:3], EVERY):
        assert difference(driver, range(150)) is not None
    assert difference(driver, range(3)) is None, "not for that reason"


@pytest.mark.parametrize("one", MEETINGS, ids=name)
def test_a_lane_that_misses_a_meeting_fails_instead_of_hanging(driver, one):
    with driver.missing(*one[1:3], 3):
        said = difference(driver, range(150)) or "nothing was found"
    ended = r"\d+ of 16 lanes ended while the others wait for them in tg_"
    strayed = r"lane \d+ came to tg_\w+ at \w+\.c:\d+, lane 0 to tg_"
    assert re.search(f"{ended}|{strayed}", said), said


OVERFLOW = """
import ctypes, sys
driver = ctypes.CDLL(sys.argv[1])
context, kernel = ctypes.c_void_p(), ctypes.c_void_p()
driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
driver.cuCtxPushCurrent_v2(context)
driver.standin_library.restype = ctypes.c_void_p
assert not driver.cuLibraryGetKernel(ctypes.byref(kernel), ctypes.c_void_p(driver.standin_library()), b"overflow")
print("launched", flush=True)
driver.cuLaunchKernel(kernel, 1, 1, 1, 128, 1, 1, 0, None, (ctypes.c_void_p * 1)(), None)
print("came back")
"""


def test_a_lane_that_needs_more_stack_than_it_has_ends_the_process():
    library = standin().images / "libcuda.so.1"
    done = subprocess.run([sys.executable, "-c", OVERFLOW, str(library)], capture_output=True, text=True)
    assert done.stdout == "launched\n", done.stderr
    assert done.returncode == -signal.SIGSEGV or "stack-overflow" in done.stderr or "SEGV" in done.stderr, done.stderr
