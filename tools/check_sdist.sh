#!/usr/bin/env bash
# Build the sdist, install it alone into an empty environment, and use it there without torch.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$PYTHON" -m build --sdist --outdir "$work" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$PYTHON" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$work"/thinkguard-*.tar.gz
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys
import time

begin = time.perf_counter()
import thinkguard

took = time.perf_counter() - begin
assert not {"torch", "transformers", "triton", "vllm", "jinja2"} & set(sys.modules), "import thinkguard pulled in a host"
vocabulary = thinkguard.Vocabulary.from_parts([bytes([b]) for b in range(256)], added={"<eos>": 256}, eos_ids=[256])
row = thinkguard.ThinkProgram("think", vocabulary).start([], thinkguard.ThinkPolicy(max_thinking_tokens=3))
assert row.decide().token == ord("<")
import thinkguard.core._slots
from thinkguard.device import images  # the kernels for GPUs came along

assert images.load(9, 0)[:4] == b"\x7fELF" and b".target sm_75" in images.load(13, 0)
print(f"sdist: builds, installs and runs alone; import thinkguard took {took * 1000:.0f} ms")
PY
"$work/venv/bin/thinkguard" formats think
