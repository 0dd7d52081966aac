#!/usr/bin/env python3
"""Writes the first inputs of every fuzz target: make_seeds.py FOLDER fills FOLDER/<target>/."""

import json
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1}


def safetensors(tensors, metadata=None, data=None):
    """A tensor file of (name, dtype, shape) triples, laid out one after the other."""
    header = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, dtype, shape in tensors:
        begin = end
        end += SIZES[dtype]
        for dim in shape:
            end = begin + (end - begin) * dim
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + (bytes(end) if data is None else data)


def safetensors_seeds():
    one = safetensors([("w", "F32", [2, 2])])
    yield one
    yield one[:-1]
    yield struct.pack("<Q", 1 << 60) + one[8:]
    yield safetensors([])
    yield safetensors([("scalar", "F64", []), ("none", "BF16", [3, 0]), ("mask", "BOOL", [5])], {"format": "pt"})
    yield safetensors([(dtype, dtype, [1, 2, 1, 3]) for dtype in SIZES])
    yield one.replace(b"[0, 16]", b"[1, 17]")
    yield one.replace(b"[2, 2]", b"[4294967296, 4294967296]")


def state_seeds():
    metadata = {"format": "elapid.state", "version": "1", "fingerprint": "0123456789abcdef", "dtype": "f32"}
    layers = [(f"state.{i}.{kind}", "F32", shape) for i in range(2) for kind, shape in (("conv", [3, 4]), ("ssm", [2, 2, 4]))]
    yield safetensors([("tokens", "I64", [3]), ("pending", "I64", [1]), *layers], metadata)
    yield safetensors([("tokens", "I64", [0]), ("pending", "I64", [0])], metadata)
    yield safetensors([("tokens", "I64", [1]), *layers], metadata)
    yield safetensors(layers, {**metadata, "version": "2"})


def json_seeds():
    yield b"{}"
    yield b'{"a": [1, -2, 2.5e-3, true, false, null, "x\\u00e9\\ud83d\\ude00\\n"], "b": {"c": {}}}'
    yield b'[Infinity, -Infinity, NaN, "Infinity \\" NaN", {"__float__": "-Infinity"}]'
    yield b'[9007199254740993, 18446744073709551616, -9223372036854775808, 1e308, 1e-320]'
    yield b"[" * 256 + b"]" * 256


def config_seeds():
    for path in [ROOT / "models/storyteller/config.json", *sorted(ROOT.glob("tests/data/conformance/*/config*.json"))]:
        yield path.read_bytes()
    small = {
        "model_type": "mamba2", "vocab_size": 16, "hidden_size": 8, "state_size": 4, "num_hidden_layers": 2, "expand": 2,
        "head_dim": 4, "num_heads": 4, "n_groups": 1, "conv_kernel": 4, "chunk_size": 8, "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": [0, 1], "torch_dtype": "float32",
        "time_step_limit": [0.0, {"__float__": "Infinity"}],
    }
    yield json.dumps(small).encode()


def template_seeds():
    folder = ROOT / "tests/data/templates"
    for path in sorted(folder.glob("*.jinja")):
        yield path.read_bytes()
    for case in json.loads((folder / "snippets.json").read_text())["cases"][::4]:
        yield case["template"].encode()


def sentencepiece_seeds():
    for path in sorted((ROOT / "tests/data/sentencepiece").glob("*.model")):
        yield path.read_bytes()


def byte_letters():
    """The letters that stand for bytes in a byte-level vocabulary, by byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def tokenizer_seeds():
    letters = byte_letters()
    all_bytes = [letters[b] for b in range(256)]
    few_bytes = [letters[b] for b in b" abcst\n1"]
    space = letters[ord(" ")]
    merges = [(space, "a"), ("s", "t"), (space + "a", "b"), (space, space)]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}

    def split(pattern, behavior="Isolated", invert=False):
        return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}

    def tokenizer(text, base=few_bytes, merges=merges, merges_as_text=False, model=(), token=(), **parts):
        words = ["<s>", *base, *(a + b for a, b in merges)]
        return json.dumps({
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": 0, "content": "<s>", **added, **dict(token)}],
            "normalizer": None, "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": {word: i for i, word in enumerate(words)},
                      "merges": [f"{a} {b}" for a, b in merges] if merges_as_text else merges, **dict(model)},
            **parts}, ensure_ascii=False).encode() + b"\0" + text

    gpt2 = r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    without_regex = {**byte_level, "use_regex": False}
    yield tokenizer("a ab  <s>bast stop é世界😀\n\t1".encode(), base=all_bytes)
    yield tokenizer(b" ab" * 20 + b"\xff", base=all_bytes, merges_as_text=True)
    yield tokenizer(b"ab  st<s> a")
    yield tokenizer("e\u0301 a<s>".encode(), base=all_bytes, normalizer={"type": "NFC"})
    yield tokenizer(b"AB <s> st", normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]})
    yield tokenizer(b"ab  ab1 st", pre_tokenizer={"type": "Sequence", "pretokenizers": [split({"Regex": gpt2}), without_regex]})
    yield tokenizer(b"ab", pre_tokenizer=split({"Regex": "(" + gpt2}))
    yield tokenizer(b"ab  ab1 11", pre_tokenizer={"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, split({"String": " "}, "MergedWithNext"), without_regex]})
    yield tokenizer(b"abstop a", pre_tokenizer=split({"Regex": "a+|b"}, "Removed", True), post_processor=template)
    yield tokenizer(b" <s>  ab", token={"lstrip": True, "rstrip": True, "single_word": True, "normalized": True}.items())
    yield tokenizer(
        "a \u2581b é".encode(), base=["\u2581", "a", "b", *(f"<0x{b:02X}>" for b in range(256))],
        merges=[("\u2581", "a")], model={"byte_fallback": True, "unk_token": "<s>", "fuse_unk": True}.items(),
        normalizer={"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        pre_tokenizer=None, post_processor=None,
        decoder={"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})


def torch_file_seeds():
    for path in sorted(ROOT.glob("tests/data/torch/*.bin")):
        if path.stat().st_size < 8192:  # those of torch itself are larger, and no different
            yield path.read_bytes()


def main():
    for target, seeds in (("config", config_seeds), ("json", json_seeds), ("safetensors", safetensors_seeds),
                          ("sentencepiece", sentencepiece_seeds), ("state", state_seeds), ("template", template_seeds),
                          ("tokenizer", tokenizer_seeds), ("torch_file", torch_file_seeds)):
        folder = pathlib.Path(sys.argv[1]) / target
        folder.mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(seeds()):
            (folder / f"seed-{i}").write_bytes(seed)


if __name__ == "__main__":
    main()
