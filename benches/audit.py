"""Records a second of `thinkguard audit` on two processes: plain checks, without reasoning, and with tokens counted.

    python benches/audit.py [--records N] [--tokenizer DIR]

Records are of 2 KB, their text is this repository's own prose. Every run's counts are asserted.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from thinkguard.bench.timing import Spread, spread_of_rates, with_pace
from thinkguard.doctor.audit import lengths
from thinkguard.doctor.audit.plan import AuditOptions
from thinkguard.doctor.audit.run import audit
from thinkguard.formats import ThinkFormat

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "tests" / "tokenizers" / "build.py"  # real tokenizers, out of packages of the registry
BROKEN_EVERY = 1000


def prose() -> str:
    files = [HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md"))]
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


def cpu_seconds() -> float:
    """What this process and its children have used so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def timed(path: Path, num: int, tokenizer: Path | None, repeats: int, reasoning: bool = True) -> dict[str, Spread]:
    """Return records a second, by the clock and of one core's time, the processes' start included."""
    rates, paces = zip(*[with_pace(lambda: _timed(path, num, tokenizer, reasoning)) for _ in range(repeats)], strict=True)
    names = ("by_the_clock", "of_one_core")
    by_name = zip(names, zip(*rates, strict=True), strict=True)
    return {name: spread_of_rates(values, paces, "records/s") for name, values in by_name}


def _timed(path: Path, num: int, tokenizer: Path | None, reasoning: bool) -> tuple[float, float]:
    options = AuditOptions(num_processes=2, tokenizer_path=tokenizer, format=ThinkFormat.from_name("think"))
    begin, used = time.perf_counter(), cpu_seconds()
    summary = audit([path], options)
    seconds, used = time.perf_counter() - begin, cpu_seconds() - used
    assert summary.records == num, summary.records
    wanted = {"half-open": -(-(num - 7) // BROKEN_EVERY)} if reasoning else {"no-reasoning": num}
    assert dict(summary.records_hit) == wanted, summary.records_hit
    assert (summary.settings["unit"] == "tokens") == (tokenizer is not None)
    return num / seconds, num / used


def whole_texts(path: Path, num: int, tokenizer: Path) -> float:
    """Return records a second of one process that encodes every text as a whole, for comparison."""
    counter = lengths.TokenCounter(tokenizer)
    texts: list[str] = []
    with open(path, encoding="utf-8") as file:
        for _, line in zip(range(num), file, strict=False):
            texts += [turn["content"] for turn in json.loads(line)["messages"]]
    begin = time.perf_counter()
    whole = sum(counter._whole(texts))
    seconds = time.perf_counter() - begin
    counter.count(texts[:200])
    counted = sum(counter.count(texts))
    assert abs(whole - counted) * 500 <= whole, (whole, counted)
    return num / seconds


def run(num: int = 100_000, tokenizer: Path | None = None) -> dict[str, Any]:
    """Measure all of it."""
    with tempfile.TemporaryDirectory() as folder:
        if tokenizer is None:
            subprocess.run([sys.executable, BUILD, folder, "qwen3"], check=True, stdout=subprocess.DEVNULL)
            tokenizer = Path(folder) / "qwen3"
        path = Path(folder) / "records.jsonl"
        size = write(path, num, True)
        found = {
            "records": num,
            "bytes_per_record": round(size / num),
            "processes": 2,
            "tokenizer": tokenizer.name,
            "plain": timed(path, num, None, 3),
            "tokens": timed(path, num, tokenizer, 2),
            "whole_texts_one_process": whole_texts(path, min(num, 2000), tokenizer),
        }
        write(path, num, False)
        found["plain_without_reasoning"] = timed(path, num, None, 3, False)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000, metavar="N")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: Qwen3's, if it lies beside the repository")
    chosen = parser.parse_args()
    print(json.dumps(run(chosen.records, chosen.tokenizer), indent=2))
