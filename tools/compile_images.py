"""Compile csrc/guard.cu for GPUs into src/thinkguard/device/images, with NVRTC, on a machine that needs no GPU.

    python tools/compile_images.py [--out DIR] [--check]

setup.py calls it. What is there and was made of the same source is left as it is; the same source gives the same bytes.
It prints what every kernel takes. Exit status 1: one has a stack frame or spills, which would put a sequence's state into
memory; or, with `--check`, a second compilation gave other bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "src" / "thinkguard" / "device" / "images"
SOURCES = ("guard.cu", "guard.c", "guard.h", "machine.c", "machine.h", "decide.c", "edit.c", "lanes.h", "thinkguard.h")
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "compute_75")  # a cubin runs on later minors of its major
OPTIONS = ("--std=c++20", "--device-as-default-execution-space", "--fmad=false", "--ptxas-options=-v")
STANDARD = {  # NVRTC brings no headers
    "stdint.h": """
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long long uint64_t; typedef unsigned long long uintptr_t;
#define INT32_MAX 2147483647
#define UINT32_MAX 0xFFFFFFFFu
""",
    "stddef.h": "#ifndef NULL\n#define NULL 0\n#endif\n",
    "string.h": "",
    "math.h": "#ifndef INFINITY\n#define INFINITY __int_as_float(0x7F800000)\n#endif\n",
}


class NoCompilerError(Exception):
    """NVRTC is not installed."""


class Nvrtc:
    """NVIDIA's compiler as a library."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("nvidia")
        folders = [Path(place) / "cuda_nvrtc" / "lib" for place in (spec.submodule_search_locations or ())] if spec else []
        found = [path for folder in folders for path in sorted(folder.glob("libnvrtc.so.*"))]
        if not found:
            raise NoCompilerError("NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12")
        self.library = ctypes.CDLL(str(found[0]))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"NVRTC {major.value}.{minor.value}"

    def compile(self, source: dict[str, str], architecture: str) -> tuple[bytes, str]:
        """Return (cubin or PTX, the assembler's report on each kernel). RuntimeError with the compiler's words."""
        headers = STANDARD | {name: text for name, text in source.items() if name != "guard.cu"}
        program = ctypes.c_void_p()
        texts, names = ((ctypes.c_char_p * len(headers))(*map(str.encode, of)) for of in (headers.values(), headers))
        main = source["guard.cu"].encode()
        self._call("nvrtcCreateProgram", ctypes.byref(program), main, b"guard.cu", len(headers), texts, names)
        options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={architecture}")]
        status = self.library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = self._text(program, "ProgramLog").rstrip(b"\0").decode()
        if status:
            raise RuntimeError(f"{architecture}: {log}")
        image = self._text(program, "PTX" if architecture.startswith("compute") else "CUBIN")
        self._call("nvrtcDestroyProgram", ctypes.byref(program))
        return image, log

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, text)
        return text.raw

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, name)(*arguments)
        if status:
            self.library.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise RuntimeError(f"{name}: {self.library.nvrtcGetErrorString(status).decode()}")


def kernels_of(log: str) -> dict[str, dict[str, int]]:
    """What each kernel takes, by the assembler's report."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        name = part.partition("'")[0]
        sizes = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", part)
        stack, stores, loads = map(int, sizes.groups())
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        found[name] = {"registers": registers, "stack_bytes": stack, "spill_bytes": stores + loads}
    return found


def sources(folder: Path) -> dict[str, str]:
    """The text of every file that is compiled."""
    return {name: (folder / name).read_text(encoding="utf-8") for name in SOURCES}


def build(out: Path = OUT, csrc: Path = ROOT / "csrc") -> dict[str, Any]:
    """Compile what is not there yet; returns the manifest. NoCompilerError without NVRTC, if something is to be compiled."""
    source, file = sources(csrc), out / "images.json"
    key = hashlib.sha256(json.dumps([source, STANDARD, OPTIONS, ARCHITECTURES], sort_keys=True).encode()).hexdigest()
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["source"] == key and all((out / f"{name}.z").exists() for name in ARCHITECTURES):
            return kept
    file.unlink(missing_ok=True)  # other kernels than the source's are none, also where nothing can be compiled
    nvrtc = Nvrtc()
    out.mkdir(parents=True, exist_ok=True)
    images = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(partial(nvrtc.compile, source), ARCHITECTURES)
        for architecture, (image, log) in zip(ARCHITECTURES, compiled, strict=True):
            (out / f"{architecture}.z").write_bytes(zlib.compress(image, 9))
            images[architecture] = {"bytes": len(image), "kernels": kernels_of(log)}
    made = {"source": key, "compiler": nvrtc.version, "images": images}
    file.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--check", action="store_true", help="compile all of it again, and compare")
    options = parser.parse_args()
    made = build(options.out)
    bad = 0
    print(f"{made['compiler']}, source {made['source'][:12]}")
    for architecture, image in made["images"].items():
        for name, takes in image["kernels"].items():
            bad += takes["stack_bytes"] > 0 or takes["spill_bytes"] > 0
            print(f"{architecture:12}{name:18}" + ", ".join(f"{key} {value}" for key, value in takes.items()))
    if options.check:
        with tempfile.TemporaryDirectory() as folder:
            again = Path(folder)
            build(again)
            differ = [path.name for path in options.out.iterdir() if path.read_bytes() != (again / path.name).read_bytes()]
        print(f"compiled again: {'other bytes in ' + ', '.join(differ) if differ else 'the same bytes'}")
        bad += len(differ)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
