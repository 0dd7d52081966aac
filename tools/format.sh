#!/usr/bin/env bash
# Formats every C++ and CUDA file in place; with --check, changes nothing and fails where something would change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

formatter=$(command -v clang-format-14 || command -v clang-format) || {
  echo "format.sh: needs clang-format 14; scripts/setup.sh --test installs it" >&2
  exit 1
}
folders=()
for folder in src tests examples bench fuzz; do
  [[ -d $folder ]] && folders+=("$folder")
done
mode=(-i)
[[ ${1-} != --check ]] || mode=(--dry-run -Werror)
find "${folders[@]}" -type f \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \) -print0 |
  xargs -0 --no-run-if-empty "$formatter" --style=file "${mode[@]}"
