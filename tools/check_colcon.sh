#!/usr/bin/env bash
# A genuine `colcon build` of the package, then its nodes started from the install tree.
# Plain Linux: the ROS 2 wheels in .venv. With a sourced ROS 2 (ROS_DISTRO is set): that one, and no wheel.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$root/build/colcon
log=$work/output.txt
mkdir -p "$work"

if [ -n "${ROS_DISTRO:-}" ]; then
  echo "colcon: with ROS 2 $ROS_DISTRO"
  python=$(command -v python3)
  generator=()
else
  echo 'colcon: with the ROS 2 wheels in .venv'
  python=$root/.venv/bin/python
  generator=(-G Ninja)  # one of the wheels; make takes half as long again, for finding out what depends on what
  unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH PYTHONPATH  # of an outer process
  export PATH="$root/.venv/bin:$PATH" AMENT_PREFIX_PATH="$root/.venv" CMAKE_PREFIX_PATH="$root/.venv"
fi
# colcon's own number of jobs comes with a limit of the load, under which a machine with two cores mostly runs one.
export MAKEFLAGS="-j$(nproc)"
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_DOMAIN_ID="${ROS_DOMAIN_ID:-$((100 + $$ % 100))}"

cache=$work/build/bess/CMakeCache.txt
if [ -n "${generator[*]}" ] && [ -e "$cache" ] && ! grep -qx 'CMAKE_GENERATOR:INTERNAL=Ninja' "$cache"; then
  rm -rf "$work/build"  # it was made with make, and cannot be both
fi
if ! colcon --log-base "$work/log" build --packages-select bess --base-paths "$root" \
    --build-base "$work/build" --install-base "$work/install" --event-handlers console_direct- \
    --cmake-args "${generator[@]}" -DBUILD_TESTING=OFF "-DPython3_EXECUTABLE=$python" >"$log" 2>&1; then
  tail -n 60 "$log"
  echo 'colcon: build failed'
  exit 1
fi

set +u  # colcon's scripts read variables that may be unset
# local_setup, not setup: the latter wants the same of the wheels, which have none.
source "$work/install/local_setup.bash"
set -u
if [ -z "${ROS_DISTRO:-}" ]; then
  # The wheels start Python once more with their library folders on the path, in any order. .venv has the
  # interfaces of this checkout too: settle here that those of the install tree come first.
  libraries=$("$python" -c 'import os; print(os.environ["LD_LIBRARY_PATH"])')
  export LD_LIBRARY_PATH="$work/install/bess/lib:$libraries" _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
fi
exec "$python" tools/check_install.py "$work/install/bess"
