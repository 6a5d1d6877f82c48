"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

# Before any of them is imported. Triton's kernels are interpreted: there is no GPU to run them on.
os.environ.update(
    TRITON_INTERPRET="1", HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="WARNING", VLLM_NO_USAGE_STATS="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1",
)  # fmt: skip
HOSTS = (
    *("torch", "transformers", "tokenizers", "sentencepiece", "tiktoken", "jinja2", "triton", "vllm", "openai"),
    *("pyarrow", "orjson", "matplotlib", "ray", "trl", "psutil", "sglang", "xgrammar", "llguidance"),
)
if os.environ.get("CI"):
    missing = [name for name in HOSTS if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"CI must not skip tests, but {', '.join(missing)} cannot be imported: run `make vllm`")

# Tests of one group run in one process: engines and servers are shared, and a vocabulary is read by one process alone.
GROUPS = {
    "test_served": "served", "test_vllm_engine_v2": "engine v2", "test_vllm_engine_v1": "engine v1",
    "test_vllm_parallel": "engine v1",  # long, and a group of one would come last
}  # fmt: skip
VOCABULARIES = ("pair", "bench")  # fixtures that read one


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks at the same point
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        group = GROUPS.get(item.path.stem)
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        for fixture in VOCABULARIES:
            if fixture in params:
                group = f"{item.path.stem} {params[fixture]}"
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))


def _refuse_skip(report: pytest.CollectReport | pytest.TestReport) -> None:
    """In CI a test that is skipped, or expected to fail, has failed: what it would have shown is not known."""
    if os.environ.get("CI") and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"CI must not skip: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture
def vllm_log() -> Iterator[list[logging.LogRecord]]:
    """What vLLM's log, whose loggers do not hand on to the root, is given of ours from here on."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("vllm.thinkguard")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.setLevel(level)
    logger.removeHandler(handler)


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def tokenizer_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Nine real tokenizers, name -> Hugging Face directory; they lie beside the repository, not in it."""
    build = SHARED / "tokenizers" / "build.py"
    if not build.is_file():
        reason = f"no real tokenizers: {build} is absent"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, and CI must not skip them")
        pytest.skip(reason)
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root  # the workers share what one of them builds
    target, made = root / "tokenizers", root / "tokenizers.made"
    with FileLock(root / "tokenizers.lock"):
        if not made.exists():
            subprocess.run([sys.executable, str(build), str(target)], check=True, stdout=subprocess.DEVNULL)
            made.touch()
    return {path.name: path for path in sorted(target.iterdir())}
