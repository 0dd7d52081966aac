#!/usr/bin/env python3
"""Compares `elapid tokenize` with the `tokenizers` package, id for id and byte for byte.

Over the books of the shared data, a seeded corpus of many scripts, and every code point: encoding whole texts, encoding
line by line, decoding, and decoding random ids. Needs `pip install tokenizers`.

  test_tokenizer.py --elapid build/elapid --shared ../shared [--rounds 400]
"""

import argparse
import pathlib
import random
import sys

from tokenizers import Tokenizer

from corpus import ROOT, Command, all_code_points, books, fuzz_text

def compare(elapid, file, texts_of_books, rounds):
    """The command, having counted what agrees with the package."""
    command = Command(elapid, file)
    package = Tokenizer.from_file(str(file))
    package.no_truncation()
    rng = random.Random(20240229)

    texts = dict(texts_of_books)
    for number, text in enumerate(all_code_points()):
        texts[f"code points {number}"] = text
    decoded = list(texts)
    fuzz = [fuzz_text(rng) for _ in range(rounds)]
    for number in range(0, len(fuzz), 50):  # newlines and carriage returns survive only in a file
        texts[f"fuzz {number}"] = "".join(fuzz[number : number + 50])
    for length in [100, 1000, 100_000]:
        for unit in [" ", "a", "'", "\n", "a\u0301", "\u0301", "\u4e2d", "7", "\U0001F600", " a", "<|endoftext|>"]:
            texts[f"{length} of {unit!r}"] = unit * (length // len(unit))

    sequences = {}
    for (what, text), actual in zip(texts.items(), command.encode(texts.values()), strict=True):
        expected = package.encode(text)
        command.check(f"{what} ids", actual["ids"], expected.ids)
        # Normalized added tokens are reported as spelled in the file, which these two tokenizers make no difference for.
        command.check(f"{what} tokens", actual["tokens"], expected.tokens)
        if what in decoded:
            sequences[what] = expected.ids

    lines = [text.replace("\n", " ").replace("\r", " ") for text in fuzz]
    for line, ids in zip(lines, command.encode_lines(lines)):
        command.check(f"fuzz {line[:40]!r}", ids, package.encode(line).ids)

    size = package.get_vocab_size()
    for number in range(60):
        sequences[f"random {number}"] = [rng.randrange(size) for _ in range(rng.randint(1, 60))]
    sequences["all"] = list(range(size))
    command.check("decode", command.decode(sequences.values()), "".join(package.decode(ids) + "\n" for ids in sequences.values()))
    return command


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--elapid", default=str(ROOT / "build" / "elapid"))
    arguments.add_argument("--shared", type=pathlib.Path, default=ROOT.parent / "shared")
    arguments.add_argument("--rounds", type=int, default=400)
    options = arguments.parse_args()

    texts = books(options.shared)
    passed = failed = 0
    for file in ["models/storyteller/tokenizer.json", "tokenizers/gpt-neox-20b/tokenizer.json"]:
        command = compare(options.elapid, options.shared / file, texts, options.rounds)
        passed += command.passed
        failed += command.failed
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
