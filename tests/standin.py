"""A CUDA driver that runs the kernels on the host, as lanes in fibers: tests/lanes/emulator.cpp, compiled when it is needed.

THINKGUARD_SANITIZE=address or =thread compiles it with sanitizers; tools/sanitize.sh sets it, and loads their runtime.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

from filelock import FileLock

from thinkguard.device import images
from thinkguard.device.launch import DeviceKernels, Driver

HERE = Path(__file__).resolve().parent
SANITIZE = os.environ.get("THINKGUARD_SANITIZE", "")
FLAGS = ["-std=c++20", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]
FLAGS += ["-fstack-clash-protection"]  # a large frame touches the page below a lane's stack, too
OPTIONS = {
    "": ["-O2"],
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
}[SANITIZE]
EVERY, NOBODY = -2, -1
"""Lanes that pass by a meeting; of `Standin.missing`."""


def build(folder: Path) -> Path:
    """Compile the driver, and write images that it takes for its own; what is newer than its sources is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    library, csrc = folder / "libcuda.so.1", HERE.parent / "csrc"
    sources = [*(HERE / "lanes").glob("*.[ch]*"), *csrc.iterdir(), Path(__file__)]
    with FileLock(folder / "lock"):
        if not library.exists() or library.stat().st_mtime < max(path.stat().st_mtime for path in sources):
            (folder / "images.json").write_text(json.dumps({"images": {"sm_90": {}}}), encoding="utf-8")
            (folder / "sm_90.z").write_bytes(zlib.compress(b"\x7fELF, as the driver looks no further"))
            command = [os.environ.get("CXX", "g++"), *FLAGS, *OPTIONS, f"-I{csrc}", "-Wl,-soname,libcuda.so.1"]
            env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a sanitizer's runtime
            subprocess.run([*command, "-o", str(library), str(HERE / "lanes" / "emulator.cpp")], check=True, env=env)
    return library


class Launch(ctypes.Structure):
    """What the driver was told of the last launch, and the context that it was made in."""

    _fields_ = [
        ("number", ctypes.c_int), ("kernel", ctypes.c_char_p), ("num_blocks", ctypes.c_uint), ("num_lanes", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("context", ctypes.c_void_p),
    ]  # fmt: skip


class Standin:
    """The driver, which a test may tell what to be, what to refuse and what to get wrong."""

    def __init__(self, library: Path) -> None:
        self.images = library.parent
        self.library = ctypes.CDLL(str(library))  # the launcher finds it by its name from now on
        self.library.standin_failure.restype = ctypes.c_char_p
        self.library.standin_launch.restype = ctypes.POINTER(Launch)

    def reset(self) -> None:
        """Be as it was when it was loaded."""
        self.be(9, 0)
        self.refuse()
        self.corrupt(-1)
        self.use(16)
        self.seed(0)

    def kernels(self, ordinal: int = 0) -> DeviceKernels:
        """The real launcher on this driver, in whose context this thread works from now on, as one does that used torch."""
        driver = Driver()
        assert hasattr(driver.library, "standin_use"), "a real driver was found first"
        with mock.patch.object(images, "FOLDER", self.images):
            kernels = DeviceKernels(ordinal, driver)
        if self.context is None:
            driver("cuCtxPushCurrent_v2", kernels.context)
        return kernels

    def use(self, num_lanes: int) -> None:
        """How many lanes a block has, whatever the launcher asks for: 1 to 128. Few are faster."""
        self.library.standin_use(num_lanes)

    def seed(self, seed: int) -> None:
        """Begin the orders in which lanes run anew."""
        self.library.standin_seed(ctypes.c_uint64(seed))

    def be(self, major: int, minor: int) -> None:
        """Have this compute capability."""
        self.library.standin_be(major, minor)

    def refuse(self, name: str = "", status: int = 0) -> None:
        """Answer calls of one function with an error; by default of none."""
        self.library.standin_refuse(name.encode(), status)

    def corrupt(self, after: int) -> None:
        """Flip a bit of the first logit in the launch that comes behind so many others; -1: in none."""
        self.library.standin_corrupt(after)

    @contextmanager
    def missing(self, file: str, line: int, lane: int) -> Iterator[None]:
        """Let a lane pass by the meeting at a line of csrc, or EVERY lane, as if the meeting were not there."""
        assert self.library.standin_miss(file.encode(), line, lane), f"{file}:{line} was not reached yet"
        try:
            yield
        finally:
            self.library.standin_miss(file.encode(), line, NOBODY)

    @contextmanager
    def doing_nothing(self) -> Iterator[None]:
        """Launches return at once: what is left is the launcher's own time."""
        self.library.standin_do_nothing(True)
        try:
            yield
        finally:
            self.library.standin_do_nothing(False)

    @property
    def sites(self) -> dict[tuple[str, int], tuple[str, int]]:
        """(file, line) of csrc -> (which meeting, how often it was reached in this process)."""
        text = ctypes.create_string_buffer(self.library.standin_sites(None, 0) + 1000)
        self.library.standin_sites(text, len(text))
        lines = (line.split() for line in text.value.decode().splitlines())
        return {(file, int(line)): (kind, int(reached)) for kind, file, line, reached in lines}

    @property
    def context(self) -> int | None:
        """What this thread works in."""
        current = ctypes.c_void_p()
        self.library.cuCtxGetCurrent(ctypes.byref(current))
        return current.value

    @property
    def launch(self) -> Launch:
        """The last one."""
        return Launch.from_buffer_copy(self.library.standin_launch().contents)

    @property
    def failure(self) -> str:
        """Why the last launch failed."""
        return self.library.standin_failure().decode()


@cache
def standin() -> Standin:
    """The one driver of this process: a process can load one library of a name."""
    return Standin(build(HERE.parent / "build" / f"lanes{SANITIZE and '-'}{SANITIZE}"))
