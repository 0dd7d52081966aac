#!/usr/bin/env bash
# The figures of docs/performance.md, from the release build: [DTYPE=f32] tools/measure.sh [CONFIG.json]...
#
# Each line is one `elapid bench` or `elapid score` run; medians are the command's own, the rounds are interleaved. Run it
# on a machine with nothing else to do.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
elapid=$root/build/release/elapid
text=$root/tests/data/storyteller/h-g-wells_the-time-machine.txt

for round in 1 2 3; do
  echo "# round $round"
  "$elapid" bench --dtype "${DTYPE:-auto}" --model "$root/models/storyteller" --prompt 512 --gen 256 --repeat 5 --json
  "$elapid" score --dtype "${DTYPE:-auto}" --model "$root/models/storyteller" --file "$text" --json
  for config in "$@"; do
    "$elapid" bench --dtype "${DTYPE:-auto}" --config "$config" --prompt 512 --gen 64 --repeat 3 --json
  done
done
for config in "$@"; do
  echo "# kernels, prefill of 512 tokens and decoding: $config"
  ELAPID_TRACE=1 "$elapid" bench --dtype "${DTYPE:-auto}" --config "$config" --prompt 512 --gen 1 --repeat 5 --json 2>&1
  ELAPID_TRACE=1 "$elapid" bench --dtype "${DTYPE:-auto}" --config "$config" --prompt 1 --gen 64 --repeat 5 --json 2>&1
done
