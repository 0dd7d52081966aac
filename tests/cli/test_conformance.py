"""The conformance cases in tests/data through `elapid forward` and `elapid generate`.

The tolerance of a case is twenty times its own float32-to-float64 difference of the logits, at least 1e-5, times the
largest reference value of the array. A padded row must be the row alone, bit for bit.
"""

import json
import sys
import tempfile
import unittest
from pathlib import Path

from support import CONFORMANCE, Array, i64, read_safetensors, run, write_safetensors


class Case:
    def __init__(self, folder):
        self.folder = folder
        self.want = read_safetensors(folder / "expected.safetensors")
        self.meta = json.loads((folder / "meta.json").read_text())
        self.tolerance = max(1e-5, 20 * self.meta["fp32_vs_fp64"]["logits"])
        self.logits = self.want.get("logits_f64", self.want["logits"])


class Conformance(unittest.TestCase):
    def forward(self, case, inputs, *flags):
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
            write_safetensors(source, inputs)
            done = run("forward", "--model", case.folder, "--input", source, "--output", target, "--dtype", "f32", *flags)
            said = [line for line in done.stderr.splitlines() if not line.startswith(b"note: ")]
            self.assertEqual((done.returncode, done.stdout, said), (0, b"", []))
            return read_safetensors(target)

    def compare(self, case, what, got, want):
        self.assertEqual(got.shape, want.shape, what)
        worst = max(abs(a - b) for a, b in zip(got.values, want.values))
        scale = max(1.0, max(abs(x) for x in want.values))
        # Also false for a NaN.
        self.assertTrue(worst <= case.tolerance * scale, f"{what}: off by {worst}, allowed {case.tolerance * scale}")

    def hidden(self, case, out, name):
        """Ours for the reference's hidden_states.{j} or layer_output.{j}; None where it is none of ours."""
        root, j = name.split(".")
        if root == "layer_output":
            return out[f"hidden_states.{int(j) + 1}"]
        kind = case.meta["hidden_states_are"][int(j)]
        if kind == "final norm output":
            return out["last_hidden_state"]
        if kind.startswith("layers.") and kind.endswith((".output", ".input")):
            return out[f"hidden_states.{int(kind.split('.')[1]) + kind.endswith('.output')}"]
        if kind.startswith("residual stream after layer "):
            return out[f"hidden_states.{int(kind.split()[4]) + 1}"]
        return None

    def check_arrays(self, case):
        want = case.want
        inputs = {k: want[k] for k in ("input_ids", "labels", "step_ids") if k in want}
        out = self.forward(case, inputs, "--hidden-states", "--states", "--router-logits", "--attentions")
        self.compare(case, "logits", out["logits"], case.logits)
        steps = want.get("step_logits_full", want.get("step_logits"))
        if steps is not None:
            self.compare(case, "step_logits", out["step_logits"], steps)
        compared = set()
        for name, array in want.items():
            root, last = name.split(".")[0], name.split(".")[-1]
            if root in ("hidden_states", "layer_output"):
                got = self.hidden(case, out, name)
                if got is not None:
                    self.compare(case, name, got, array)
                    compared.add("hidden states")
            elif root == "state" and last == "conv":
                # The reference keeps the last K inputs, the engine K - 1.
                b, channels, k = array.shape
                kept = [x for i in range(b * channels) for x in array.values[i * k + 1:(i + 1) * k]]
                self.compare(case, name, out[name], Array("F32", [b, channels, k - 1], kept))
                compared.add("conv")
            elif root in ("state", "router_logits", "attentions", "loss", "aux_loss", "last_hidden_state"):
                self.compare(case, name, out[name], array)
                compared.add(last if root == "state" else root)
        families = {name.split(".")[0] for name in want} & {"router_logits", "attentions", "aux_loss"}
        self.assertGreaterEqual(compared, {"hidden states", "loss", "last_hidden_state"} | families)
        self.assertTrue(compared & {"ssm", "key"}, compared)
        for chunk in (1, 5):
            again = self.forward(case, {"input_ids": want["input_ids"]}, "--chunk", chunk)
            self.compare(case, f"logits in chunks of {chunk}", again["logits"], case.logits)

    def check_padding(self, case):
        if "padded.input_ids" not in case.want:
            self.assertIn("state_spaces", str(case.folder))
            return
        ids, mask = case.want["padded.input_ids"], case.want["padded.attention_mask"]
        batch, length = ids.shape
        rows = [[x for x, m in zip(ids.row(r), mask.row(r)) if m] for r in range(batch)]
        left = self.forward(case, {"input_ids": ids, "attention_mask": mask})["logits"]
        right = self.forward(case, {
            "input_ids": i64([row + [0] * (length - len(row)) for row in rows]),
            "attention_mask": i64([[1] * len(row) + [0] * (length - len(row)) for row in rows])})["logits"]
        for r, row in enumerate(rows):
            alone = self.forward(case, {"input_ids": i64([row])})["logits"]
            self.compare(case, f"row {r} alone", alone, case.want[f"alone.{r}.logits"])
            padding = [0.0] * ((length - len(row)) * alone.shape[2])
            self.assertEqual(left.row(r), padding + alone.row(0), f"left-padded row {r}")
            self.assertEqual(right.row(r), alone.row(0) + padding, f"right-padded row {r}")

    def check_greedy(self, case):
        if "greedy.output_ids" not in case.want:
            self.assertIn("greedy", case.meta["failed_stages"])
            return
        prompt = case.want["greedy.input_ids"].row(0)
        want = case.want["greedy.output_ids"].row(0)[len(prompt):]
        done = run("generate", "--model", case.folder, "--prompt-ids", " ".join(map(str, prompt)), "--greedy", "--dtype", "f32",
                   "--ignore-eos", "--max-new-tokens", len(want), "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        got = json.loads(done.stdout)["ids"]
        self.assertEqual(len(got), len(want))
        if case.meta.get("greedy", {}).get("equals_full_forward_argmax") is False:
            return  # the reference's own steps are wrong there
        for i, (g, w) in enumerate(zip(got, want)):
            if "greedy.margins" in case.want and case.want["greedy.margins"].values[i] <= 2 * case.tolerance:
                break
            self.assertEqual(g, w, f"token {i}")

    def test_cases(self):
        folders = sorted(meta.parent for meta in CONFORMANCE.glob("**/meta.json") if meta.parent.name != "ops")
        self.assertGreaterEqual(len(folders), 36)
        for folder in folders:
            case = Case(folder)
            for check in (self.check_arrays, self.check_padding, self.check_greedy):
                with self.subTest(case=folder.name, check=check.__name__):
                    check(case)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[1:]])
