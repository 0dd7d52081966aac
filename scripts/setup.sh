#!/usr/bin/env bash
# Installs what the build needs and this machine lacks (Debian 12 or a relative with apt-get).
#
#   scripts/setup.sh [--test] [--fuzz] [--dev]
#
#   --test   also what scripts/test.sh runs: GoogleTest, the formatter, Python
#   --fuzz   also what the fuzz targets need: clang with its sanitizer runtimes
#   --dev    also what the Python comparison tests need: venv
#
# Asks apt for missing packages alone, through sudo when not root. Says nothing when nothing is missing, and never writes
# to standard output.
set -euo pipefail
exec 1>&2

fail() {
  echo "setup.sh: $*"
  exit 1
}

wanted=(g++ cmake ninja-build pkg-config nlohmann-json3-dev libcli11-dev libpcre2-dev libutf8proc-dev)
for option in "$@"; do
  case $option in
    --test) wanted+=(libgtest-dev clang-format-14 python3) ;;
    --fuzz) wanted+=(clang libclang-rt-14-dev) ;;
    --dev) wanted+=(python3 python3-venv) ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
    *) fail "options are --test, --fuzz and --dev, got $option" ;;
  esac
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  fail "this system has no apt-get; install the equivalents of: ${wanted[*]}"
fi

missing=()
for package in "${wanted[@]}"; do
  status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $status == *installed && $status != not-installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

as_root=(env DEBIAN_FRONTEND=noninteractive)
if ((EUID != 0)); then
  command -v sudo >/dev/null || fail "not root and no sudo; as root run: apt-get install ${missing[*]}"
  ask=()
  [[ -t 0 ]] || ask=(-n)  # nobody there to type a password
  reason=$(sudo "${ask[@]}" true 2>&1) || fail "not root and sudo refuses (${reason##*$'\n'}); as root run: apt-get install ${missing[*]}"
  as_root=(sudo "${ask[@]}" "${as_root[@]}")
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt_get() { "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=120 -y "$@" >"$log" 2>&1 </dev/null; }
install_missing() { apt_get install --no-install-recommends "${missing[@]}"; }

echo "setup.sh: installing ${missing[*]}"
# The package lists may be absent or too old to find the files: fetch them only then.
if ! install_missing; then
  apt_get update || true  # one unreachable source of many must not end it; what matters is whether the install works
  install_missing || {
    reason=$(grep '^E:' "$log" | head -n 1 || true)
    fail "apt-get install ${missing[*]} failed: ${reason:-$(tail -n 1 "$log")}"
  }
fi
