#!/usr/bin/env bash
# From a bare machine to a story: installs what is missing, builds, and streams text from the bundled model.
#
#   scripts/demo.sh [--cuda] [PROMPT] [option of `elapid generate`]...
#
# Builds for the CPU alone unless CUDA's compiler and a device are both there, or --cuda asks: then runs on the device.
#
# The model's text goes to standard output, everything else (the prompt too) to standard error.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

case ${1-} in
  -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
esac
cuda=$("$root/scripts/find_cuda.sh" --device || true)
if [[ ${1-} == --cuda ]]; then
  cuda=$("$root/scripts/find_cuda.sh") || { echo "demo.sh: --cuda needs nvcc" >&2 && exit 1; }
  shift
fi
preset=release
if [[ $cuda ]]; then
  preset=cuda
  PATH=$cuda:$PATH
fi
prompt="Once upon a time there was a little princess who"
if (($#)) && [[ $1 != -* ]]; then
  prompt=$1
  shift
fi

# fallback NAME VALUE: an option of our own unless the caller gave it.
options=("$@")
fallback() {
  local option
  for option in "${options[@]}"; do
    [[ $option == "$1" || $option == "$1="* ]] && return
  done
  options+=("$1" "$2")
}
fallback --dtype f32  # the same story on every machine with fused multiply-add
fallback --seed 2
fallback --temperature 0.7
fallback --repetition-penalty 1.1
fallback --max-new-tokens 220
[[ $preset != cuda ]] || fallback --device cuda

{
  "$root/scripts/setup.sh"
  "$root/scripts/build.sh" "$preset" -DELAPID_TESTS=OFF elapid  # tests need more packages
  printf '\n%s' "$prompt"
} >&2

exec "$root/build/$preset/elapid" generate --model "$root/models/storyteller" "${options[@]}" -- "$prompt"
