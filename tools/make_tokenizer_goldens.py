#!/usr/bin/env python3
"""Writes tests/data/tokenizer/: small tokenizers and what the `tokenizers` package makes of some texts with them.

  make_tokenizer_goldens.py --corpus FILE... [--output tests/data/tokenizer] [--fuzz N]

The models are trained on the corpus (any English text) and on the texts below. models.json holds them by name; every case
of cases.json names one and adds the other parts of a tokenizer file, so that each kind of normalizer, pre-tokenizer,
added-token flag, post-processor and decoder is met. `--fuzz` adds so many random texts to every case. Needs
`pip install tokenizers`.
"""

import argparse
import importlib.util
import json
import pathlib

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
import tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[1]

TEXTS = [
    "",
    " ",
    "Hello world, it's  me!",
    "  We'll see   what they've done\u2026 \n\n\tI'd say 12345 or 3.14?\r\n",
    "The quick (brown) fox--jumps_over \"lazy\" dogs; e-mail a@b.co [x]{y}<z>",
    "caf\u00e9 cafe\u0301 \u00c5 A\u030a \u212b \ufb01n \u2460\u00bd \u01c4 \u0130I stra\u00dfe \u0391\u03a3\u03c2",
    "\u1100\u1161\u11a8 \uac00\ub098\ub2e4 \uac00\u11a8 \u0958 \u0915\u093c a\u0323\u0307 a\u0307\u0323 \u1e69 s\u0307\u0323",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u65e5\u672c\u8a9e\u306e\u6587\u7ae0 \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f44d\U0001f3fd \u2764\ufe0f\U0001f1e6\U0001f1f7 \u200b\ufeff\u00a0\u3000\u2028\u0085x",
    "\x00\x01\x1b[0m\x7f \u0080\u009f \ufffd \ufdd0 \U0010ffff",
    "   leading and trailing   ",
    "\n\n \n  \n\t x\n",
    "don\u2019t DON'T 'Tis 'll '' ''s '",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                                     .",
    "\u0660\u0661\u0662 \u2167 x\u00b2 1\u204442 \u3007 \U0001d7d8 007 1,000,000 5th",
    "\u2581under \u2581\u2581score\u2581 _ __",
    "<s>[INST] hi [/INST] there</s> <mask><mask> foo<mask>bar  <mask>  baz <mask>",
    "TOKEN Token token tokenizer aTOKEN TOKENa a TOKEN, (TOKEN) TOKEN_ \u00e9TOKEN <new>x <new> <newer> <ne",
    "the of and to in that he was it his",
    "x<s><s>y <s> \n </s>\t</s>z",
]

BOUNDARY_TEXTS = ["<ab", "<abc>", "<abcd> <abc", "spaces     here  ", "eins  zwei   drei", "\u00c9tude \u00e9tude E\u0301tude"]


def added(content, **flags):
    token = {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return token | flags


def byte_level(add_prefix_space=False, use_regex=True):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def sequence(key, *items):
    return {"type": "Sequence", key: list(items)}


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def metaspace(scheme, split_words):
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split_words}


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

DECODE_BYTES = byte_level(True)
DECODE_LLAMA = sequence("decoders", {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0})
NORMALIZE_LLAMA = sequence("normalizers", {"type": "Prepend", "prepend": "\u2581"},
                           {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})


def template(before, after):
    pieces = [{"SpecialToken": {"id": t, "type_id": 0}} for t in before] + [{"Sequence": {"id": "A", "type_id": 0}}]
    pieces += [{"SpecialToken": {"id": t, "type_id": 0}} for t in after]
    return {"single": pieces, "names": sorted(set(before + after))}


