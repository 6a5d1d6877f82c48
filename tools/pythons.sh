# Sourced: `pythons` prints the CPythons that are found and those that are not, one a line, as "3.12 /path/to/python3.12"
# or "3.14 -". A name on PATH may be a shim for a version that is not there, so each is asked.
PYTHONS=${PYTHONS:-3.10 3.11 3.12 3.13 3.14}
pythons() {
  local version path
  for version in $PYTHONS; do
    path=$(command -v "python$version" || true)
    if [ -n "$path" ] && found=$("$path" -c 'import sys; print(sys.executable)' 2>/dev/null); then
      echo "$version $found"
    else
      echo "$version -"
    fi
  done
}
