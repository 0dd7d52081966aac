#!/usr/bin/env python3
"""Checks that no kernel object can leak code of one instruction set into another.

    check_isa_symbols.py BUILD_DIR

Kernel sources are compiled once per level into OBJECT libraries <target>_baseline, …_avx2, …_avx512, …_amx. A weak
symbol in one of them (an inline function, a template instance) may be the copy that the linker keeps for everybody: an
AVX-512 std::max that runs on a machine without AVX-512. So every symbol that such an object defines must be local, or
strong with a name that carries its own level's tag (Baseline, Avx2, Avx512, Amx: run(Avx2, const Args&)).
"""

import subprocess
import sys
from pathlib import Path

# How the Itanium ABI spells each level's tag inside a mangled name.
TAGS = {"baseline": "8Baseline", "avx2": "4Avx2", "avx512": "6Avx512", "amx": "3Amx"}

# A pointer to the C++ runtime's personality routine: data, the same at every level.
HARMLESS = {"DW.ref.__gxx_personality_v0"}


def objects(build):
    """(level, object file) of every kernel object under the build directory."""
    for level in TAGS:
        for folder in sorted(build.rglob(f"CMakeFiles/*_{level}.dir")):
            for path in sorted(folder.rglob("*.o")):
                yield level, path


def problems(level, path):
    """One line for each symbol that `path` may not define."""
    listing = subprocess.run(["nm", "--defined-only", "--format=posix", str(path)], capture_output=True, text=True)
    if listing.returncode != 0:
        return [f"{path}: nm: {listing.stderr.strip()}"]
    found = []
    for line in listing.stdout.splitlines():
        name, kind = line.split()[:2]
        if name in HARMLESS:
            continue
        if kind in "wWvVuiC":  # weak, unique, indirect or common: shared by name across objects
            found.append(f"{path}: weak symbol {demangle(name)} ({kind})")
        elif kind.isupper() and TAGS[level] not in name:
            found.append(f"{path}: {demangle(name)} does not carry this level's tag, {TAGS[level][1:]}")
    return found


def demangle(name):
    return subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip() or name


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    count, found = 0, []
    for level, path in objects(Path(sys.argv[1])):
        count += 1
        found += problems(level, path)
    for line in found:
        print(line)
    if count == 0:
        print(f"{sys.argv[1]}: holds no kernel objects; build it first")
        return 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
