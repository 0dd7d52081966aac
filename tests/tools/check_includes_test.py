"""check_includes.py accepts each way down and refuses each way up, sideways or around."""

import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import check_includes

ALLOWED = {
    "core/isa.cc": ['"elapid/core/isa.h"', "<string>"],
    "cpu/simd.h": ["<immintrin.h>", '"elapid/core/isa.h"'],
    "ops/a/a_cpu.cc": ["<immintrin.h>", '"elapid/cpu/simd.h"', '"elapid/core/isa.h"'],
    "ops/a/a_cuda.cu": ["<cuda_runtime.h>"],
    "core/device_cuda.cc": ["<cuda_runtime_api.h>"],
    "io/json.h": ["<nlohmann/json.hpp>"],
    "infer/engine.cc": ['"elapid/core/isa.h"', "<algorithm>"],
    "cli/main.cc": ['"elapid/infer/engine.cc"', '"elapid/io/json.h"', "<nlohmann/json.hpp>"],
}
REFUSED = {
    "core/up.cc": ['"elapid/io/json.h"'],
    "core/vector.cc": ["<immintrin.h>"],
    "core/gpu.cc": ["<cuda_runtime.h>"],
    "core/relative.cc": ['"isa.h"'],
    "core/absent.cc": ['"elapid/core/absent.h"'],
    "ops/a/a.cc": ['"elapid/cpu/simd.h"'],
    "ops/a/b.cc": ["<x86intrin.h>"],
    "io/sideways.cc": ['"elapid/ops/a/a.cc"'],
    "text/tensor.cc": ['"elapid/core/tensor.h"'],
    "infer/json.cc": ['"elapid/io/json.h"'],
    "model/json.cc": ["<nlohmann/json.hpp>"],
    "cellar/x.cc": ["<string>"],
}


class CheckIncludes(unittest.TestCase):
    def check(self, files):
        with tempfile.TemporaryDirectory() as root:
            for name, includes in {**files, "core/isa.h": [], "core/tensor.h": []}.items():
                path = Path(root, "src/elapid", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(f"#include {include}\n" for include in includes))
            return check_includes.check(Path(root))

    def test_allowed(self):
        found, files = self.check(ALLOWED)
        self.assertEqual(found, [])
        self.assertEqual(files, len(ALLOWED) + 2)

    def test_refused(self):
        found, _ = self.check({**ALLOWED, **REFUSED})
        self.assertEqual({line.split(":")[0] for line in found}, {f"src/elapid/{name}" for name in REFUSED})
        self.assertEqual(len(found), len(REFUSED))

    def test_names_line_and_rule(self):
        found, _ = self.check({**ALLOWED, "io/a.cc": ["<string>", '"elapid/text/b.h"']})
        self.assertEqual(found, ["src/elapid/io/a.cc:2: elapid/text/b.h: io may not include text"])


if __name__ == "__main__":
    unittest.main()
