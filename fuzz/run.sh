#!/usr/bin/env bash
# Runs every fuzz target, two at a time: a line for each, and exit code 1 when one of them found something.
#
#   fuzz/run.sh [SECONDS] [BUILD]
#
# SECONDS (60) for each target. BUILD is a build folder configured with ELAPID_FUZZ=ON; without it, the preset `fuzz` is
# built. The inputs found so far stay in BUILD/fuzz/corpus and are where the next run begins; BUILD/fuzz has the logs and,
# after a finding, the input: run the target with that file as its argument to see it again, and once it is fixed, add it
# to make_seeds.py.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
seconds=${1:-60}
if ! [[ $seconds =~ ^[1-9][0-9]*$ ]]; then
  echo "run.sh: SECONDS must be a positive whole number, got $seconds" >&2
  exit 2
fi
if (($# >= 2)); then
  build=$(cd "$2" && pwd -P)
else
  "$here/../scripts/build.sh" fuzz elapid_fuzz >&2
  build=$(cd "$here/../build/fuzz" && pwd -P)
fi
cd "$build/fuzz"
python3 "$here/make_seeds.py" corpus

run_target() {
  local target=$1 log=$1.log status=0 summary
  "./fuzz_$target" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -max_len=65536 -dict="$here/words.dict" \
    -artifact_prefix="$target-" -print_final_stats=1 "corpus/$target" >"$log" 2>&1 </dev/null || status=$?
  if ((status == 0)); then
    summary=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    echo "$target: ok, $summary inputs in $seconds s"
  else
    summary=$(grep -m1 -E '^SUMMARY|broken property|terminate called|^==[0-9]+== ERROR' "$log" || tail -n 1 "$log")
    echo "$target: FOUND ($summary), see $PWD/$log"
    return 1
  fi
}
export -f run_target
export here seconds

targets=()
for program in fuzz_*; do
  if [[ -f $program && -x $program ]]; then targets+=("${program#fuzz_}"); fi
done
if ((${#targets[@]} == 0)); then
  echo "run.sh: $PWD must hold fuzz targets, got none" >&2
  exit 1
fi
printf '%s\n' "${targets[@]}" | xargs -P 2 -I '{}' bash -c 'run_target {}'