def make_cases():
    cases = {}

    def case(name, model, **parts):
        cases[name] = {"model": model} | parts

    # Byte-level vocabularies: pre-tokenizers in front of the spelling.
    plain = {"pre_tokenizer": byte_level(), "decoder": DECODE_BYTES}
    case("byte-level", "bytes", **plain)
    case("byte-level prefix space", "bytes", pre_tokenizer=byte_level(True), decoder=DECODE_BYTES)
    case("byte-level without regex", "bytes", pre_tokenizer=byte_level(use_regex=False), decoder=DECODE_BYTES)
    case("byte-level in the middle", "bytes", pre_tokenizer=sequence(
        "pretokenizers", byte_level(), {"type": "Digits", "individual_digits": True}), decoder=DECODE_BYTES)
    for form in ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"]:
        case(form, "bytes", normalizer={"type": form}, **plain)
    case("normalizers in sequence", "bytes", normalizer=sequence(
        "normalizers", {"type": "NFD"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}), **plain)
    for left, right in [(True, False), (False, True), (True, True)]:
        case(f"Strip {left} {right}", "bytes", normalizer={"type": "Strip", "strip_left": left, "strip_right": right}, **plain)
    case("Replace with nothing", "bytes", normalizer={"type": "Replace", "pattern": {"String": "e"}, "content": ""}, **plain)
    case("Replace words", "bytes", normalizer={"type": "Replace", "pattern": {"Regex": r"\b\w+\b"}, "content": "W"}, **plain)
    case("Replace lookbehind", "bytes", normalizer={"type": "Replace", "pattern": {"Regex": r"(?<=\w)\s|^\s"}, "content": "~"}, **plain)
    case("Prepend", "bytes", normalizer={"type": "Prepend", "prepend": ">> "}, **plain)
    tail = byte_level(use_regex=False)
    for name, pattern in [("Llama 3", LLAMA3), ("GPT-4o", GPT4O), ("Qwen", QWEN), ("GPT-2", GPT2)]:
        case(f"Split {name}", "bytes", pre_tokenizer=sequence("pretokenizers", split({"Regex": pattern}), tail),
             normalizer={"type": "NFC"} if name == "Qwen" else None, decoder=DECODE_BYTES)
    case("Split inverted Removed", "bytes", pre_tokenizer=sequence(
        "pretokenizers", split({"Regex": LLAMA3}, "Removed", True), tail), decoder=DECODE_BYTES)
    for behavior in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]:
        for invert in [False, True]:
            for kind, pattern in [("string", {"String": "e"}), ("regex", {"Regex": r"\s|[aeiou]"})]:
                case(f"Split {kind} {behavior} {'inverted' if invert else ''}".strip(), "bytes",
                     pre_tokenizer=sequence("pretokenizers", split(pattern, behavior, invert), tail))
        case(f"Punctuation {behavior}", "bytes", pre_tokenizer=sequence(
            "pretokenizers", {"type": "Punctuation", "behavior": behavior}, tail))
    case("Split empty matches", "bytes", pre_tokenizer=sequence(
        "pretokenizers", split({"Regex": r"x*|(?=[A-Z])"}, "MergedWithNext"), tail))
    case("Split lookbehind", "bytes", pre_tokenizer=sequence(
        "pretokenizers", split({"Regex": r"(?<=[a-z])(?=[A-Z ])|^.|.$"}), tail))
    case("Split shorthands", "bytes", pre_tokenizer=sequence(
        "pretokenizers", split({"Regex": r"[\W\d]+\b|\h{2,}|[^\S\n]+|\p{Han}|\P{L}\p{^N}"}), tail))
    case("StarCoder", "bytes", pre_tokenizer=sequence(
        "pretokenizers", {"type": "Digits", "individual_digits": True}, byte_level()), decoder=DECODE_BYTES)
    case("Digits contiguous", "bytes", pre_tokenizer=sequence(
        "pretokenizers", {"type": "Digits", "individual_digits": False}, byte_level()), decoder=DECODE_BYTES)
    case("Falcon", "bytes", pre_tokenizer=sequence(
        "pretokenizers", {"type": "Punctuation", "behavior": "Contiguous"}, byte_level(),
        {"type": "Digits", "individual_digits": False}, split({"Regex": "[0-9][0-9][0-9]"})), decoder=DECODE_BYTES)
    case("Whitespace", "bytes", pre_tokenizer=sequence("pretokenizers", {"type": "Whitespace"}, tail))
    case("WhitespaceSplit", "bytes", pre_tokenizer=sequence("pretokenizers", {"type": "WhitespaceSplit"}, tail))

    # Character vocabularies.
    case("Llama 2", "characters", normalizer=NORMALIZE_LLAMA, decoder=DECODE_LLAMA,
         added_tokens=[added("<unk>", special=True), added("<s>", special=True), added("</s>", special=True)],
         post_processor=template(["<s>"], []))
    for scheme in ["first", "never", "always"]:
        for split_words in [True, False]:
            case(f"Metaspace {scheme} {split_words}", "characters", pre_tokenizer=metaspace(scheme, split_words),
                 decoder=metaspace(scheme, split_words), added_tokens=[added("<s>", special=True), added("</s>")])
    case("Metaspace after Strip", "characters", pre_tokenizer=metaspace("first", True),
         normalizer={"type": "Strip", "strip_left": True, "strip_right": False})
    case("Metaspace after Split", "characters", pre_tokenizer=sequence(
        "pretokenizers", split({"String": "e"}, "Removed"), metaspace("first", True)))
    case("ignore_merges", "ignoring merges", pre_tokenizer=metaspace("always", True), decoder=metaspace("always", True))
    case("unknown", "unknown", pre_tokenizer={"type": "Whitespace"})
    case("unknown fused", "fused unknown", pre_tokenizer={"type": "WhitespaceSplit"})
    case("without unknown", "no unknown", pre_tokenizer={"type": "WhitespaceSplit"})
    case("affixes", "affixes", pre_tokenizer={"type": "WhitespaceSplit"})
    case("byte fallback with unknown", "partial bytes", pre_tokenizer=metaspace("never", False), decoder=DECODE_LLAMA)

    # Added tokens.
    for flag in ["single_word", "lstrip", "rstrip", "special"]:
        for normalized in [False, True]:
            case(f"added {flag} {'normalized' if normalized else ''}".strip(), "bytes", normalizer={"type": "Lowercase"},
                 added_tokens=[added(t, normalized=normalized, **{flag: True}) for t in ["TOKEN", "<mask>", "<s>", "[INST]"]], **plain)
    case("added stripping both", "bytes", added_tokens=[
        added("<mask>", lstrip=True, rstrip=True), added("<s>", single_word=True, rstrip=True), added("  ", normalized=True),
        added("   ", normalized=True), added("</s>", lstrip=True, special=True)], **plain)
    case("added overlapping", "bytes", added_tokens=[
        added(t) for t in ["<ab", "<abc>", "<new>", "<newer>", "<new", "tok", "token", "tokenizer", "aaaa", "aaaaaaa", "\n\n", "he", "ello"]],
        **plain)
    case("added with NFC", "bytes", normalizer={"type": "NFC"}, added_tokens=[
        added("E\u0301tude", normalized=True), added("cafe\u0301"), added("     ", normalized=True)], **plain)
    case("added with Prepend", "characters", normalizer=NORMALIZE_LLAMA, decoder=DECODE_LLAMA, added_tokens=[
        added("<mask>", normalized=True), added("<s>"), added("INST", normalized=True)])
    case("template", "bytes", added_tokens=[added("<s>", special=True), added("</s>", special=True)], **plain,
         post_processor=template(["<s>", "<s>"], ["</s>"]))
    case("post-processors in sequence", "bytes", added_tokens=[added("<s>", special=True)], **plain,
         post_processor=sequence("processors", byte_level(), template([], ["<s>"])))

    # Decoders.
    case("no decoder", "characters", pre_tokenizer=metaspace("always", True))
    case("decoder Fuse", "characters", pre_tokenizer=metaspace("always", True), decoder={"type": "Fuse"})
    case("decoder ByteFallback", "characters", pre_tokenizer=metaspace("always", True), decoder={"type": "ByteFallback"})
    case("decoder Replace", "characters", pre_tokenizer=metaspace("always", True), decoder=sequence(
        "decoders", {"type": "Replace", "pattern": {"Regex": "\u2581+"}, "content": "_"}, {"type": "Fuse"},
        {"type": "Replace", "pattern": {"Regex": "_+|(?<=e)r"}, "content": "#"}))
    case("decoder Replace empty matches", "characters", pre_tokenizer=metaspace("always", True), decoder={
        "type": "Replace", "pattern": {"Regex": "e*"}, "content": "-"})
    case("decoder Strip", "characters", pre_tokenizer=metaspace("always", True), decoder=sequence(
        "decoders", {"type": "Fuse"}, {"type": "Strip", "content": "\u2581", "start": 2, "stop": 0},
        {"type": "Strip", "content": "e", "start": 0, "stop": 1}))
    case("decoder ByteLevel of foreign tokens", "characters", pre_tokenizer=metaspace("always", True), decoder=DECODE_BYTES)
    return cases


