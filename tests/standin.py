"""A CUDA driver that runs the kernels on the host, as lanes in fibers: tests/lanes/emulator.cpp, built once per session."""

from __future__ import annotations

import ctypes
import os
import subprocess
from functools import cache
from pathlib import Path

from thinkguard.device.launch import DeviceKernels, Driver

HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c++20", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]


def build(out: Path, lanes: int, *flags: str) -> Path:
    """Compile a driver whose blocks have so many lanes; what is newer than its sources is kept."""
    library = out / f"lanes-{lanes}{''.join(flags).replace('=', '-').replace(',', '-')}" / "libcuda.so.1"
    csrc = HERE.parent / "csrc"
    sources = [HERE / "lanes" / "emulator.cpp", *csrc.iterdir()]
    if not library.exists() or library.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        library.parent.mkdir(parents=True, exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        command = [os.environ.get("CXX", "g++"), *FLAGS, *(flags or ["-O2"]), f"-DTG_EMULATED={lanes}", f"-I{csrc}"]
        command += ["-Wl,-soname,libcuda.so.1", "-o", str(made), str(sources[0])]
        subprocess.run(command, check=True)
        made.replace(library)
    return library


class Standin:
    """The driver, which a test may tell what to be and what to refuse."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))  # the launcher finds it by its name from now on
        self.library.standin_failure.restype = ctypes.c_char_p
        self.num_lanes = self.library.standin_lanes()

    def kernels(self) -> DeviceKernels:
        """The real launcher on this driver."""
        driver = Driver()
        assert hasattr(driver.library, "standin_lanes"), "a real driver was found first"
        return DeviceKernels(0, driver)

    def refuse(self, name: str = "", status: int = 0) -> None:
        """Answer the next calls of one function with an error; by default of none."""
        self.library.standin_refuse(name.encode(), status)

    def be(self, major: int, minor: int) -> None:
        """Have this compute capability."""
        self.library.standin_be(major, minor)

    def seed(self, seed: int) -> None:
        """Begin the orders in which lanes run anew."""
        self.library.standin_seed(ctypes.c_uint64(seed))

    @property
    def num_launches(self) -> int:
        """So far."""
        return self.library.standin_launches()

    @property
    def failure(self) -> str:
        """Why the last launch failed."""
        return self.library.standin_failure().decode()


@cache
def standin(lanes: int = 16) -> Standin:
    """The one driver of this process: a process can load one library of a name."""
    return Standin(build(HERE.parent / "build", lanes))
