"""Judge in processes of their own: whether vLLM V2's kernels are interpreted is settled before Triton is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from benches.alternatives.alternative import MODULES, TIMED

ROOT: Final = Path(__file__).resolve().parents[2]


def judge(
    out: Path, names: Sequence[str] = tuple(MODULES), *, tokenizers: Path | None = None, quick: bool = False,
    interpreted: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Return what `judging`, in one process, finds of some alternatives; it writes that to `out`.

    With `interpreted` Triton's kernels run in its interpreter, as vLLM V2's need it where there is no GPU.
    """
    command = [sys.executable, "-m", "benches.verdicts.judging", "--json", str(out), "--only", *names]
    command += ["--quick"] * quick
    command += [] if tokenizers is None else ["--tokenizers", str(tokenizers)]
    env = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": str(int(interpreted))}
    env["TORCHDYNAMO_DISABLE"] = "1"  # llguidance compiles its mask, for speed alone
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:])} exited with {done.returncode}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def judge_all(folder: Path, *, tokenizers: Path | None = None, quick: bool = False) -> dict[str, Any]:
    """Judge all alternatives in two processes side by side; what each finds is written into `folder`.

    The interpreted kernels, which take half of the time, have a process of their own, and no other alternative runs under
    the interpreter.
    """
    groups = {"interpreted": tuple(name for name in MODULES if name not in TIMED), "others": TIMED}

    def found(group: str) -> dict[str, Any]:
        interpreted = group == "interpreted"
        return judge(folder / f"{group}.json", groups[group], tokenizers=tokenizers, quick=quick, interpreted=interpreted)

    with ThreadPoolExecutor() as pool:
        return merged(list(pool.map(found, groups)))


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put together what several processes found of different alternatives in the same cases."""
    about = {name: told for part in parts for name, told in part["alternatives"].items()}
    order = [name for name in MODULES if name in about]
    rows = {(row["case"], row["alternative"]): row for part in parts for row in part["rows"]}
    return {
        **parts[0],
        "alternatives": {name: about[name] for name in order},
        "rows": [rows[case, name] for case in parts[0]["cases"] for name in order],
    }
