#!/usr/bin/env python3
"""Speed of Elapid beside llama.cpp: the same shapes with random weights, in turns on one machine.

    bench/llama_cpp/compare.py --model mamba2-1.3b.json --types bf16,q8_0,q4_k_m

`--model` is a config.json of the model; several may be given. The first run makes, in WORK and nowhere else, a virtual
environment, llama.cpp's libraries (from the source distribution of PyPI's llama-cpp-python, the only thing fetched
besides the packages gguf and numpy; half an hour on two busy cores, a fraction where ccache holds another level) and
GGUF files of random weights, which later runs find. Needs python3-venv, cmake, ninja-build and g++, and a release build
of Elapid (scripts/build.sh release elapid).

In each round llama.cpp and then `elapid bench` measure prefill (batches of 512 tokens, the last token's logits alone),
decode one token at a time, and for every further --batch N the decode of N sequences at once. Both are a process each,
measured after a run that is not. A round during which other processes or the host's other guests took more than
--disturbed of the cores is repeated, up to --retries times, and marked * where it stayed so; a sibling hyperthread at
work outside a virtual machine shows nowhere, which is why rounds alternate. Speeds are medians of the rounds, ratios
medians of the rounds' ratios with their range.

Types and the --dtype they meet: f32 f32 (weights held in float32), f16 and bf16 bf16, q8_0 int8, q4_0 and q4_k_m int4.
--isa avx2, avx512 and amx build llama.cpp for that level alone and set ELAPID_FORCE_ISA to it; native (the default)
leaves both to take what the machine has.
"""

import argparse
import glob
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Type → llama.h's llama_ftype, --dtype of elapid.
TYPES = {"f32": (0, "f32"), "f16": (1, "bf16"), "bf16": (32, "bf16"), "q8_0": (7, "int8"), "q4_0": (2, "int4"),
         "q4_k_m": (15, "int4")}

AVX2 = ["SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2"]
AVX512 = AVX2 + ["AVX512"]
AMX = AVX512 + ["AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16", "AMX_TILE", "AMX_INT8", "AMX_BF16"]
LEVELS = {"native": ["NATIVE"], "avx2": AVX2, "avx512": AVX512, "amx": AMX}


def say(*parts):
    print(*parts, file=sys.stderr, flush=True)


def fail(what):
    sys.exit(f"compare.py: {what}")


