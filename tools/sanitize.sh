#!/usr/bin/env bash
# Run the C core's tests under AddressSanitizer and UndefinedBehaviorSanitizer: tools/sanitize.sh [pytest arguments].
# PYTHON names an interpreter that has cython, numpy, setuptools, pytest and hypothesis. Works on a temporary copy.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -R csrc src tests pyproject.toml setup.py LICENSE README.md "$copy"
cd "$copy"
rm -f src/thinkguard/core/*.so

export CC=gcc THINKGUARD_DEBUG=1
"$python" -W ignore setup.py -q build_ext --inplace

gcc -std=c11 -Icsrc -Wall -Wextra -Wconversion -Werror -fsyntax-only csrc/*.c

# The interpreter itself is not instrumented: load the runtime first, and leave its own leaks aside.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONPATH=src PYTHONMALLOC=malloc THINKGUARD_TEST_PROFILE=${THINKGUARD_TEST_PROFILE:-quick}
"$python" -c "import thinkguard.core._core as core; assert core.__file__.startswith('$copy'), core.__file__"
if [ $# -eq 0 ]; then set -- tests/test_agreement.py tests/test_rules.py tests/test_edits.py tests/test_slots.py; fi
"$python" -m pytest -q -p no:cacheprovider "$@"
