"""check_isa_symbols.py accepts kernels that keep to themselves and finds those that leak. Compiles with $CXX or c++."""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools/check_isa_symbols.py"
TAGS = "struct Baseline {}; struct Avx2 {}; struct Avx512 {};\n"


class CheckIsaSymbols(unittest.TestCase):
    def check(self, source, level="avx2"):
        """Exit status and output of the tool over one kernel object compiled from `source`."""
        with tempfile.TemporaryDirectory(suffix=" with space") as build:
            folder = Path(build, f"ops/CMakeFiles/ops_{level}.dir")
            folder.mkdir(parents=True)
            compiler = os.environ.get("CXX", "c++")
            subprocess.run([compiler, "-O0", "-x", "c++", "-c", "-o", folder / "kernel.o", "-"],
                           input=TAGS + source, text=True, check=True)
            result = subprocess.run([sys.executable, TOOL, build], capture_output=True, text=True)
            return result.returncode, result.stdout

    def test_accepts_tagged_and_local(self):
        self.assertEqual(self.check("namespace { int helper() { return 1; } }\nint run(Avx2) { return helper(); }\n"), (0, ""))

    def test_accepts_always_inline(self):
        source = "[[gnu::always_inline]] inline int helper() { return 1; }\nint run(Baseline) { return helper(); }\n"
        self.assertEqual(self.check(source, "baseline"), (0, ""))

    def test_refuses_inline_function(self):
        status, output = self.check("inline int helper() { return 1; }\nint run(Avx512) { return helper(); }\n", "avx512")
        self.assertEqual(status, 1)
        self.assertIn("weak symbol helper()", output)

    def test_refuses_template_instance(self):
        status, output = self.check("template <class T> T twice(T x) { return x + x; }\nint run(Avx2) { return twice(1); }\n")
        self.assertEqual(status, 1)
        self.assertIn("twice<int>", output)

    def test_refuses_another_levels_tag(self):
        status, output = self.check("int run(Baseline) { return 1; }\n")
        self.assertEqual(status, 1)
        self.assertIn("run(Baseline) does not carry this level's tag", output)

    def test_refuses_untagged_data(self):
        self.assertEqual(self.check("int table[4] = {1, 2, 3, 4};\n")[0], 1)

    def test_refuses_empty_build(self):
        with tempfile.TemporaryDirectory() as build:
            self.assertEqual(subprocess.run([sys.executable, TOOL, build], capture_output=True).returncode, 1)


if __name__ == "__main__":
    unittest.main()
