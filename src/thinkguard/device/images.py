"""The kernels compiled for GPUs: `images/` beside this file, written by tools/compile_images.py when a package is built."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any, Final

from thinkguard.errors import ThinkGuardError

FOLDER: Final = Path(__file__).with_name("images")


class NoImageError(ThinkGuardError):
    """Why there is no compiled kernel for a GPU."""


def manifest() -> dict[str, Any]:
    """What was compiled. NoImageError, if nothing was.

    {"source": hash, "compiler": version, "images": {name: {"bytes", "kernels": {name: {"registers", ...}}}}}
    """
    try:
        found: dict[str, Any] = json.loads((FOLDER / "images.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NoImageError(
            "this build of thinkguard has no GPU kernels: it was made without NVRTC. `pip install nvidia-cuda-nvrtc-cu12` "
            "and build it again, or install a wheel"
        ) from None
    return found


def load(major: int, minor: int) -> bytes:
    """The image for a GPU's compute capability: a cubin of its major version, else PTX that its driver compiles.

    NoImageError, if there is none, or none that it could run.
    """
    name = _names_for(major, minor)[0]
    return read(name) + b"\0" * name.startswith("compute")


def fallback(major: int, minor: int) -> bytes | None:
    """The PTX for a GPU whose driver refuses the cubin of its major version, as those of Tegra may; None: there is none."""
    names = _names_for(major, minor)
    return read(names[1]) + b"\0" if len(names) > 1 else None


def _names_for(major: int, minor: int) -> list[str]:
    """The cubin that fits best, and the PTX that does; NoImageError for neither."""
    names = list(manifest()["images"])
    known = [(found[1], int(found[2]), int(found[3])) for name in names if (found := re.fullmatch(r"(\w+)_(\d+)(\d)", name))]
    older = [version for version in known if version[1:] <= (major, minor)]
    cubins = [version for version in older if version[:2] == ("sm", major)]
    ptx = [version for version in older if version[0] == "compute"]
    if not (cubins or ptx):
        have = ", ".join(names)
        raise NoImageError(f"no GPU kernels for compute capability {major}.{minor}: this build has {have}")
    return ["{}_{}{}".format(*max(fitting)) for fitting in (cubins, ptx) if fitting]


def read(name: str) -> bytes:
    """One image, as the compiler wrote it."""
    return zlib.decompress((FOLDER / f"{name}.z").read_bytes())
