#!/usr/bin/env python3
"""Copies conformance cases into tests/data/conformance, without the gradients of whole models.

    import_conformance.py SUITE [--only mamba2_,state_spaces/] [--ops ssd_,conv_] [--to DIR]

SUITE holds one folder a case (config.json, model.safetensors or pytorch_model.bin, expected.safetensors, meta.json), in
it or in its state_spaces/, and ops/*.safetensors. A model's grad* arrays are most of its expected.safetensors and
matter to training alone; an op's are small and stay.
"""

import argparse
import json
import shutil
import struct
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def copy_without(source, target, prefixes):
    """Rewrites a safetensors file without the tensors whose names start with one of `prefixes`."""
    data = source.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = json.loads(data[8 : 8 + length])
    payload = data[8 + length :]
    header, kept, position = {}, [], 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].get("data_offsets", [-1])):
        if name == "__metadata__":
            header[name] = entry
            continue
        if name.startswith(prefixes):
            continue
        begin, end = entry["data_offsets"]
        header[name] = {**entry, "data_offsets": [position, position + end - begin]}
        kept.append(payload[begin:end])
        position += end - begin
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(kept))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--only", default="", help="cases whose path begins with one of these, comma-separated")
    parser.add_argument("--ops", default="", help="the same for ops/, comma-separated")
    parser.add_argument("--to", type=Path, default=REPOSITORY / "tests/data/conformance")
    args = parser.parse_args()

    cases = [c for c in sorted(args.suite.glob("*")) + sorted(args.suite.glob("state_spaces/*")) if (c / "meta.json").exists()]
    for case in cases:
        path = case.relative_to(args.suite)
        if not str(path).startswith(tuple(args.only.split(","))) or "finetune" in str(path) or path.name == "ops":
            continue
        target = args.to / path
        target.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "config.bare_infinity.json", "generation_config.json", "model.safetensors", "pytorch_model.bin", "meta.json"):
            if (case / name).exists():
                shutil.copyfile(case / name, target / name)
        # What a padded batch must equal is its rows alone; the float64 run of the logits is the better one.
        copy_without(case / "expected.safetensors", target / "expected.safetensors",
                     ("grad", "padded.logits", "greedy_padded", "greedy_alone"))

    target = args.to / "ops"
    target.mkdir(parents=True, exist_ok=True)
    names = [p for prefix in args.ops.split(",") for p in sorted((args.suite / "ops").glob(prefix + "*.safetensors"))]
    for path in names:
        shutil.copyfile(path, target / path.name)
    meta = json.loads((args.suite / "ops/meta.json").read_text())
    meta["ops"] = {p.stem: meta["ops"][p.stem] for p in names}
    (target / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


if __name__ == "__main__":
    main()
