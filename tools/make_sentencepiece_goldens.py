#!/usr/bin/env python3
"""Trains small SentencePiece models and writes what the sentencepiece package makes of some texts and ids.

  make_sentencepiece_goldens.py [--output tests/data/sentencepiece]

Needs `pip install sentencepiece`. The models learn from the books in tests/data/storyteller.
"""

import argparse
import io
import json
import pathlib
import random

import sentencepiece

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMON = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
          "character_coverage": 1.0, "num_threads": 1, "control_symbols": ["[INST]", "[/INST]"]}
MODELS = {
    "bytes": {"vocab_size": 560, "byte_fallback": True, "user_defined_symbols": ["[DOC_1]", "[DOC_10]", "\u2581\u2581", "\u2581\u2581\u2581\u2581"]},
    "unknown": {"vocab_size": 260, "add_dummy_prefix": False, "unk_surface": " <?> "},
}
TEXTS = [
    "", " ", "  ", "a", " a", "a ", "Hello, world", "  two  spaces  ", "\n", "line\nline\r\n\ttab", "\u2581", "x\u2581y \u2581",
    "It was the best of times, it was the worst of times.", "don't \u201cquote\u201d \u2014 dash", "\u00fcn\u00efc\u00f6d\u00e9 \u4e16\u754c \U0001F600\U0001F44D\U0001F3FD e\u0301",
    "[DOC_1]x[DOC_10] y[DOC_100]", "[DOC_1[DOC_1]]", "<s>[INST] hi[/INST]</s>", "<unk><0x41><0x0A>", "1234567890", " " * 17 + "deep", "a" * 100,
    "\x00\x01\x7f", "\ufeff\u200b\u00a0\u2003\u3000", "the " * 80, "\u0301\u0301", "\uffff\U0010ffff",
]


def train(arguments):
    sentences = [line for path in sorted((ROOT / "tests/data/storyteller").glob("*.txt")) for line in path.read_text().split("\n") if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=model, minloglevel=2, **COMMON, **arguments)
    return model.getvalue()


def golden(model):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = processor.get_piece_size()
    rng = random.Random(7)
    letters = "aeiou thsn\n .,'[]DOC_10\u2581\u00e9\u4e16\U0001F600 "
    texts = TEXTS + ["".join(rng.choice(letters) for _ in range(rng.randint(1, 60))) for _ in range(60)]
    first = {kind: next((i for i in range(size) if test(i)), None) for kind, test in (("byte", processor.is_byte), ("control", processor.is_control))}
    sequences = [[i] for i in range(size)]
    for _ in range(300):
        sequences.append([rng.randrange(size) if rng.random() < 0.6 or first["byte"] is None else first["byte"] + rng.choice([0x41, 0xC3, 0xA9, 0xE4, 0xB8, 0x96, 0xF0, 0x9F, 0x98, 0x80, 0xFF])
                          for _ in range(rng.randint(2, 12))])
    return {"size": size, "bos": processor.bos_id(), "eos": processor.eos_id(),
            "encode": [[text, processor.encode(text)] for text in texts],
            "decode": [[ids, processor.decode(ids)] for ids in sequences]}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--output", type=pathlib.Path, default=ROOT / "tests/data/sentencepiece")
    folder = arguments.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    cases = {}
    for name, settings in MODELS.items():
        model = train(settings)
        (folder / f"{name}.model").write_bytes(model)
        cases[name] = golden(model)
    (folder / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
