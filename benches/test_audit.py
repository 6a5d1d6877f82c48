"""Records a second of `thinkguard audit` on two processes: plain checks, without reasoning, and with tokens counted.

Records are of 2 KB, their text is this repository's own prose. Every run's counts are asserted; the processes' start is
part of what is timed.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benches.conftest import ROOT, Sizes
from thinkguard.doctor.audit.plan import AuditOptions
from thinkguard.doctor.audit.run import audit
from thinkguard.formats import ThinkFormat

pytestmark = pytest.mark.benchmark(group="audit")

BUILD = ROOT / "tests" / "tokenizers" / "build.py"  # real tokenizers, out of packages of the registry
BROKEN_EVERY = 1000
KINDS = {"plain": (True, False), "without reasoning": (False, False), "tokens counted": (True, True)}
"""Name -> (whether records hold reasoning, whether their tokens are counted)."""


def prose() -> str:
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files).replace("think", "work")
    return "".join(char for char in text if char not in "<>[]&`◁▷")


def write(path: Path, num: int, reasoning: bool) -> int:
    """Write the records, one in a thousand without its end; returns the bytes."""
    rng, text = random.Random(0), prose()

    def some(length: int) -> str:
        start = rng.randrange(len(text) - length)
        return text[start : start + length].strip()

    with open(path, "w", encoding="utf-8") as file:
        for index in range(num):
            end = "" if index % BROKEN_EVERY == 7 else "\n</think>\n\n"
            answer = f"<think>\n{some(1300)}{end}{some(300)}" if reasoning else some(1600)
            turns = [{"role": "user", "content": some(250)}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    return path.stat().st_size


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    subprocess.run([sys.executable, BUILD, folder, "qwen3"], check=True, stdout=subprocess.DEVNULL)
    return folder / "qwen3"


@pytest.mark.parametrize("kind", KINDS)
def test_audit(request: pytest.FixtureRequest, benchmark: Any, sizes: Sizes, tmp_path: Path, kind: str) -> None:
    reasoning, counted = KINDS[kind]
    path, num = tmp_path / "records.jsonl", sizes.num_records
    size = write(path, num, reasoning)
    tokenizer = request.getfixturevalue("qwen") if counted else None
    options = AuditOptions(num_processes=2, tokenizer_path=tokenizer, format=ThinkFormat.from_name("think"))
    used = cpu_seconds()
    rounds = 3 if sizes.full else 1
    summary = benchmark.pedantic(audit, ([path], options), rounds=rounds)
    used = cpu_seconds() - used
    assert summary.records == num
    wanted = {"half-open": -(-(num - 7) // BROKEN_EVERY)} if reasoning else {"no-reasoning": num}
    assert dict(summary.records_hit) == wanted
    assert (summary.settings["unit"] == "tokens") == counted
    about = {"kind": kind, "records": num, "processes": 2, "bytes": {"record": round(size / num)}}
    benchmark.extra_info.update({**about, "cpu_seconds": used / rounds})


def cpu_seconds() -> float:
    """What this process and its children have used so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)