def train_models(corpus):
    texts = corpus + TEXTS * 3
    made = {}

    def train(pre_tokenizer, size, **trainer):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizer
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False, **trainer))
        return json.loads(tokenizer.to_str())["model"]

    made["bytes"] = train(pre_tokenizers.ByteLevel(add_prefix_space=False), 600,
                          initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    meta = pre_tokenizers.Metaspace()
    bytes_tokens = [f"<0x{b:02X}>" for b in range(256)]
    characters = train(meta, 700, special_tokens=["<unk>"] + bytes_tokens, limit_alphabet=60)
    made["characters"] = characters | {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    lean = train(meta, 200, special_tokens=["<unk>"], limit_alphabet=50)
    vocab = dict(lean["vocab"])
    for word in ["\u2581HELLO", "\u2581quick", "\u2581the\u2581of", "zzz"]:
        vocab[word] = len(vocab)
    made["ignoring merges"] = lean | {"ignore_merges": True, "vocab": vocab}
    made["unknown"] = lean | {"unk_token": "<unk>"}
    made["fused unknown"] = lean | {"unk_token": "<unk>", "fuse_unk": True}
    made["no unknown"] = lean
    made["affixes"] = train(pre_tokenizers.WhitespaceSplit(), 300, limit_alphabet=60,
                            continuing_subword_prefix="##", end_of_word_suffix="</w>")
    # Some bytes have tokens, some do not.
    vocab = dict(lean["vocab"])
    for token in bytes_tokens[0x20:0xC8]:
        vocab[token] = len(vocab)
    made["partial bytes"] = lean | {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True, "vocab": vocab}
    # The older way to write merges.
    made["affixes"]["merges"] = [" ".join(merge) for merge in made["affixes"]["merges"]]
    return made


def tokenizer_file(case, made):
    """The tokenizer.json of a case; template names become what the package wants."""
    model = made[case["model"]]
    ids = dict(model["vocab"])
    tokens = []
    for token in case.get("added_tokens", []):
        ids.setdefault(token["content"], len(ids))
        tokens.append(token | {"id": ids[token["content"]]})

    def expand(processor):
        if processor is None or "names" not in processor:
            if processor and processor["type"] == "Sequence":
                return processor | {"processors": [expand(p) for p in processor["processors"]]}
            return processor
        special = {n: {"id": n, "ids": [ids[n]], "tokens": [n]} for n in processor["names"]}
        return {"type": "TemplateProcessing", "single": processor["single"], "pair": [
            {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": special}

    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens,
            "normalizer": case.get("normalizer"), "pre_tokenizer": case.get("pre_tokenizer"),
            "post_processor": expand(case.get("post_processor")), "decoder": case.get("decoder"), "model": model}


def guarded(make, name, argument):
    """None where the package panics: its bookkeeping of offsets has limits that ids do not need."""
    try:
        return make(argument)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        print(f"{name}: the package panics on {argument!r}: {error}")
        return None


def same_as(text, decoded):
    """True stands for the text itself: the files are smaller so."""
    return True if decoded == text else decoded


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True, type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "tests" / "data" / "tokenizer")
    parser.add_argument("--fuzz", type=int, default=0)
    options = parser.parse_args()
    made = train_models([line for file in options.corpus for line in file.read_text().splitlines()[:3000]])
    texts = TEXTS + BOUNDARY_TEXTS
    if options.fuzz:
        spec = importlib.util.spec_from_file_location("test_tokenizer", ROOT / "tests" / "python" / "test_tokenizer.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        import random
        rng = random.Random(7)
        specials = [" <mask>", "<s> ", "TOKEN", "token", "[INST]", "</s>", "<new", "\u2581", "E\u0301tude"]
        for _ in range(options.fuzz):
            text = module.fuzz_text(rng)
            for _ in range(rng.randrange(4)):
                at = rng.randint(0, len(text))
                text = text[:at] + rng.choice(specials) + text[at:]
            texts.append(text)

    cases = []
    for name, case in make_cases().items():
        file = tokenizer_file(case, made)
        tokenizer = Tokenizer.from_str(json.dumps(file))
        encoded = [guarded(lambda t: tokenizer.encode(t).ids, name, text) for text in texts]
        size = tokenizer.get_vocab_size()
        decodes = [[(i * 37 + j * j * 11) % size for j in range(i)] for i in (1, 2, 7, 30)]
        cases.append({
            "name": name, "model": case["model"],
            "file": {k: v for k, v in file.items() if k != "model" and v not in (None, [])},
            "ids": encoded,
            "tokens": [tokenizer.id_to_token(i) for i in encoded[5]],
            "without_special": tokenizer.encode(TEXTS[2], add_special_tokens=False).ids,
            "decoded": [same_as(text, None if ids is None else guarded(tokenizer.decode, name, ids))
                        for text, ids in zip(texts, encoded)],
            "decoded_all": tokenizer.decode(encoded[17] or [], skip_special_tokens=False),
            "decodes": [{"ids": ids, "text": tokenizer.decode(ids)} for ids in decodes],
        })
    options.output.mkdir(parents=True, exist_ok=True)
    dump = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    (options.output / "models.json").write_text("{\n" + ",\n".join(f"{dump(k)}:{dump(v)}" for k, v in made.items()) + "\n}\n")
    lines = ",\n".join(dump(case) for case in cases)
    (options.output / "cases.json").write_text(
        f'{{"package":{dump(tokenizers.__version__)},\n"texts":{dump(texts)},\n"cases":[\n{lines}\n]}}\n')
    print(f"{len(cases)} cases, {sum(f.stat().st_size for f in options.output.glob('*.json'))} bytes")


if __name__ == "__main__":
    main()
