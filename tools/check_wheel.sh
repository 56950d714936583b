#!/usr/bin/env bash
# Build the wheel, install it with its dependencies in an empty environment, run the demo site from there.
# Nothing is done when the sources are those of the last check that passed.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$root/build/wheel-check
sources=(msg srv cmake bess_* launch config docs/faults.yaml resource requirements CMakeLists.txt package.xml
         setup.py setup.cfg pyproject.toml LICENSE README.md)
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH PYTHONPATH  # of an outer process
mkdir -p "$work"

present=()
for source in "${sources[@]}" tools/check_wheel.sh tools/check_wheel.py; do
  if [ -e "$source" ]; then present+=("$source"); fi
done
hash=$({ "$root/.venv/bin/python" --version; find "${present[@]}" -type f ! -path '*/__pycache__/*' -print0 |
         LC_ALL=C sort -z | xargs -0 sha256sum; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$work/stamp" 2>/dev/null || true)" = "$hash" ]; then
  echo 'wheel: ok (sources unchanged since the last check)'
  exit 0
fi
rm -f "$work/stamp"
# Set-up has just built these interfaces; BESS_INTERFACES_BUILD= builds them once more, as on a machine without it.
export BESS_INTERFACES_BUILD="${BESS_INTERFACES_BUILD-$root/build/interfaces}"

step() {  # step TEXT COMMAND...: quiet unless it fails
  echo "wheel: $1 ..."
  if ! "${@:2}" >"$work/output.txt" 2>&1; then
    tail -n 60 "$work/output.txt"
    echo "wheel: $1 failed"
    exit 1
  fi
}

# A copy: setuptools would pack what an earlier build left in build/, and .venv is not part of the sources.
rm -rf "$work/source" "$work/venv" wheels
mkdir -p "$work/source"
tar cf - --exclude=__pycache__ "${present[@]}" | tar xf - -C "$work/source"
step 'build' "$root/.venv/bin/python" -m pip wheel "$work/source" --no-build-isolation --no-deps -w wheels
wheel=$(ls wheels/bess-*.whl)
step 'empty environment' "$root/.venv/bin/python" -m venv --without-pip "$work/venv"
pip=("$root/.venv/bin/python" -m pip --python "$work/venv/bin/python")
cd "$work"  # not the checkout: everything has to come from the wheel
step "install $(basename "$wheel") and what it requires" "${pip[@]}" install --no-compile "$root/$wheel"  # for one run
step 'requirements are consistent' "${pip[@]}" check
"$work/venv/bin/python" "$root/tools/check_wheel.py" "$work/venv"
echo "$hash" >"$work/stamp"
echo 'wheel: ok'
