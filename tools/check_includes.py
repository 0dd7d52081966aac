#!/usr/bin/env python3
"""Holds the walls between the layers: who may include whom (docs/architecture.md, "Who may include whom").

    check_includes.py [ROOT]

Reads every #include under ROOT/src (the repository by default) and prints one line a violation.
"""

import re
import sys
from pathlib import Path

# What each layer may include besides itself: everything below it, never a sibling.
BELOW = {
    "core": set(),
    "cpu": {"core"},
    "cuda": {"core"},
    "ops": {"core"},
    "io": {"core"},
    "text": {"io", "core"},
    "state": {"io", "core"},
    "nn": {"state", "ops", "io", "core"},
    "model": {"nn", "state", "ops", "io", "core"},
    "infer": {"model", "nn", "state", "ops", "io", "core"},
    "train": {"model", "nn", "state", "ops", "io", "core"},
    "server": {"elapid.h", "infer", "text", "io", "core"},
    "cli": {"elapid.h", "infer", "train", "model", "nn", "state", "ops", "text", "io", "core"},
    "elapid.h": {"infer", "train", "model", "nn", "state", "text", "io", "core"},
}

# text knows no tensors.
TENSORS = re.compile(r"elapid/core/(tensor|buffer|arena|context|param|batch|kernel)\.h|elapid/io/safetensors\.h")
INTRINSICS = re.compile(r"(\w*mmintrin|\w*86intrin|\w*avx\w*intrin|arm_neon)\.h")
CUDA = re.compile(r"(cuda|cublas|cudnn|nccl|curand|cusparse|nvtx|nv/|cub/|thrust/|mma\.h|cooperative_groups)")

# Whose files may name JSON's library, and whose its header in io.
NLOHMANN = {"io", "text", "cli", "server"}
JSON = NLOHMANN | {"state", "model", "elapid.h"}

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}


def is_cpu_kernel(path):
    return path.stem.endswith(("_cpu", "_amx"))


def may_use_cuda(path, layer):
    return layer == "cuda" or path.suffix in {".cu", ".cuh"} or (layer == "core" and path.stem in {"device_cuda", "cuda_check"})


def violation(path, layer, quoted, name):
    """What is wrong with `path` including `name`, or None."""
    if INTRINSICS.fullmatch(name) and layer != "cpu" and not is_cpu_kernel(path):
        return "intrinsics belong to cpu/, *_cpu.cc and *_amx.cc"
    if not quoted:
        if CUDA.match(name) and not may_use_cuda(path, layer):
            return "CUDA headers belong to cuda/, *.cu and core/device_cuda.cc"
        if name.startswith("nlohmann/") and layer not in NLOHMANN:
            return "JSON's library stays behind io/json.h"
        return None
    if not name.startswith("elapid/"):
        return "project includes start at src/: elapid/<layer>/<file>"
    target = name.split("/")[1]
    if target == "cpu" and layer == "ops":
        return None if is_cpu_kernel(path) else "only *_cpu.cc and *_amx.cc may include cpu/"
    if target == "cuda" and layer in {"ops", "core"}:
        return None if may_use_cuda(path, layer) else "only *.cu may include cuda/"
    if target != layer and target not in BELOW[layer]:
        return f"{layer} may not include {target}"
    if layer == "text" and TENSORS.fullmatch(name):
        return "text knows no tensors"
    if name == "elapid/io/json.h" and layer not in JSON:
        return "no JSON above model/families except in text, cli and server"
    return None


def check(root):
    """All violations under root/src, one line each, and how many files were read."""
    source = root / "src"
    found, files = [], sorted(p for p in source.rglob("*") if p.suffix in SUFFIXES)
    for path in files:
        layer = path.relative_to(source / "elapid").parts[0]
        if layer not in BELOW:
            found.append(f"{path.relative_to(root)}: no layer named {layer}; add it to BELOW in tools/check_includes.py")
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            name = match[2]
            problem = violation(path, layer, match[1] == '"', name)
            if not problem and name.startswith("elapid/") and not (source / name).exists():
                problem = "no such file"
            if problem:
                found.append(f"{path.relative_to(root)}:{number}: {name}: {problem}")
    return found, len(files)


def main():
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent)
    found, files = check(root)
    for line in found:
        print(line)
    if not files:
        found.append(f"{root}/src: no source files")
        print(found[0])
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
