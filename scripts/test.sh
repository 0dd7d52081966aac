#!/usr/bin/env bash
# From a bare machine to a verdict: installs what is missing, builds, and runs every test.
#
#   scripts/test.sh [--fast] [--fuzz] [--sweep] [--dev] [--cuda]
#
#   --fast    the release build's tests alone
#   --fuzz    also each fuzz target for 60 seconds
#   --sweep   also what takes gigabytes and hours: prompts of two million tokens, tensors of more than 2^31 elements, and
#             every test under the address sanitizer
#   --dev     also the comparisons with Python packages from PyPI, in build/venv
#   --cuda    the CUDA build as a whole also where there is no device, which must run its tests
#
# Ends with "N passed, N failed" on a line of its own: tests over all runs, a step that broke counting as one failure.
# Output of what failed is shown; all of it stays in build/test-logs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fast=0 fuzz=0 dev=0 sweep=0 cuda=0 setup=(--test)
for option in "$@"; do
  case $option in
    --fast) fast=1 ;;
    --fuzz) fuzz=1 setup+=(--fuzz) ;;
    --sweep) sweep=1 ;;
    --dev) dev=1 setup+=(--dev) ;;
    --cuda) cuda=1 ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" && exit 0 ;;
    *) echo "test.sh: options are --fast, --fuzz, --sweep, --dev and --cuda, got $option" >&2 && exit 2 ;;
  esac
done

scripts/setup.sh "${setup[@]}"

jobs=$(nproc)
logs=build/test-logs
rm -rf "$logs"
mkdir -p "$logs"
unset ELAPID_FORCE_ISA
passed=0 failed=0 reasons=() launcher=()

skipped() { echo "   skipped: $*"; }
broke() {
  failed=$((failed + $1))
  reasons+=("$2")
  echo "   FAILED: $2"
}

# step NAME COMMAND...: runs it with its output in a log, shown when it fails.
step() {
  local name=$1 log=$logs/${1//[^a-z0-9]/-}.log started=$SECONDS
  shift
  echo "== $name"
  if "$@" >"$log" 2>&1 </dev/null; then
    echo "   ok, $((SECONDS - started)) s"
  else
    tail -n 60 "$log"
    broke 1 "$name ($log)"
    return 1
  fi
}

# run_tests NAME PRESET [ctest option...]: a ctest run, counted test by test.
run_tests() {
  local name=$1 preset=$2 log=$PWD/$logs/${1//[^a-z0-9]/-} started=$SECONDS status=0 report counts line
  shift 2
  echo "== $name"
  "${launcher[@]}" ctest --preset "$preset" --parallel "$jobs" --timeout 900 --output-junit "$log.xml" "$@" >"$log.log" 2>&1 </dev/null || status=$?
  mapfile -t report < <(python3 tools/junit_summary.py "$log.xml" 2>>"$log.log")
  read -r -a counts <<<"${report[0]:-0 0 0}"
  passed=$((passed + counts[0]))
  echo "   ${counts[0]} passed, ${counts[1]} failed, ${counts[2]} skipped, $((SECONDS - started)) s"
  for line in "${report[@]:2}"; do skipped "$line"; done
  if ((status || counts[1] || ! ${#report[@]})); then
    grep -vE '^ +Start +[0-9]+:| Passed +[0-9.]+ sec$' "$log.log" || true
    broke $((counts[1] ? counts[1] : 1)) "$name: ${report[1]:-ctest exited with $status} ($log.log)"
  fi
}

has_cpu_flags() {
  local flag
  for flag in "$@"; do grep -qwm1 "$flag" /proc/cpuinfo || return 1; done
}

large=OFF
! ((sweep)) || large=ON
if step "release build" scripts/build.sh release -DELAPID_TESTS=ON -DELAPID_SWEEP=$large; then
  run_tests "release tests" release
fi

if ! ((fast)); then
  step "format" tools/format.sh --check || true

  # The operators' tests go through all levels by themselves; models and inference again at each lower one.
  levels=(baseline)
  ! has_cpu_flags avx2 fma f16c || levels+=(avx2)
  ! has_cpu_flags avx2 fma f16c avx512f avx512bw avx512dq avx512vl || levels+=(avx512)
  for level in baseline avx2 avx512; do
    if [[ $level == "${levels[-1]}" ]]; then
      continue
    elif [[ " ${levels[*]} " == *" $level "* ]]; then
      ELAPID_FORCE_ISA=$level run_tests "tests at $level" release --label-regex '^(model|infer)$'
    else
      echo "== tests at $level"
      skipped "this machine has no $level"
    fi
  done

  # Files, states and threads; everything with --sweep.
  sanitized=(elapid_core_test elapid_io_test elapid_state_test) layers='^(core|io|state)\.'
  ! ((sweep)) || sanitized=() layers=.
  if step "address and undefined-behaviour sanitizer build" scripts/build.sh asan "${sanitized[@]}"; then
    run_tests "address and undefined-behaviour sanitizer tests" asan --tests-regex "$layers" \
      --exclude-regex '^(text\.Texts/HostileText\.TakesLinearTime|install\.|cli\.(Bench|Chat|Generate|Score|States))|_NOT_BUILT$'
  fi

  # Address-space randomization beyond what gcc 12's runtime expects ends its programs at start.
  no_aslr=()
  ! setarch -R true 2>/dev/null || no_aslr=(setarch -R)
  if step "thread sanitizer build" "${no_aslr[@]}" scripts/build.sh tsan elapid_core_test; then
    launcher=("${no_aslr[@]}")
    run_tests "thread sanitizer tests" tsan --tests-regex '^core\.' --exclude-regex 'Foreign|Busy'
    launcher=()
  fi

  if ! nvcc=$(scripts/find_cuda.sh); then
    echo "== cuda build"
    skipped "no nvcc"
  elif ((cuda)) || scripts/find_cuda.sh --device >/dev/null; then
    if PATH=$nvcc:$PATH step "cuda build" scripts/build.sh cuda '-DCMAKE_CUDA_ARCHITECTURES=80-real;90a-real;80-virtual' -DELAPID_TESTS=ON elapid elapid_ops_test elapid_infer_test; then
      run_tests "tests on a cuda device" cuda --tests-regex 'Cuda|^ops\.Elementwise'
    fi
  else
    # Kernels alone, for Hopper and as PTX for what is older: a machine without a device cannot run them, and --cuda
    # builds the rest and all released architectures.
    PATH=$nvcc:$PATH step "cuda build" scripts/build.sh cuda '-DCMAKE_CUDA_ARCHITECTURES=90a-real;80-virtual' elapid_ops_cuda || true
  fi
fi

if ((fuzz)); then
  step "fuzz targets, 60 s each" fuzz/run.sh 60 || true
fi
if ((dev)); then
  if ! [[ -d ../shared ]]; then
    echo "== comparisons with the tokenizers and sentencepiece packages"
    skipped "no ../shared data"
  elif step "venv with the tokenizers and sentencepiece packages" bash -c 'python3 -m venv build/venv && build/venv/bin/pip install --quiet tokenizers sentencepiece'; then
    step "comparison with the tokenizers package" build/venv/bin/python tests/python/test_tokenizer.py --elapid build/release/elapid || true
    step "comparison with the sentencepiece package" build/venv/bin/python tests/python/test_sentencepiece.py --elapid build/release/elapid || true
  fi
fi

echo
for reason in "${reasons[@]}"; do echo "failed: $reason"; done
((passed)) || failed=$((failed + 1))
echo "$passed passed, $failed failed"
((failed == 0))
