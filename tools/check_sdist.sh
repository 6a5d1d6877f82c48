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
try=$PWD/tools/try_install.py
cd "$work"
"$work/venv/bin/python" -I "$try"
"$work/venv/bin/thinkguard" formats think
