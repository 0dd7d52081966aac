#!/usr/bin/env bash
# Configures and builds a preset with all cores, in build/PRESET.
#
#   scripts/build.sh PRESET [-DVARIABLE=VALUE]... [TARGET]...
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
preset=${1:?build.sh: names no preset}
shift
build=$root/build/$preset
variables=()
while [[ ${1-} == -D* ]]; do
  variables+=("$1")
  shift
done

# A checkout that was copied or moved with its build folder: CMake refuses caches that were configured elsewhere.
if [[ -e $build/CMakeCache.txt ]] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$build/CMakeCache.txt"; then
  rm -rf "$build"
fi
cmake -S "$root" --preset "$preset" "${variables[@]}"
cmake --build "$build" --parallel "$(nproc)" ${1+--target "$@"}
