#!/usr/bin/env bash
# Run the C core's tests under AddressSanitizer and UndefinedBehaviorSanitizer, and the GPU's kernels, as lanes on the host,
# under these and ThreadSanitizer: tools/sanitize.sh [pytest arguments]. With arguments, what they name under the first two.
# PYTHON names an interpreter that has cython, numpy, setuptools, pytest, hypothesis and torch. Works on a temporary copy.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -R csrc src tests benches tools pyproject.toml setup.py LICENSE README.md "$copy"
cd "$copy"
export CC=gcc OMP_NUM_THREADS=1 THINKGUARD_TEST_PROFILE=${THINKGUARD_TEST_PROFILE:-quick}
export PYTHONPATH=src

# The interpreter itself is not instrumented: each time the runtime is loaded first, and what is not ours left aside.
if [ $# -eq 0 ]; then
  compgen -G "src/thinkguard/core/_core.*.so" >/dev/null || "$python" -W ignore setup.py -q build_ext --inplace
  options=exitcode=0:report_signal_unsafe=0:suppress_equal_stacks=0:suppress_equal_addresses=0:ignore_noninstrumented_modules=1
  fixed=(setarch -R)  # ThreadSanitizer takes no address space that is laid out too much at random
  "${fixed[@]}" true 2>/dev/null || fixed=()
  THINKGUARD_SANITIZE=thread TSAN_OPTIONS=$options LD_PRELOAD=$(gcc -print-file-name=libtsan.so) \
    "${fixed[@]}" "$python" -m pytest -q -p no:cacheprovider tests/lanes tests/test_device.py -k "left_out or crowds"
fi

rm -f src/thinkguard/core/*.so
export THINKGUARD_DEBUG=1
"$python" -W ignore setup.py -q build_ext --inplace --force

gcc -std=c11 -Icsrc -Wall -Wextra -Wconversion -Werror -fsyntax-only csrc/*.c

export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONMALLOC=malloc THINKGUARD_SANITIZE=address
"$python" -c "import thinkguard.core._core as core; assert core.__file__.startswith('$copy'), core.__file__"
if [ $# -gt 0 ]; then
  "$python" -m pytest -q -p no:cacheprovider "$@"
else
  "$python" -m pytest -q -p no:cacheprovider tests/test_agreement.py tests/test_rules.py tests/test_edits.py tests/test_slots.py
  lanes="crowds or resumed or host_decided or any_length or out_of_range or misses or stack or reach"  # in full
  THINKGUARD_TEST_PROFILE=default "$python" -m pytest -q -p no:cacheprovider tests/lanes tests/test_device.py \
    tests/test_launch.py -k "$lanes"
fi
