"""Run the guard on every release of the hosts that people use: `python -m benches.matrix [--slice] [--write] [--only WORD]`.

A row each, in a process of its own: releases lie in the user's cache, in front of what is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any, Final

from benches.matrix import page
from benches.matrix.places import Release
from benches.matrix.rows import LIMIT, MARK, ROWS, SLICE, Row
from thinkguard.bench.machine import machine

_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip


def run(row: Row) -> dict[str, Any]:
    """One row's result: what came of each check, or why it could not be run."""
    begin = time.monotonic()
    result: dict[str, Any] = {"host": row.host, "version": row.version, "how": row.how}
    try:
        folders = [str(Release(*release).make()) for release in row.releases]
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        return {**result, "cannot": f"no wheel could be had: {told.strip().splitlines()[-1][:200]}"}
    path = os.pathsep.join([*folders, str(page.ROOT / "src"), str(page.ROOT)])
    checks: dict[str, str] = {}
    for name, command in row.commands.items():
        checks.update(_checks(name, command, {**os.environ, **_ENVIRONMENT, "PYTHONPATH": path}))
    return {**result, "checks": checks, "seconds": round(time.monotonic() - begin)}


def _checks(name: str, command: tuple[str, ...], env: dict[str, str]) -> dict[str, str]:
    """Check -> its word: those of the row that a command prints, or its own name's, by its exit status."""
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=page.ROOT, env=env, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return {name: f"failed: it ran longer than {LIMIT} s"}
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            found: dict[str, str] = json.loads(line.removeprefix(MARK))["checks"]
            return found
    if done.returncode == 0:
        return {name: "ok"}
    print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
    last = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
    return {name: f"failed: {last[:200]}"}


def main() -> int:
    """Run them; 1 if a check failed or, of the slice, a row could not be run."""
    parser = argparse.ArgumentParser(prog="python -m benches.matrix", description=__doc__)
    parser.add_argument("--slice", action="store_true", help="the oldest and the newest of each host, as CI does")
    parser.add_argument("--only", metavar="WORD", default="", help='rows whose name has it: "vllm 0.27", "transformers"')
    parser.add_argument("--write", action="store_true", help="write benches/results/hosts.json and docs/hosts.md")
    arguments = parser.parse_args()
    if arguments.slice and arguments.write:
        parser.error("--write is for the whole matrix: leave out --slice")
    rows = [row for row in (SLICE if arguments.slice else ROWS) if arguments.only in row.name]
    results = []
    for row in rows:
        results.append(run(row))
        print(page.line(results[-1]), flush=True)
    if arguments.write:
        kept = page.read()["rows"] if len(rows) < len(ROWS) and page.FILE.exists() else []
        page.write({"command": "make matrix", "date": time.strftime("%Y-%m-%d"), "machine": machine()}, kept, results)
    bad = [one for one in results if page.failed(one) or (arguments.slice and "cannot" in one)]
    print(f"{len(results) - len(bad)} passed, {len(bad)} failed")
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
