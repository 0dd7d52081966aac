"""What the comparisons of tokenizers with Python packages share: texts, and running the command."""

import json
import pathlib
import subprocess
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]

SCRIPTS = [
    (0x20, 0x7E), (0xA0, 0x24F), (0x250, 0x2AF), (0x2B0, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x58F),
    (0x590, 0x5FF), (0x600, 0x6FF), (0x700, 0x74F), (0x780, 0x7BF), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF),
    (0xD00, 0xD7F), (0xE00, 0xE7F), (0xF00, 0xFFF), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF),
    (0x1200, 0x137F), (0x13A0, 0x13FF), (0x1680, 0x169F), (0x1780, 0x17FF), (0x1E00, 0x1FFF), (0x2000, 0x206F),
    (0x2070, 0x209F), (0x20A0, 0x20CF), (0x2100, 0x214F), (0x2150, 0x218F), (0x2190, 0x23FF), (0x2460, 0x24FF),
    (0x2600, 0x27BF), (0x2C00, 0x2DFF), (0x3000, 0x30FF), (0x3130, 0x318F), (0x3200, 0x33FF), (0x3400, 0x3500),
    (0x4E00, 0x9FFF), (0xA000, 0xA4CF), (0xA640, 0xA6FF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xF900, 0xFAFF),
    (0xFB00, 0xFDFF), (0xFE00, 0xFFFD), (0x10000, 0x101FF), (0x10D00, 0x10FFF), (0x11000, 0x11FFF), (0x12000, 0x123FF),
    (0x13000, 0x1345F), (0x16D40, 0x16D7F), (0x1D100, 0x1D7FF), (0x1E000, 0x1E95F), (0x1F000, 0x1FAFF),
    (0x20000, 0x2A6DF), (0x2EBF0, 0x323AF), (0xE0000, 0xE01EF), (0xF0000, 0xF00FF), (0x10FF00, 0x10FFFF),
]
PHRASES = [
    "It's", "we'll", "they've", "I'm", "you'd", "'re", "'S", "don\u2019t", "''s'", " 'll", "e\u0301", "a\u0323\u0307",
    "\u1100\u1161\u11a8", "\u0041\u030a", "\u212b", "\ufb01", "\u2460", "\U0001F468\u200d\U0001F469\u200d\U0001F467",
    "\U0001F1E6\U0001F1F7", "\U0001F44D\U0001F3FD", "\u2764\ufe0f", "\u0915\u094d\u0937\u093f", "\u0627\u064e\u0644",
    "\u05e9\u05c1", "\u0e01\u0e33", "\u4f60\u597d\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f", "\uac00\ub098\ub2e4",
    "1234567890", "3.14", "\u0665\u0666", "\u00bd", "<|endoftext|>", "<|padding|>", "<|endoftext|", "|>", "<|", "  ",
    " " * 7, " " * 24, " " * 25, " " * 60, "\n", "\n\n", "\r\n", "\t\t", "\n \n", "\u00a0", "\u2003", "\u3000", "\u0085",
    "\u200b", "\ufeff", "\x00", "\x07", "\x1b", "\x7f", "...", "--", "!?", "(a)", "http://a.b/c?d=e&f=g", "a_b", "A",
]


def character(rng):
    first, last = rng.choice(SCRIPTS)
    while True:
        code = rng.randint(first, last)
        if not 0xD800 <= code <= 0xDFFF:
            return chr(code)


def fuzz_text(rng):
    kind = rng.randrange(6)
    parts = []
    for _ in range(rng.randint(1, 60)):
        if kind == 0:
            parts.append(character(rng))
        elif kind == 1:
            parts.append(rng.choice(PHRASES))
        elif kind == 2:
            parts.append(rng.choice([" ", "\n", "\t", "  ", "\r\n", "a", "'", "\u0301", "7", "."]) * rng.randint(1, 9))
        elif kind == 3:
            parts.append(chr(rng.choice([rng.randint(0, 0x7F), rng.randint(0x80, 0x2FF), rng.randint(0x300, 0x36F)])))
        else:
            parts.append(rng.choice([rng.choice(PHRASES), character(rng), " ", rng.choice(" ,.") + character(rng)]))
    return "".join(parts)


def all_code_points():
    """Every code point, alone between letters, and after a letter with a mark behind it."""
    codes = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    for start in range(0, len(codes), 1 << 15):
        yield "".join(f"a{chr(c)}b {chr(c)} " for c in codes[start : start + (1 << 15)])
    low = [c for c in codes if c < 0x33000]
    for start in range(0, len(low), 1 << 15):
        yield "".join(f"e{chr(c)}\u0301\u0323 " for c in low[start : start + (1 << 15)])


def books(shared):
    """The shared data's valid books, by name."""
    with tarfile.open(shared / "data" / "books.tar.xz") as archive:
        found = {pathlib.PurePath(member.name).stem: archive.extractfile(member).read().decode()
                 for member in archive if member.isfile() and member.name.startswith("valid/")}
    assert found, "the archive has no valid/ books"
    return found


class Command:
    """`elapid tokenize` with one tokenizer. Loading that takes longer than most texts do: many share a run."""

    def __init__(self, elapid, file):
        self.elapid = elapid
        self.file = file
        self.passed = self.failed = 0

    def run(self, *arguments, stdin=""):
        command = [self.elapid, "tokenize", "--tokenizer", str(self.file), *arguments]
        # Bytes: Python's universal newlines would change the text.
        done = subprocess.run(command, input=stdin.encode(), capture_output=True, check=True)
        return done.stdout.decode()

    def encode(self, texts, *arguments):
        """{"ids": …, "tokens": …} of each whole text."""
        with tempfile.TemporaryDirectory() as folder:
            names = []
            for number, text in enumerate(texts):
                path = pathlib.Path(folder) / str(number)
                path.write_bytes(text.encode())
                names += ["--file", str(path)]
            # splitlines() would also break at what tokens contain, such as U+2028.
            return [json.loads(line) for line in self.run(*names, "--json", *arguments).removesuffix("\n").split("\n")]

    def encode_lines(self, lines, *arguments):
        out = self.run(*arguments, stdin="".join(line + "\n" for line in lines)).splitlines()
        self.check("lines", len(out), len(lines))
        return [[int(i) for i in line.split()] for line in out]

    def decode(self, sequences):
        """All texts together, a newline behind each: they have newlines of their own."""
        return self.run("--decode", stdin="".join(" ".join(map(str, ids)) + "\n" for ids in sequences))

    def check(self, what, actual, expected):
        if actual == expected:
            self.passed += 1
            return
        self.failed += 1
        at = next((i for i, (a, b) in enumerate(zip(actual, expected)) if a != b), min(len(actual), len(expected))) if hasattr(actual, "__len__") else 0
        got, wanted = (actual[at:at + 8], expected[at:at + 8]) if hasattr(actual, "__len__") else (actual, expected)
        print(f"FAIL {self.file.parent.name} {what}: differs at {at}: {got!r} instead of {wanted!r}")