def run(command, **options):
    command = [str(part) for part in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode:
        fail(f"{' '.join(command)}: must succeed, got exit code {done.returncode}\n{done.stdout[-4000:]}")


def make_tools(work):
    """The virtual environment's Python and llama.cpp's sources."""
    python = work / "venv/bin/python"
    if not list((work / "venv").glob("lib/*/site-packages/gguf")):
        say("making a virtual environment")
        run([sys.executable, "-m", "venv", work / "venv"])
        run([python, "-m", "pip", "install", "--quiet", "gguf", "numpy"])
    sources = work / "src"
    if not sources.exists():
        say("fetching llama-cpp-python's sources")
        run([python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", "--dest",
             work / "sdist", "llama-cpp-python"])
        (archive,) = (work / "sdist").glob("llama_cpp_python-*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(work / "unpacked")
        (unpacked,) = (work / "unpacked").iterdir()
        unpacked.rename(sources)
    return python, sources


def build(work, sources, isa):
    """The path of llama_peer for a level."""
    # A copy of the project, so that checkouts share what is built; a level is built again where the copy changed.
    project, folder = work / "peer", work / "build" / isa
    project.mkdir(exist_ok=True)
    for name in ["CMakeLists.txt", "peer.cc", "tile_config.h"]:
        text = (HERE / name).read_bytes()
        if not (project / name).exists() or (project / name).read_bytes() != text:
            (project / name).write_bytes(text)
    peer = folder / "llama_peer"
    if peer.exists() and peer.stat().st_mtime > max(file.stat().st_mtime for file in project.iterdir()):
        return peer
    say(f"building llama.cpp for {isa} in {folder}")
    options = [f"-DGGML_{name}={'ON' if name in LEVELS[isa] else 'OFF'}" for name in ["NATIVE", *AMX]]
    run(["cmake", "-G", "Ninja", "-S", project, "-B", folder, "-DCMAKE_BUILD_TYPE=Release",
         f"-DLLAMA_CPP={sources / 'vendor/llama.cpp'}", *options])
    # Levels differ in one library: with paths relative to their folders, ccache has the rest for all but the first.
    shared = {**os.environ, "CCACHE_BASEDIR": str(work), "CCACHE_NOHASHDIR": "1"}
    run(["nice", "-n", "19", "cmake", "--build", folder, "-j1", "--target", "llama_peer"], env=shared)
    return peer


def make_model(work, python, peer, config, kind):
    """The GGUF file of a type, and the config file that makes Elapid hold the same weights."""
    text = config.read_bytes()
    base = work / "gguf" / f"{config.stem}-{hashlib.sha256(text).hexdigest()[:8]}"
    base.parent.mkdir(parents=True, exist_ok=True)

    def make(path, command):
        if not path.exists():
            say(f"making {path}")
            part = path.with_suffix(".part")
            run(["nice", "-n", "19", *command, *([part] if command[0] == python else [part, TYPES[kind][0], 2])])
            part.rename(path)

    bf16, wanted = Path(f"{base}.bf16.gguf"), Path(f"{base}.{kind}.gguf")
    if not wanted.exists():
        make(bf16, [python, HERE / "make_gguf.py", config])
        if kind != "bf16":
            make(wanted, [peer, "quantize", bf16])
    if kind == "f32":
        config = Path(f"{base}.f32.json")
        config.write_text(json.dumps({**json.loads(text), "torch_dtype": "float32"}), encoding="utf-8")
    return wanted, config


def cpu_seconds():
    """Of all cores together since the start: at work, and wanted but taken by the host's other guests."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, steal / tick


class Watch:
    """Shares of the machine that others took since it was made."""

    def __init__(self):
        self.wall, (self.busy, self.steal), self.own = time.monotonic(), cpu_seconds(), self.children()

    @staticmethod
    def children():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def shares(self):
        cores = (time.monotonic() - self.wall) * os.cpu_count()
        busy, steal = cpu_seconds()
        foreign = busy - self.busy - (self.children() - self.own)
        return max(0.0, foreign / cores), (steal - self.steal) / cores


def wait_for_quiet(limit, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        watch = Watch()
        time.sleep(0.5)
        if sum(watch.shares()) < limit:
            return


def measure(o, command, env):
    """One turn of one side: its JSON with what others took meanwhile, of the least disturbed attempt."""
    attempts = []
    for _ in range(o.retries + 1):
        wait_for_quiet(o.disturbed, o.wait)
        watch = Watch()
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env, check=False)
        foreign, steal = watch.shares()
        if done.returncode:
            error = done.stderr.strip().splitlines()[-1:] or [""]
            return {"failed": f"exit code {done.returncode} {error[0]}"}
        attempts.append({**json.loads(done.stdout), "foreign": foreign, "steal": steal})
        if foreign + steal <= o.disturbed:
            break
    best = min(attempts, key=lambda attempt: attempt["foreign"] + attempt["steal"])
    return {**best, "disturbed": best["foreign"] + best["steal"] > o.disturbed, "attempts": attempts}


def compare(o, peer, gguf, config, kind, batch):
    """Rounds of both sides: [{llama_cpp, elapid}]."""
    prompt = o.prompt if batch == 1 else 1  # prefill is measured with one sequence
    sizes = [prompt, o.gen, batch, o.repeat]
    llama = [peer, "bench", gguf, o.threads, *sizes]
    names = ["--prompt", "--gen", "--batch", "--repeat"]
    elapid = [o.elapid, "bench", "--config", config, "--dtype", TYPES[kind][1], "--threads", o.threads, "--json",
              *[part for pair in zip(names, sizes) for part in pair]]
    env = dict(os.environ) if o.isa == "native" else {**os.environ, "ELAPID_FORCE_ISA": o.isa}
    rounds = []
    for _ in range(o.rounds):
        a = measure(o, llama, env)
        if "failed" not in a:
            a["prefill_tok_s"] = batch * prompt / statistics.median(a["prefill_s"])
            a["decode_tok_s"] = batch * o.gen / statistics.median(a["decode_s"])
        rounds.append({"llama_cpp": a, "elapid": measure(o, elapid, env)})
    return rounds


ROW = "{:22} {:12} {:>11} {:>10} {:>10} {:>6} {:>13} {:>17} {:>13}"


def print_rows(name, kind, label, key, rounds):
    def column(side, field, text="{:.1f}"):
        turns = [r[side] for r in rounds]
        failed = [turn for turn in turns if "failed" in turn]
        if failed:
            say(f"{name} {kind} {label}: {side}: {failed[0]['failed']}")
            return "fails"
        mark = "*" if any(turn["disturbed"] for turn in turns) else ""
        return text.format(statistics.median(turn[field] for turn in turns)) + mark

    whole = [r for r in rounds if not any("failed" in side for side in r.values())]
    ratios = [r["elapid"][key] / r["llama_cpp"][key] for r in whole]
    others = [f"{100 * max((s.get(k, 0) for r in rounds for s in r.values())):.0f}" for k in ("foreign", "steal")]
    print(ROW.format(name, f"{kind}/{TYPES[kind][1]}", label, column("llama_cpp", key), column("elapid", key),
                     f"{statistics.median(ratios):.2f}" if ratios else "-",
                     f"{min(ratios):.2f} - {max(ratios):.2f}" if ratios else "-",
                     column("llama_cpp", "peak_mem_mib", "{:.0f}") + " / " + column("elapid", "peak_mem_mib", "{:.0f}"),
                     " / ".join(others)), flush=True)


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    p.add_argument("--model", type=Path, nargs="+", required=True, metavar="CONFIG.json")
    p.add_argument("--types", default="bf16,q8_0,q4_k_m", help=f"of {', '.join(TYPES)} (default: %(default)s)")
    p.add_argument("--isa", choices=LEVELS, default="native")
    p.add_argument("--prompt", type=int, default=512, help="tokens of prefill (default: %(default)s)")
    p.add_argument("--gen", type=int, default=64, help="steps of decode (default: %(default)s)")
    p.add_argument("--batch", default="1,8", help="1: prefill and decode; others: decode alone (default: %(default)s)")
    p.add_argument("--threads", type=int, default=2, help="of both (default: %(default)s)")
    p.add_argument("--rounds", type=int, default=3, help="turns of each (default: %(default)s)")
    p.add_argument("--repeat", type=int, default=1, help="measured runs a turn (default: %(default)s)")
    p.add_argument("--disturbed", type=float, default=0.05, help="share of the cores (default: %(default)s)")
    p.add_argument("--retries", type=int, default=2, help="of a disturbed turn (default: %(default)s)")
    p.add_argument("--wait", type=float, default=20, help="seconds to wait for a quiet machine (default: %(default)s)")
    p.add_argument("--elapid", type=Path, default=ROOT / "build/release/elapid")
    p.add_argument("--work", type=Path, default=cache / "elapid-bench", help="default: %(default)s")
    p.add_argument("--log", type=Path, help="JSON of every turn (default: WORK/logs/TIME.json)")
    o = p.parse_args()
    o.types = o.types.split(",")
    o.batch = [int(n) for n in o.batch.split(",")]
    for kind in o.types:
        if kind not in TYPES:
            fail(f"--types: must be of {', '.join(TYPES)}, got {kind}")
    if not o.elapid.exists():
        fail(f"--elapid: must name a built program, got {o.elapid}")
    o.work, o.elapid = o.work.resolve(), o.elapid.resolve()
    o.log = o.log or o.work / "logs" / time.strftime("%Y%m%d-%H%M%S.json")
    return o


def main():
    o = options()
    o.work.mkdir(parents=True, exist_ok=True)
    o.log.parent.mkdir(parents=True, exist_ok=True)
    python, sources = make_tools(o.work)
    peer = build(o.work, sources, o.isa)
    version = next(iter(glob.glob(str(o.work / "sdist/*.tar.gz"))), "?").rsplit("-", 1)[-1].removesuffix(".tar.gz")
    print(f"llama.cpp of llama-cpp-python {version}, level {o.isa}, {o.threads} threads each, {o.rounds} rounds in turns, "
          f"medians of tokens a second\n* more than {100 * o.disturbed:.0f} % of the cores went to others (last column: "
          "the most of any turn, other processes / other guests, in %)\n")
    print(ROW.format("model", "type", "test", "llama.cpp", "Elapid", "ratio", "of rounds", "peak MiB", "others %"))
    log = []
    for config in o.model:
        for kind in o.types:
            gguf, held = make_model(o.work, python, peer, config, kind)
            for batch in o.batch:
                rounds = compare(o, peer, gguf, held, kind, batch)
                log.append({"model": config.stem, "type": kind, "isa": o.isa, "threads": o.threads, "batch": batch,
                            "prompt": o.prompt if batch == 1 else 1, "gen": o.gen, "version": version, "rounds": rounds})
                o.log.write_text(json.dumps(log, indent=1), encoding="utf-8")
                if batch == 1:
                    print_rows(config.stem, kind, f"prefill {o.prompt}", "prefill_tok_s", rounds)
                print_rows(config.stem, kind, "decode" + (f" x{batch}" if batch > 1 else ""), "decode_tok_s", rounds)
    say(f"every turn: {o.log}")


main()
