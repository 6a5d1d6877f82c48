#!/usr/bin/env bash
# Fuzz the C core: tools/fuzz.sh [SECONDS]. Needs clang with its compiler-rt (Debian: clang libclang-rt-dev).
# What is found stays in build/fuzz/; run build/fuzz/fuzz_core FILE to see it again.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
mkdir -p build/fuzz/corpus
"${CLANG:-clang}" -std=c11 -g -O1 -Wall -Wextra -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
  -Icsrc tests/fuzz/fuzz_core.c csrc/lift.c csrc/machine.c csrc/decide.c csrc/edit.c -lm -o build/fuzz/fuzz_core
build/fuzz/fuzz_core -max_total_time="$seconds" -max_len=4096 -len_control=20 -rss_limit_mb=1024 -timeout=10 \
  -print_final_stats=1 -verbosity=0 -artifact_prefix=build/fuzz/ build/fuzz/corpus
echo "fuzz: $seconds s without a finding"
