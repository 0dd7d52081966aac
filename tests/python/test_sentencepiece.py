#!/usr/bin/env python3
"""Compares `elapid tokenize` with the sentencepiece package, id for id and byte for byte.

Over the books of the shared data, a seeded corpus of many scripts and every code point: encoding whole texts, encoding
line by line, decoding, and decoding random ids. Needs `pip install sentencepiece`.

  test_sentencepiece.py --elapid build/elapid --shared ../shared [--rounds 2000]
"""

import argparse
import pathlib
import random
import sys

import sentencepiece

from corpus import ROOT, Command, all_code_points, books, fuzz_text


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--elapid", default=str(ROOT / "build" / "elapid"))
    arguments.add_argument("--shared", type=pathlib.Path, default=ROOT.parent / "shared")
    arguments.add_argument("--rounds", type=int, default=2000)
    options = arguments.parse_args()

    file = options.shared / "tokenizers/mistral-v3/tokenizer.model"
    package = sentencepiece.SentencePieceProcessor(model_file=str(file))
    command = Command(options.elapid, file)
    rng = random.Random(20240301)

    texts = books(options.shared)
    decoded = list(texts)
    for number, text in enumerate(all_code_points()):
        texts[f"code points {number}"] = text
    fuzz = [fuzz_text(rng) for _ in range(options.rounds)]
    for number in range(0, len(fuzz), 50):  # newlines and carriage returns survive only in a file
        texts[f"fuzz {number}"] = "".join(fuzz[number : number + 50])
    for text in ["<s>[INST] a[/INST]</s>", "[REFERENCE_DOC_3]x[REFERENCE_DOC_19]", "a" * 100_000, " " * 100_000, "\u4e2d" * 30_000]:
        texts[repr(text[:40])] = text

    sequences = []
    for (what, text), actual in zip(texts.items(), command.encode(texts.values(), "--no-special"), strict=True):
        expected = package.encode(text)
        command.check(f"{what} ids", actual["ids"], expected)
        if what in decoded:
            sequences.append(expected)

    lines = [text.replace("\n", " ").replace("\r", " ") for text in fuzz]
    for line, ids in zip(lines, command.encode_lines(lines, "--no-special")):
        command.check(f"fuzz {line[:40]!r}", ids, package.encode(line))

    size = package.get_piece_size()
    sequences += [[i] for i in range(size)]
    for _ in range(4 * options.rounds):  # of all pieces, and of those around the bytes'
        sequences.append([rng.randrange(size) if rng.random() < 0.4 else rng.randrange(768, 1100) for _ in range(rng.randint(1, 40))])
    command.check("decode", command.decode(sequences), "".join(package.decode(ids) + "\n" for ids in sequences))
    print(f"{command.passed} passed, {command.failed} failed")
    return 1 if command.failed else 0


if __name__ == "__main__":
    sys.exit(main())
