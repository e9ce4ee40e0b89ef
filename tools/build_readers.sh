#!/usr/bin/env bash
# Builds the environments of the outside readers: PYTHON of the test environment, FOLDER for them.
# One environment per tests/export/readers/*.txt. What cannot be installed leaves NAME.failed with the reason, for the tests to say.
set -uo pipefail
python=$1
folder=$2
here=$(cd "$(dirname "$0")/../tests/export/readers" && pwd)
mkdir -p "$folder"
for list in "$here"/*.txt; do
  name=$(basename "$list" .txt)
  place=$folder/$name
  if cmp -s "$list" "$place/built"; then continue; fi
  rm -rf "$place" "$place.failed"
  options=()
  "$python" -m venv "$place" || exit 1
  if head -1 "$list" | grep -q "on top of the test environment"; then
    site='import sysconfig; print(sysconfig.get_paths()["purelib"])'
    "$python" -c "$site" > "$("$place/bin/python" -c "$site")/parent.pth"
    options=(--no-deps)
  fi
  if "$place/bin/python" -m pip install --quiet --disable-pip-version-check "${options[@]}" -r "$list" 2> "$place.failed"; then
    cp "$list" "$place/built"
    rm -f "$place.failed"
    echo "reader $name is built"
  else
    rm -rf "$place"
    echo "reader $name cannot be installed here: its tests will be skipped, and say so"
  fi
done
