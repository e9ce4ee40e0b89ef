#!/usr/bin/env bash
# Build the wheel, install it into an environment of its own, and use it from outside the checkout.
set -euo pipefail
python=$(realpath -s "$1")
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m build --wheel --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$work"/dist/*.whl pytest jsonschema
cd "$work"
"$work/venv/bin/npusim" profile bk-sdm-tiny --tiles auto --quiet --out "$work/run"
cp "$root/tests/wheel_smoke.py" "$work/test_wheel.py"
"$work/venv/bin/pytest" -q "$work/test_wheel.py"
