#!/usr/bin/env python3
"""Holds elapid's results against transformers, where torch and transformers are installed.

  check_transformers.py prepare --elapid build/release/elapid --suite SUITE --to DIR
      converts every conformance case that transformers has a class for, and runs it through `elapid forward`
  check_transformers.py compare DIR
      loads each converted folder with transformers, in float64, and compares the logits
  check_transformers.py lambada --model DIR --data lambada_test.jsonl [--limit N]
      accuracy and perplexity by lm-evaluation-harness's definition of lambada_openai, in float32
  check_transformers.py bf16 --elapid build/release/elapid --model DIR --text FILE [--tokens N]
      how far bf16 logits are from float32 ones, both sides' own
"""

import argparse
import json
import math
import os
import pathlib
import random
import subprocess
import sys


def prepare(options):
    tests = pathlib.Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(tests / "cli"))
    os.environ.update(ELAPID=str(options.elapid), ELAPID_SOURCE_DIR=str(tests.parent))
    from support import i64, write_safetensors

    options.to.mkdir(parents=True)
    rng = random.Random(5)
    for meta in sorted(options.suite.glob("**/meta.json")):
        case = meta.parent
        if case.name in ("ops", "finetune_mamba2"):
            continue
        target = options.to / case.name
        done = subprocess.run([options.elapid, "convert", "--model", case, "--output", target], capture_output=True, text=True)
        if done.returncode:
            print(f"{case.name}: {done.stderr.strip()}")
            continue
        rows = [[rng.randrange(3, 96) for _ in range(29)] for _ in range(2)]
        write_safetensors(target / "ids.safetensors", {"input_ids": i64(rows)})
        subprocess.run([options.elapid, "forward", "--model", target, "--input", target / "ids.safetensors", "--output",
                        target / "elapid.safetensors", "--dtype", "f32"], check=True, capture_output=True)
        print(f"{case.name}: {done.stdout.strip()}")


def compare(options):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    failed = passed = 0
    for folder in sorted(p.parent for p in options.folder.glob("*/elapid.safetensors")):
        ids = load_file(folder / "ids.safetensors")["input_ids"]
        ours = load_file(folder / "elapid.safetensors")["logits"].double()
        model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager", output_loading_info=True)
        with torch.no_grad():
            single = model.eval()(ids).logits.double()
            double = model.double()(ids).logits
        # The tolerance of the conformance suite: twenty times transformers' own float32-to-float64 difference.
        tolerance = max(1e-5, 20 * (single - double).abs().max().item()) * max(1.0, double.abs().max().item())
        worst = (ours - double).abs().max().item()
        missing = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
        good = worst <= tolerance and not missing
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok  ' if good else 'FAIL'} {folder.name}: {type(model).__name__}, off by {worst:.3g}, allowed {tolerance:.3g}"
              + (f", missing or unexpected: {missing}" if missing else ""))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


def lambada(options):
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(device).eval()
    tokenizer = Tokenizer.from_file(str(pathlib.Path(options.model) / "tokenizer.json"))
    texts = [json.loads(line)["text"] for line in open(options.data, encoding="utf-8")][: options.limit or None]
    total, greedy = 0.0, 0
    for text in texts:
        # doc_to_text and doc_to_target of lambada.yaml; TemplateLM._encode_pair; no special tokens.
        context = text.rsplit(" ", 1)[0]
        whole = tokenizer.encode(text, add_special_tokens=False).ids
        start = len(tokenizer.encode(context, add_special_tokens=False).ids)
        ids = torch.tensor([whole], device=device)
        with torch.no_grad():
            logp = torch.log_softmax(model(ids[:, :-1], use_cache=False).logits[0, start - 1 :].float(), -1)
        target = ids[0, start:]
        total += logp.gather(1, target[:, None]).sum().item()
        greedy += bool((logp.argmax(-1) == target).all())
    print(json.dumps({"task": "lambada_openai", "n": len(texts), "acc": greedy / len(texts), "perplexity": math.exp(-total / len(texts))}))


def bf16(options):
    import tempfile

    import torch
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(pathlib.Path(options.model) / "tokenizer.json"))
    text = pathlib.Path(options.text).read_text(encoding="utf-8")[: 16 * options.tokens]
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False).ids[: options.tokens]])
    sides = {"transformers": {}, "elapid": {}}
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
        with torch.no_grad():
            sides["transformers"][dtype] = model(ids, use_cache=False).logits.double()
    with tempfile.TemporaryDirectory() as folder:
        save_file({"input_ids": ids}, f"{folder}/ids")
        for dtype, name in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
            subprocess.run([options.elapid, "forward", "--model", options.model, "--input", f"{folder}/ids", "--output",
                            f"{folder}/{name}", "--dtype", name], check=True, capture_output=True)
            sides["elapid"][dtype] = load_file(f"{folder}/{name}")["logits"].double()
    off = {}
    for name, logits in sides.items():
        exact = logits[torch.float32]
        difference = logits[torch.bfloat16] - exact
        off[name] = (difference.pow(2).mean().sqrt().item(), difference.abs().max().item())
        print(f"{name}: bf16 off from its float32 by {off[name][0]:.4g} (rms), {off[name][1]:.4g} (most), of logits up to "
              f"{exact.abs().max().item():.4g}; float32 off from transformers' by "
              f"{(exact - sides['transformers'][torch.float32]).abs().max().item():.3g}")
    return 0 if off["elapid"][0] <= off["transformers"][0] and off["elapid"][1] <= off["transformers"][1] else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("prepare")
    one.add_argument("--elapid", type=pathlib.Path, required=True)
    one.add_argument("--suite", type=pathlib.Path, required=True)
    one.add_argument("--to", type=pathlib.Path, required=True)
    one.set_defaults(run=prepare)
    one = commands.add_parser("compare")
    one.add_argument("folder", type=pathlib.Path)
    one.set_defaults(run=compare)
    one = commands.add_parser("lambada")
    one.add_argument("--model", required=True)
    one.add_argument("--data", required=True)
    one.add_argument("--limit", type=int, default=0)
    one.set_defaults(run=lambada)
    one = commands.add_parser("bf16")
    one.add_argument("--elapid", type=pathlib.Path, required=True)
    one.add_argument("--model", required=True)
    one.add_argument("--text", required=True)
    one.add_argument("--tokens", type=int, default=1024)
    one.set_defaults(run=bf16)
    options = parser.parse_args()
    if "elapid" in options:
        options.elapid = options.elapid.resolve()
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
