#!/usr/bin/env bash
# Prints the folder of CUDA's compiler, or fails where there is none; with --device also where no device answers.
#
#   scripts/find_cuda.sh [--device]
set -euo pipefail

nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) || exit 1
if [[ ${1-} == --device ]]; then
  nvidia-smi -L 2>/dev/null | grep -q '^GPU ' || exit 1
fi
dirname "$nvcc"
