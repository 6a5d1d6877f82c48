"""A GPU, without which all is left out, and the programs that several benchmarks share.

`make bench-gpu` builds the extension where it is missing and runs `pytest benches/gpu -x`. The files come in the order of
their names: nothing is timed after an answer that is not the C core's, and what has no time left within eight minutes is
left out. Torch with CUDA and a C compiler are needed; transformers and vLLM are used where they are.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any, Final

import pytest
import torch

from benches.gpu.common import Sizes, tables_on
from benches.measuring import leave_out
from thinkguard.device.tables import DeviceProgram

BEGUN: Final = time.monotonic()
SECONDS: Final = 420
"""That all may take together, which with what comes before and behind it is eight minutes: GPUs are rented by the minute."""
WANTED: Final = {
    "test_generate[as it is]": 60, "test_generate[compiled]": 90, "test_vllm[0.6]": 130, "test_vllm[0.0]": 40,
}  # fmt: skip
"""Seconds that a benchmark may take, engines' start and compilation included; of the others no one takes many."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Function) -> None:
    """Leave a benchmark out before any of its fixtures is made."""
    if not torch.cuda.is_available():
        leave_out(item._request, "no GPU")
    if time.monotonic() - BEGUN + WANTED.get(item.name, 10) > SECONDS:
        leave_out(item._request, f"not enough of the {SECONDS} seconds was left")


@pytest.fixture(scope="session")
def sizes(sizes: Any) -> Sizes:
    return Sizes() if sizes.full else Sizes(steps=20, rounds=4, tokens=48, pairs=4)


@pytest.fixture(scope="session")
def tables_of(sizes: Sizes) -> Callable[[str], DeviceProgram]:
    """Return a function from a kind of program to its tables on the device."""
    return cache(lambda kind: tables_on(sizes.device, kind, sizes.width))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add the GPU."""
    if not torch.cuda.is_available():
        return
    device = torch.cuda.get_device_properties(0)
    machine_info |= {
        "gpu": device.name, "multiprocessors": device.multi_processor_count, "memory_bytes": device.total_memory,
        "cuda": torch.version.cuda,
    }  # fmt: skip
    with suppress(OSError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        machine_info["driver"] = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0].strip()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Write what was left out also where no benchmark ran: pytest-benchmark writes no file then."""
    config, hook, plugin = session.config, session.config.hook, session.config._benchmarksession
    if plugin.json and not plugin.benchmarks:
        machine, commit = plugin.get_machine_info(), hook.pytest_benchmark_generate_commit_info(config=config)
        common = {"config": config, "benchmarks": []}
        written = hook.pytest_benchmark_generate_json(**common, include_data=True, machine_info=machine, commit_info=commit)
        hook.pytest_benchmark_update_json(**common, output_json=written)
        plugin.save_json(written)
        plugin.json = None
    return (yield)
