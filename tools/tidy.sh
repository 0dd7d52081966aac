#!/usr/bin/env bash
# Runs clang-tidy (.clang-tidy) over the library and the command line; takes minutes. Further arguments name files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v clang-tidy >/dev/null || {
  echo "tidy.sh: needs clang-tidy 14: apt-get install clang-tidy" >&2
  exit 1
}
cmake --preset release >/dev/null
# Kernel sources stand in compile_commands.json once per instruction set; one of them is enough.
if (($#)); then
  files=("$@")
else
  mapfile -t files < <(find src -name '*.cc' ! -name '*_cuda.cc' | sort)
fi
printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(nproc)" clang-tidy -p build/release --quiet
