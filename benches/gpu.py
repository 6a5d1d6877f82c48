"""Measure the device kernel on a machine with an NVIDIA GPU, in one command, and print JSON.

    python benches/gpu.py [--out FILE] [--quick] [--only SECTION ...]

First the compiled kernel is held to the C core; then come kernel times against vLLM's own budget, the absence of host
synchronisation, and decode throughput. What cannot run on the machine is a row "not measured" with the reason. Exit status
1: an answer was wrong. Torch with CUDA, Triton and a C compiler are needed; transformers and vLLM are used where they are.
The extension is built where it was not yet. Sections run in processes of their own, so that none takes another along, and
what is known is written after each: all of them take about ten minutes, `--quick` about four.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SECTIONS = {  # name -> module, function, seconds at most
    "agreement": ("gpu_agreement", "rows", 420),
    "kernel": ("gpu_kernel", "kernels", 420),
    "synchronisation": ("gpu_sync", "synchronisation", 120),
    "generate": ("gpu_decode", "huggingface", 240),
    "compiled": ("gpu_decode", "huggingface_compiled", 300),
    "vllm": ("gpu_decode", "vllm", 560),
}
PACKAGES = ("torch", "triton", "transformers", "vllm", "numpy")


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return None


def machine(quick: bool) -> Iterator[dict[str, Any]]:
    """The GPU and what is installed beside it; no GPU: the reason."""
    found: dict[str, Any] = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found |= versions() | {"driver": _driver()}
    missing = next((name for name in ("torch", "triton") if importlib.util.find_spec(name) is None), None)
    if missing:
        yield found | {"reason": f"no {missing}"}
        return
    import torch

    if not torch.cuda.is_available():
        yield found | {"reason": "no GPU"}
        return
    device = torch.cuda.get_device_properties(0)
    yield found | {
        "gpu": device.name, "multiprocessors": device.multi_processor_count, "memory_bytes": device.total_memory,
        "cuda": torch.version.cuda,
    }  # fmt: skip


def prepare() -> None:
    """Make the package importable from this checkout, building its extensions if that has not been done."""
    for folder in (HERE.parent / "src", HERE):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    sources = os.pathsep.join([str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")])
    os.environ["PYTHONPATH"] = sources.rstrip(os.pathsep)  # for engines in other processes
    try:
        importlib.import_module("thinkguard.core._core")
    except ImportError:
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(command, cwd=HERE.parent, check=True, stdout=sys.stderr)
        importlib.invalidate_caches()


def run_section(name: str, quick: bool, file: Path) -> None:
    """Write a section's rows to a file, one line each, as they come."""
    if name == "machine":
        rows = machine(quick)
    else:
        prepare()
        module, function, _ = SECTIONS[name]
        rows = getattr(importlib.import_module(module), function)(quick)
    with file.open("a", encoding="utf-8") as out:
        for row in rows:
            print(json.dumps(row), file=out, flush=True)
            print(f"{name}: {row}"[:300], file=sys.stderr, flush=True)


def in_own_process(name: str, quick: bool, seconds: int) -> list[dict[str, Any]]:
    """A section's rows; where its process did not end well, one more says why."""
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "rows", Path(folder) / "log"
        command = [sys.executable, str(Path(__file__).resolve()), "--section", name, str(file), *["--quick"] * quick]
        with log.open("wb") as errors:
            process = subprocess.Popen(command, stdout=errors, stderr=errors, start_new_session=True)
            try:
                status: int | str = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = f"took longer than {seconds} s"
            except BaseException:
                _end(process)
                raise
            _end(process)
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
        if status != 0:
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
            reason = status if isinstance(status, str) else f"ended with status {status}"
            # A fault of ours in the kernel is no circumstance of the machine.
            kind = "failed" if name == "agreement" and isinstance(status, int) else "not measured"
            rows.append({"what": f"{name}: the rest", kind: f"{reason}; {' | '.join(said)}"[-3000:]})
        return rows


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a section's process group, engines that it started included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file that the JSON is written to as well")
    parser.add_argument("--quick", action="store_true", help="fewer steps, launches and pairs, one shape of the kernel")
    names = list(SECTIONS)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION", help=", ".join(names))
    parser.add_argument("--section", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        run_section(options.section[0], options.quick, Path(options.section[1]))
        return 0
    command = " ".join(["python", "benches/gpu.py", *sys.argv[1:]])
    found = in_own_process("machine", options.quick, 300)[0]
    figures: dict[str, Any] = {"command": command, "machine": found, "rows": []}
    why = found.get("reason") or found.get("not measured")
    if not why:
        try:
            prepare()
        except subprocess.CalledProcessError as error:
            why = f"the extension could not be built: {error}"
    for name in options.only:
        if why:
            figures["rows"].append({"what": name, "not measured": why})
        else:
            figures["rows"] += in_own_process(name, options.quick, SECTIONS[name][2])
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    return int(any("failed" in row for row in figures["rows"]))


if __name__ == "__main__":
    sys.exit(main())
