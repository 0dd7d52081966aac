"""The command line through the real binary: what it prints, writes, refuses and returns.

    test_cli.py [GROUP]...      with ELAPID (the binary) and ELAPID_SOURCE_DIR in the environment
"""

import array
import json
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

from support import (CONFORMANCE, DATA, ELAPID, STORYTELLER, TINY, i64, Array, read_header, read_safetensors, run,
                     write_raw, write_safetensors)

HOUND = DATA / "storyteller" / "arthur-conan-doyle_the-hound-of-the-baskervilles.txt"
REFERENCE = json.loads((DATA / "storyteller" / "reference.json").read_text())
WIZARD = REFERENCE["greedy"][0]
TINY_IDS = "11 25 60 31 47 5 90"


class CliTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="elapid_cli_")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def out(self, *arguments, **kwargs):
        """Standard output of a run that must succeed."""
        done = run(*arguments, **kwargs)
        self.assertEqual(done.returncode, 0, f"{arguments}: {done.stderr.decode(errors='replace')}")
        return done.stdout

    def json(self, *arguments, **kwargs):
        json_flag = () if "--json" in arguments else ("--json",)
        output = self.out(*arguments, *json_flag, **kwargs)
        self.assertEqual(output.count(b"\n"), 1, "one object, one line")
        return json.loads(output)

    def refused(self, *arguments, code=1, says=(), **kwargs):
        """A run that must fail with one line that contains all of `says`."""
        done = run(*arguments, **kwargs)
        text = done.stderr.decode(errors="replace")
        self.assertEqual(done.returncode, code, f"{arguments}: {text}")
        self.assertEqual(done.stdout, b"", arguments)
        self.assertRegex(text, r"\Aelapid: [^\n]+\n\Z", arguments)
        for part in [says] if isinstance(says, str) else says:
            self.assertIn(part, text, arguments)
        return text

    def model_copy(self, source=TINY):
        target = Path(tempfile.mkdtemp(dir=self.folder)) / "model"
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("expected*", "meta*"))
        return target

    def generate(self, *arguments, model=STORYTELLER, **kwargs):
        return self.json("generate", "--model", model, *arguments, **kwargs)


class BadInput(CliTest):
    def corruptions(self, path):
        """Every way to spoil a file, as (name, what the error says, how to spoil)."""

        def replaced(make):
            def spoil():
                data = path.read_bytes()
                path.unlink()
                make(data)
            return spoil

        def symlink_loop(_):
            other = path.with_name(path.name + ".other")
            path.symlink_to(other)
            other.symlink_to(path)

        return [
            ("missing", path.name, replaced(lambda data: None)),
            ("0 bytes", path.name, replaced(lambda data: path.write_bytes(b""))),
            ("directory", path.name, replaced(lambda data: path.mkdir())),
            ("symlink loop", path.name, replaced(symlink_loop)),
            ("truncated", path.name, replaced(lambda data: path.write_bytes(data[:len(data) // 2]))),
            ("noise", path.name, replaced(lambda data: path.write_bytes(bytes(range(256)) * 20))),
        ]

    def safetensors_corruptions(self, path):
        header, data = read_header(path)
        names = [n for n in header if n != "__metadata__"]
        first, second = names[0], names[1] if len(names) > 1 else names[0]

        def changed(name, **fields):
            return lambda: write_raw(path, {**header, name: {**header[name], **fields}}, data)

        begin, end = header[first]["data_offsets"]
        spoils = [
            ("truncated header", lambda: path.write_bytes(path.read_bytes()[:20])),
            ("header length 2^60", lambda: write_raw(path, header, data, length=2**60)),
            ("header length 2^64 - 1", lambda: write_raw(path, header, data, length=2**64 - 1)),
            ("offset past the end", changed(first, data_offsets=[begin + 2**40, end + 2**40])),
            ("negative offset", changed(first, data_offsets=[-8, end])),
            ("wrong dtype", changed(first, dtype="U8" if header[first]["dtype"] != "U8" else "F32")),
            ("unknown dtype", changed(first, dtype="Q7")),
            ("huge shape", changed(first, shape=[2**62, 2**62])),
            ("negative shape", changed(first, shape=[-1, 4])),
            ("not JSON", lambda: path.write_bytes((16).to_bytes(8, "little") + b"this is no JSON!")),
            ("not an object", lambda: path.write_bytes((8).to_bytes(8, "little") + b"[1, 2]  ")),
            ("trailing bytes", lambda: write_raw(path, header, data + b"12345678")),
        ]
        if second != first:
            spoils.append(("overlap", changed(second, data_offsets=header[first]["data_offsets"],
                                              shape=header[first]["shape"], dtype=header[first]["dtype"])))
        return [(name, path.name, spoil) for name, spoil in spoils]

    def check(self, make_target, corruptions, *arguments, output=None):
        """Each corruption of a fresh copy makes `arguments(path)` fail and leaves no output file."""
        count = len(corruptions(make_target()))
        for i in range(count):
            path = make_target()
            name, says, spoil = corruptions(path)[i]
            with self.subTest(corruption=name, file=path.name):
                spoil()
                self.refused(*[a(path) if callable(a) else a for a in arguments], says=says)
                if output is not None:
                    self.assertFalse(output.exists(), "no output file")
                    self.assertEqual([p.name for p in output.parent.glob(output.name + "*")], [])

    def test_model_weights(self):
        def fresh():
            return self.model_copy() / "model.safetensors"

        generate = ("generate", "--model", lambda p: p.parent, "--prompt-ids", "3 4", "--max-new-tokens", "2")
        self.check(fresh, self.corruptions, *generate)
        self.check(fresh, self.safetensors_corruptions, *generate)

    def test_weights_that_do_not_fit_the_config(self):
        path = self.model_copy() / "model.safetensors"
        arrays = read_safetensors(path)
        for name, change in [("missing", lambda a: a.pop("backbone.layers.0.mixer.D")),
                             ("unknown", lambda a: a.update(extra=Array("F32", [1], [1.0]))),
                             ("shape", lambda a: a.update({"backbone.norm_f.weight": Array("F32", [3], [1.0] * 3)})),
                             ("dtype", lambda a: a.update({"backbone.norm_f.weight": Array("I64", [32], [1] * 32)}))]:
            with self.subTest(name):
                spoilt = dict(arrays)
                change(spoilt)
                write_safetensors(path, spoilt)
                self.refused("inspect", "--model", path.parent,
                             says={"missing": "backbone.layers.0.mixer.D", "unknown": "extra"}.get(name, "backbone.norm_f"))

    def test_convert_loses_no_tensor(self):
        model = self.model_copy()
        arrays = read_safetensors(model / "model.safetensors")
        arrays["backbone.layers.0.mixer.extra"] = Array("F32", [2], [1.0, 2.0])
        write_safetensors(model / "model.safetensors", arrays)
        target = self.folder / "converted"
        self.refused("convert", "--model", model, "--output", target,
                     says=["convert: every tensor must be one that mamba2 has", "backbone.layers.0.mixer.extra"])
        self.assertFalse(target.exists())

    def test_config(self):
        def fresh():
            return self.model_copy() / "config.json"

        inspect = ("inspect", "--model", lambda p: p.parent)
        self.check(fresh, self.corruptions, *inspect)
        path = fresh()
        config = json.loads(path.read_text())
        for key, value in [("layer_norm_epsilon", math.nan), ("hidden_size", math.nan), ("hidden_size", -4),
                           ("hidden_size", 2**62), ("num_hidden_layers", "two"), ("model_type", "unheard_of"),
                           ("state_size", None), ("vocab_size", 0), ("time_step_limit", [math.nan, 1])]:
            with self.subTest(key=key, value=value):
                path.write_text(json.dumps({**config, key: value}))
                self.refused("inspect", "--model", path.parent)
        for text in ("not JSON", "[1]", '{"model_type": "mamba2"', "{}", "\ufeff{}", '{"a": NaN}'):
            with self.subTest(text=text):
                path.write_text(text)
                self.refused("inspect", "--model", path.parent)
        path.write_text(json.dumps({**config, "layer_norm_epsilon": math.nan}))
        self.refused("bench", "--config", path, says="layer_norm_epsilon")

    def test_generation_config(self):
        def fresh():
            return self.model_copy() / "generation_config.json"

        generate = ("generate", "--model", lambda p: p.parent, "--prompt-ids", "3 4")
        # Without the file, generation works: it is optional.
        self.check(fresh, lambda path: self.corruptions(path)[1:], *generate)
        for key, value in [("temperature", -1), ("temperature", math.nan), ("top_p", 7), ("top_k", -2), ("top_k", 1.5),
                           ("min_p", 2), ("repetition_penalty", 0), ("eos_token_id", "x"), ("eos_token_id", [1, -1]),
                           ("do_sample", "yes"), ("max_new_tokens", -1)]:
            with self.subTest(key=key, value=value):
                path = fresh()
                path.write_text(json.dumps({key: value}))
                self.refused("generate", "--model", path.parent, "--prompt-ids", "3", says=("generation_config.json", key))

    def test_tokenizer(self):
        def fresh():
            target = Path(tempfile.mkdtemp(dir=self.folder)) / "tokenizer.json"
            shutil.copy(STORYTELLER / "tokenizer.json", target)
            return target

        self.check(fresh, self.corruptions, "tokenize", "--tokenizer", lambda p: p)

    def test_forward_input(self):
        output = self.folder / "out.safetensors"

        def fresh():
            path = Path(tempfile.mkdtemp(dir=self.folder)) / "in.safetensors"
            write_safetensors(path, {"input_ids": i64([[3, 4, 5]]), "labels": i64([[3, 4, 5]])})
            return path

        forward = ("forward", "--model", TINY, "--input", lambda p: p, "--output", output)
        self.check(fresh, self.corruptions, *forward, output=output)
        self.check(fresh, lambda p: [(name, "", spoil) for name, _, spoil in self.safetensors_corruptions(p)], *forward,
                   output=output)
        ids = i64([[3, 4, 5], [6, 7, 8]])
        for says, arrays in [
                ("input_ids", {"labels": ids}),
                ("input_ids must be i64, got f32", {"input_ids": Array("F32", [1, 2], [3.0, 4.0])}),
                ("input_ids must have 2 dimensions, got 1", {"input_ids": Array("I64", [2], [3, 4])}),
                ("input_ids must not be empty", {"input_ids": Array("I64", [2, 0], [])}),
                ("input_ids must hold token ids, got -3", {"input_ids": i64([[3, -3]])}),
                ("must be 0 to 95, got 96", {"input_ids": i64([[3, 96]])}),
                ("labels must be [2, 3]", {"input_ids": ids, "labels": i64([[3, 4, 5]])}),
                ("labels", {"input_ids": ids, "labels": i64([[3, 4, 96], [3, 4, 5]])}),
                ("labels must hold one that counts", {"input_ids": ids, "labels": i64([[-100] * 3] * 2)}),
                ("attention_mask must hold 0 and 1, got 2", {"input_ids": ids, "attention_mask": i64([[0, 1, 2]] * 2)}),
                ("attention_mask must be i64", {"input_ids": ids, "attention_mask": Array("F32", [2, 3], [1.0] * 6)}),
                ("step_ids must have 2 rows", {"input_ids": ids, "step_ids": i64([[3]])}),
                ("inputs_embeds, got neither", {"attention_mask": ids}),
                ("inputs_embeds, got both", {"input_ids": ids, "inputs_embeds": Array("F32", [1, 1, 32], [0.0] * 32)}),
                ("inputs_embeds must have 3 dimensions, got 2", {"inputs_embeds": Array("F32", [2, 1], [3.0, 4.0])}),
                ("inputs_embeds must be f32, bf16 or f16, got i64", {"inputs_embeds": Array("I64", [1, 1, 1], [3])}),
                ("inputs_embeds must not be empty, got [1, 0]", {"inputs_embeds": Array("F32", [1, 0, 32], [])}),
                ("d_model = 32 columns, got 31", {"inputs_embeds": Array("F32", [1, 1, 31], [0.0] * 31)}),
                ("state_lengths must come with state", {"input_ids": ids, "state_lengths": Array("I64", [2], [0, 0])}),
                ("got no state.0.ssm", {"input_ids": ids, "state.0.conv": Array("F32", [2, 96, 3], [0.0] * 576)}),
                ("state.0.conv must be [2, 96, 3], got [2, 3, 96]",
                 {"input_ids": ids, "state.0.conv": Array("F32", [2, 3, 96], [0.0] * 576)}),
                ("state.0.conv must be f32", {"input_ids": ids, "state.0.conv": Array("I64", [2], [0, 0])}),
                ("got inputs", {"input_ids": ids, "inputs": ids})]:
            with self.subTest(says):
                path = self.folder / "in.safetensors"
                write_safetensors(path, arrays)
                self.refused("forward", "--model", TINY, "--input", path, "--output", output, says=says)
                self.assertFalse(output.exists())
        write_safetensors(path, {"input_ids": ids})
        self.refused("forward", "--model", TINY, "--input", path, "--output", self.folder / "no" / "out", says="no/out")
        self.refused("forward", "--model", TINY, "--output", output, code=2, says="--input")
        self.refused("forward", "--model", TINY, "--input", path, code=2, says="--output")

    def test_state(self):
        saved = self.folder / "saved"
        self.out("generate", "--model", TINY, "--prompt-ids", TINY_IDS, "--max-new-tokens", "3", "--save-state", saved)

        def fresh():
            target = Path(tempfile.mkdtemp(dir=self.folder)) / "state"
            shutil.copy(saved, target)
            return target

        load = ("generate", "--model", TINY, "--prompt-ids", "3", "--load-state", lambda p: p)
        self.check(fresh, self.corruptions, *load)
        self.check(fresh, self.safetensors_corruptions, *load)
        self.refused("generate", "--model", TINY, "--prompt-ids", "3", "--load-state", TINY / "model.safetensors",
                     says="state")
        self.refused("generate", "--model", CONFORMANCE / "mamba2_chunk_a", "--prompt-ids", "3", "--load-state", saved,
                     says="must belong to this model")

    def test_prompts(self):
        empty, latin = self.folder / "empty", self.folder / "latin"
        empty.write_bytes(b"")
        latin.write_bytes("déjà vu".encode("latin-1"))
        for model in ((), ("--model", STORYTELLER)):  # also before anything is said about a default model
            self.refused("generate", *model, "", code=2, says="got 0 bytes")
            self.refused("generate", *model, "--prompt-file", empty, code=2, says="got 0 bytes")
            self.refused("generate", *model, stdin=b"", code=2, says="got 0 bytes")
            self.refused("generate", *model, "--prompt-ids", "", code=2, says="got none")
            self.refused("generate", *model, "--prompt-file", latin, says=("valid UTF-8", "offset 1"))
            self.refused("generate", *model, stdin=b"abc\xff", says="offset 3")
            self.refused("generate", *model, stdin="né".encode()[:2], says="offset 1")
            self.refused("generate", *model, b"abc\xed\xa0\x80".decode(errors="surrogateescape"), says="offset 3")
            self.refused("generate", *model, "--prompt-file", self.folder / "none", says="none")
            self.refused("generate", *model, "--prompt-file", self.folder)
            self.refused("generate", *model, "--prompt-ids", "1 2 x", code=2, says="got x")
            self.refused("generate", *model, "--prompt-ids", "1 -2", code=2, says="got -2")
            self.refused("generate", *model, "--prompt-ids", "99999999999", code=2, says="got 99999999999")
            self.refused("generate", *model, "one", "--prompt-ids", "1", code=2, says="got 2")
        self.refused("generate", "--model", TINY, "--prompt-ids", "3 96", says="got 96")
        self.refused("generate", "--model", TINY, "Hello", says="tokenizer.json")
        self.refused("generate", "--model", self.folder / "none", "--prompt-ids", "3", says="none")
        self.refused("generate", "--model", empty, "--prompt-ids", "3", says="empty")

    def test_folders(self):
        loop = self.folder / "loop"
        loop.symlink_to(loop)
        for path in (loop, self.folder / "typo", STORYTELLER / "config.json", "a" * 5000):
            for command in (("generate", "hi"), ("score",), ("inspect",), ("tokenize",), ("convert", "--output", self.folder / "o"),
                            ("quantize", "--dtype", "int8", "--output", self.folder / "o")):
                with self.subTest(command=command[0], path=str(path)[:60]):
                    self.refused(*command, "--model", path, stdin=b"some text", says="--model: must be a folder", code=1)
        self.refused("generate", "hi", "--save-state", loop / "state", says="--save-state")

    def test_a_penalty_that_no_logit_survives(self):
        self.refused("generate", "the old man said that he", "--model", STORYTELLER, "--repetition-penalty", "5e-324",
                     says=("repetition penalty", "4.94066e-324"))

    def test_a_model_of_nan_scores_nothing(self):
        model = self.model_copy(STORYTELLER)
        path = next(p for p in model.glob("*.safetensors") if "backbone.norm_f.weight" in read_header(p)[0])
        header, data = read_header(path)
        begin, end = header["backbone.norm_f.weight"]["data_offsets"]
        size = {"F32": 4, "BF16": 2}[header["backbone.norm_f.weight"]["dtype"]]
        write_raw(path, header, data[:begin] + b"\xff" * size + data[begin + size:])
        self.refused("score", "--model", model, stdin=b"Once upon a time", says=("finite", "nan"))

    def test_flags(self):
        for flag, values in {
                "--temperature": ["-1", "nan", "inf", "x", "", "1e999", "0.5x"],
                "--top-p": ["7", "-0.1", "nan"],
                "--min-p": ["1.5", "-1"],
                "--top-k": ["-1", "2.5", "99999999999999999999"],
                "--repetition-penalty": ["0", "-2", "nan"],
                "--max-new-tokens": ["-1", "many"],
                "--num-return": ["0", "-3", "1000000"],
                "--seed": ["-1", "1.5", "18446744073709551616"],
                "--chunk": ["0", "-5"],
                "--threads": ["0", "-1", "100000"],
                "--device": ["tpu", "", "cuda", "cuda:0"],
                "--dtype": ["f64", "int3", "F32"], "--state-dtype": ["f16", "auto", "BF16"],
                "--stop": [""]}.items():
            for value in values:
                with self.subTest(flag=flag, value=value):
                    self.refused("generate", "Hello", flag, value, code=2, says=(flag, f"got {value}"[:10]))
                    self.refused("generate", "Hello", f"{flag}={value}", code=2, says=flag)
        self.refused("generate", "Hello", "--temperature", code=2, says="--temperature")
        self.refused("generate", "Hello", "--save-state", "x", "--num-return", "2", code=2, says="--save-state")
        self.refused("generate", "Hello", "--save-state", self.folder / "no" / "x", says="--save-state")
        for command in ("generate", "forward", "tokenize", "score", "inspect", "quantize", "bench"):
            with self.subTest(command):
                self.refused(command, "--no-such-flag", code=2, says=(command, "got --no-such-flag"))
                self.refused(command, "-x", code=2)
                self.refused(command, "one", "two", code=2, says=("got two" if command == "generate" else "got one"))
                self.refused(command, "--", "-one", "-two", code=2, says="got -")
        self.refused(code=2, says="got nothing")
        self.refused("unheard-of", code=2, says="got unheard-of")
        self.refused("line\nbreak", code=2, says="line\\nbreak")
        self.refused("--generate", code=2, says="got --generate")
        self.refused("bench", "--config", "x", "--model", "y", code=2, says="--config")
        for flag in ("--prompt", "--gen", "--batch", "--repeat"):
            self.refused("bench", flag, "0", code=2, says=(flag, "got 0"))

    def test_score_texts(self):
        for stdin, says in ((b"", "got 0 bytes"), (b"abc\xff", "UTF-8")):
            self.refused("score", "--model", STORYTELLER, stdin=stdin, says=says)
        self.refused("score", "--model", STORYTELLER, "--no-special", stdin=b"a", says="at least two tokens, got 1")
        self.refused("score", "--model", STORYTELLER, "--file", self.folder / "none", says="none")
        self.refused("score", "--model", STORYTELLER, "--file", self.folder)

    def test_tokenize_texts(self):
        tokenizer = ("tokenize", "--tokenizer", STORYTELLER)
        self.refused(*tokenizer, stdin=b"abc\xff", says="UTF-8")
        self.refused(*tokenizer, "--decode", stdin=b"1 x", says="got x")
        self.refused(*tokenizer, "--decode", stdin=b"4096", says="4096")

    def test_isa(self):
        self.refused("inspect", "--devices", env={"ELAPID_FORCE_ISA": "bogus"}, code=2, says="bogus")
        self.refused("generate", "Hello", env={"ELAPID_FORCE_ISA": "AVX2 "}, code=2, says="ELAPID_FORCE_ISA")


class Output(CliTest):
    def test_help_and_version(self):
        self.assertRegex(self.out("--version").decode(), r"\Aelapid \d+\.\d+\.\d+\n\Z")
        top = self.out("--help").decode()
        for command in ("generate", "forward", "tokenize", "score", "inspect", "bench"):
            self.assertIn(command, top)
            self.assertIn("--model" if command != "forward" else "--input", self.out(command, "--help").decode())
        text = self.out("generate", "--help").decode()
        for flag in ("--prompt-file --prompt-ids --max-new-tokens --temperature --top-k --top-p --min-p "
                     "--repetition-penalty --seed --stop --greedy --num-return --ignore-eos --save-state --load-state "
                     "--chunk --state-dtype --no-special --json --tokenizer --model --device --dtype --threads").split():
            self.assertIn(flag, text)

    def test_default_model_is_named_on_standard_error(self):
        done = run("generate", "Hello", "--max-new-tokens", "1", "--json")
        self.assertEqual(done.returncode, 0)
        self.assertIn(b"models/storyteller", done.stderr)
        json.loads(done.stdout)

    def test_installed_model_is_found_beside_the_command(self):
        prefix = self.folder / "prefix"
        (prefix / "bin").mkdir(parents=True)
        (prefix / "share/elapid/models").mkdir(parents=True)
        shutil.copy(ELAPID, prefix / "bin/elapid")
        shutil.copytree(STORYTELLER, prefix / "share/elapid/models/storyteller")
        done = subprocess.run([prefix / "bin/elapid", "tokenize"], input=b"Hello", capture_output=True)
        self.assertEqual(done.returncode, 0)
        self.assertIn(str(prefix / "share/elapid/models/storyteller").encode(), done.stderr)

    def test_closed_pipe_ends_quietly_and_without_success(self):
        process = subprocess.Popen([ELAPID, "generate", "--model", STORYTELLER, "Once upon a time", "--max-new-tokens",
                                    "20000", "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertTrue(process.stdout.read(1))
        process.stdout.close()
        self.assertEqual(process.stderr.read(), b"")
        process.stderr.close()
        self.assertGreater(process.wait(timeout=60), 0, "an exit code, not a signal")

    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full")
    def test_full_disk_is_an_error(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([ELAPID, "--version"], stdout=full, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, rb"\Aelapid: standard output: [^\n]+\n\Z")


class Generate(CliTest):
    def test_greedy_text_is_the_reference(self):
        flags = (WIZARD["prompt"], "--greedy", "--max-new-tokens", "60", "--dtype", "f32")
        got = self.generate(*flags)
        ids = WIZARD["output_ids"][len(WIZARD["prompt_ids"]):][:60]
        self.assertEqual(got["ids"], ids)  # margins are wide
        self.assertTrue(WIZARD["text"].startswith(WIZARD["prompt"] + got["text"]))
        self.assertEqual(set(got), {"prompt_tokens", "new_tokens", "text", "ids", "finish_reason", "prefill_tok_s",
                                    "decode_tok_s"})
        self.assertEqual((got["prompt_tokens"], got["new_tokens"], got["finish_reason"]),
                         (len(WIZARD["prompt_ids"]), 60, "length"))
        self.assertGreater(got["prefill_tok_s"], 0)
        self.assertGreater(got["decode_tok_s"], 0)
        text = self.out("generate", "--model", STORYTELLER, *flags)
        self.assertEqual(text.decode(), got["text"] + "\n")

    def test_prompts_from_anywhere_are_the_same(self):
        prompt = "“My dear Watson,” said"
        path = self.folder / "prompt"
        path.write_text(prompt)
        flags = ("--max-new-tokens", "12", "--seed", "5")
        want = self.generate(prompt, *flags)
        self.assertEqual(self.generate("--prompt-file", path, *flags)["ids"], want["ids"])
        self.assertEqual(self.generate(*flags, stdin=prompt.encode())["ids"], want["ids"])
        ids = self.out("tokenize", "--model", STORYTELLER, "--file", path).decode()
        self.assertEqual(self.generate("--prompt-ids", ids, *flags)["ids"], want["ids"])
        self.assertEqual(self.generate(*flags, "--json", "--", "-" + prompt)["new_tokens"], 12)
        self.assertEqual(self.generate(*flags, "score")["new_tokens"], 12, "a command's name is a prompt too")

    def test_seed_decides_and_threads_do_not(self):
        flags = ("Once upon a time", "--max-new-tokens", "30")
        want = self.generate(*flags, "--seed", "3")["ids"]
        self.assertEqual(self.generate(*flags, "--seed", "3", "--threads", "1")["ids"], want)
        self.assertEqual(self.generate(*flags, "--seed", "3", "--threads", "3")["ids"], want)
        self.assertNotEqual(self.generate(*flags, "--seed", "4")["ids"], want)
        self.assertEqual(self.generate(*flags)["ids"], self.generate(*flags, "--seed", "0")["ids"])

    def test_num_return(self):
        flags = ("Once upon a time", "--max-new-tokens", "10", "--seed", "3")
        together = self.generate(*flags, "--num-return", "3")
        self.assertEqual(list(together), ["sequences"])
        self.assertEqual(len(together["sequences"]), 3)
        self.assertEqual(together["sequences"][0]["ids"], self.generate(*flags)["ids"])
        self.assertNotEqual(together["sequences"][1]["ids"], together["sequences"][2]["ids"])
        text = self.out("generate", "--model", STORYTELLER, *flags, "--num-return", "3").decode()
        self.assertEqual(text, "\n---\n".join(s["text"] for s in together["sequences"]) + "\n")

    def log_likelihood(self, ids, new):
        """Of the last `new` of the ids, from the model's logits."""
        source, target = self.folder / "in.safetensors", self.folder / "out.safetensors"
        write_safetensors(source, {"input_ids": i64([ids])})
        self.out("forward", "--model", TINY, "--input", source, "--output", target)
        logits = read_safetensors(target)["logits"]
        total = 0
        for t in range(len(ids) - new, len(ids)):
            row = logits.row(0, t - 1)
            total += row[ids[t]] - math.log(sum(map(math.exp, row)))
        return total

    def test_best_of_is_what_the_model_finds_likeliest(self):
        flags = ("--prompt-ids", TINY_IDS, "--max-new-tokens", 6, "--temperature", 1.5, "--ignore-eos")
        drawn = self.generate(*flags, "--num-return", 5, model=TINY)["sequences"]
        rated = self.generate(*flags, "--best-of", 5, "--num-return", 5, model=TINY)["sequences"]
        self.assertCountEqual([s["ids"] for s in rated], [s["ids"] for s in drawn])
        prompt = [int(i) for i in TINY_IDS.split()]
        for s in rated:
            self.assertAlmostEqual(s["log_likelihood"], self.log_likelihood(prompt + s["ids"], 6), places=4)
        values = [s["log_likelihood"] for s in rated]
        self.assertEqual(values, sorted(values, reverse=True))
        self.assertGreater(values[0], values[-1])
        best = self.generate(*flags, "--best-of", 5, model=TINY)
        self.assertEqual((best["ids"], best["log_likelihood"]), (rated[0]["ids"], values[0]))
        self.refused("generate", "--model", TINY, *flags, "--best-of", 2, "--num-return", 3, code=2, says="--best-of 2")

    def test_beams(self):
        flags = ("--prompt-ids", TINY_IDS, "--max-new-tokens", 8, "--ignore-eos")
        greedy = self.generate(*flags, "--greedy", model=TINY)["ids"]
        self.assertEqual(self.generate(*flags, "--beams", 1, model=TINY)["ids"], greedy)
        found = self.generate(*flags, "--beams", 6, "--num-return", 3, model=TINY)["sequences"]
        prompt = [int(i) for i in TINY_IDS.split()]
        for s in found:
            self.assertAlmostEqual(s["log_likelihood"], self.log_likelihood(prompt + s["ids"], 8), places=4)
        values = [s["log_likelihood"] for s in found]
        self.assertEqual(values, sorted(values, reverse=True))
        self.assertGreaterEqual(values[0], self.log_likelihood(prompt + greedy, 8) - 1e-4)
        self.assertEqual(len({tuple(s["ids"]) for s in found}), 3)
        text = self.out("generate", "--model", TINY, *flags, "--beams", 6).decode()
        self.assertEqual([int(i) for i in text.split()], found[0]["ids"])
        self.refused("generate", "--model", TINY, *flags, "--beams", 3, "--temperature", 1, code=2, says="sampling flags")
        self.refused("generate", "--model", TINY, *flags, "--beams", 3, "--best-of", 3, code=2, says="got both")

    def test_stop_strings_across_token_borders(self):
        flags = (WIZARD["prompt"], "--greedy", "--max-new-tokens", "40")
        whole = self.generate(*flags)
        pieces = []
        for i in range(len(whole["ids"])):
            pieces.append(self.out("tokenize", "--model", STORYTELLER, "--decode",
                                   stdin=" ".join(map(str, whole["ids"][:i + 1])).encode()).decode()[:-1])
            if i == 11:
                break
        borders = [len(p) for p in pieces[4:10]]
        tried = 0
        for border in borders:
            stop = whole["text"][border - 2:border + 2]
            if whole["text"].find(stop) != border - 2:
                continue
            tried += 1
            got = self.generate(*flags, "--stop", "never to be seen", "--stop", stop)
            self.assertEqual(got["text"], whole["text"][:border - 2], repr(stop))
            self.assertEqual(got["finish_reason"], "stop")
            self.assertEqual(got["ids"], whole["ids"][:got["new_tokens"]])
            self.assertLess(got["new_tokens"], 40)
            streamed = self.out("generate", "--model", STORYTELLER, *flags, "--stop", stop).decode()
            self.assertEqual(streamed, got["text"] + "\n")
        self.assertGreater(tried, 2)

    def test_ids_need_no_tokenizer(self):
        flags = ("--prompt-ids", TINY_IDS, "--greedy", "--max-new-tokens", "8")
        got = self.generate(*flags, model=TINY)
        self.assertEqual(got["text"], "")
        text = self.out("generate", "--model", TINY, *flags).decode()
        self.assertEqual(text, " ".join(map(str, got["ids"])) + "\n")
        both = self.out("generate", "--model", TINY, *flags, "--num-return", "2").decode()
        self.assertEqual(both, text * 2)
        self.assertEqual(self.generate("--prompt-ids", "3", "--max-new-tokens", "0", model=TINY)["ids"], [])

    def test_streamed_text_is_valid_utf8(self):
        # Hot enough that bytes of characters come apart.
        for seed in range(3):
            out = self.out("generate", "--model", STORYTELLER, "“", "--temperature", "30", "--top-p", "1", "--seed", seed,
                           "--max-new-tokens", "100", "--ignore-eos")
            out.decode()

    def test_rows_of_a_padded_vocabulary_are_never_drawn(self):
        original, converted = CONFORMANCE / "state_spaces" / "ss_mamba2", self.folder / "converted"
        self.out("convert", "--model", original, "--output", converted)
        tokens = json.loads((original / "config.json").read_text())["vocab_size"]
        self.assertGreater(json.loads((converted / "config.json").read_text())["vocab_size"], tokens)
        flags = ("--prompt-ids", "5 17 3", "--max-new-tokens", "400", "--ignore-eos", "--temperature", "1000", "--top-p",
                 "1", "--seed", "1")
        ids = self.generate(*flags, model=converted)["ids"]
        self.assertEqual(len(ids), 400)
        self.assertLess(max(ids), tokens)
        self.assertEqual(self.generate(*flags, model=original)["ids"], ids)

    def test_chunks_change_nothing(self):
        flags = (WIZARD["prompt"], "--greedy", "--max-new-tokens", "20")
        want = self.generate(*flags)["ids"]
        for chunk in ("1", "3", "7"):
            self.assertEqual(self.generate(*flags, "--chunk", chunk)["ids"], want)

    def test_generation_config(self):
        model = self.model_copy()
        path = model / "generation_config.json"
        flags = ("--prompt-ids", TINY_IDS, "--max-new-tokens", "24")
        path.unlink()
        sampled = self.generate(*flags, "--ignore-eos", model=model)["ids"]
        greedy = self.generate(*flags, "--ignore-eos", "--greedy", model=model)["ids"]
        self.assertNotEqual(sampled, greedy)
        self.assertEqual(self.generate(*flags, "--ignore-eos", "--temperature", "0.8", "--top-p", "0.95", model=model)["ids"],
                         sampled, "the documented defaults")

        def with_config(config, *more):
            path.write_text(json.dumps(config))
            return self.generate("--prompt-ids", TINY_IDS, *more, model=model)

        self.assertEqual(with_config({"do_sample": False, "max_new_tokens": 24}, "--ignore-eos")["ids"], greedy)
        self.assertEqual(with_config({"do_sample": False, "max_new_tokens": 24, "temperature": 0.8}, "--ignore-eos",
                                     "--top-p", "0.95")["ids"], sampled, "a flag asks to sample")
        self.assertEqual(with_config({"temperature": 0, "max_new_tokens": 24}, "--ignore-eos")["ids"], greedy)
        self.assertEqual(with_config({"top_k": 1, "max_new_tokens": 24}, "--ignore-eos")["ids"], greedy)
        self.assertEqual(with_config({"max_new_tokens": 3, "top_p": None}, "--ignore-eos")["new_tokens"], 3)
        self.assertEqual(with_config({"max_new_tokens": 3}, "--ignore-eos", "--max-new-tokens", "5")["new_tokens"], 5)

        at = next(i for i in range(3, 24) if greedy[i] not in greedy[:i])
        for eos in (greedy[at], [95, greedy[at]]):
            got = with_config({"eos_token_id": eos}, "--greedy", "--max-new-tokens", "24")
            self.assertEqual((got["ids"], got["finish_reason"]), (greedy[:at + 1], "stop"))
        # config.json's own, where generation_config.json names none.
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "eos_token_id": greedy[at]}))
        self.assertEqual(with_config({}, "--greedy", "--max-new-tokens", "24")["ids"], greedy[:at + 1])

    def test_the_tokenizer_ends_texts_where_no_configuration_does(self):
        model = self.model_copy(STORYTELLER)
        flags = ("--greedy", "--max-new-tokens", "12")
        ids = self.generate("One day", *flags, "--ignore-eos", model=model)["ids"]
        at = next(i for i in range(2, 12) if ids[i] not in ids[:i])
        tokens = {i: text for text, i in json.loads((model / "tokenizer.json").read_text())["model"]["vocab"].items()}
        (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": tokens[ids[at]]}))
        named = self.generate("One day", *flags, model=model)
        self.assertEqual(named["ids"], ids, "config.json counts first")
        for name in ("config.json", "generation_config.json"):
            if (model / name).exists():
                config = json.loads((model / name).read_text())
                (model / name).write_text(json.dumps({**config, "eos_token_id": None}))
        got = self.generate("One day", *flags, model=model)
        self.assertEqual((got["ids"], got["finish_reason"]), (ids[:at + 1], "stop"))

    def test_special_tokens(self):
        with_bos = self.generate("Hello", "--max-new-tokens", "1")
        without = self.generate("Hello", "--max-new-tokens", "1", "--no-special")
        self.assertEqual(with_bos["prompt_tokens"], without["prompt_tokens"] + 1)


class States(CliTest):
    def test_saved_in_one_process_and_continued_in_another(self):
        flags = ("--seed", "9", "--temperature", "1.1", "--repetition-penalty", "1.2")
        prompt = "It was a dark and stormy night, and"
        whole_state, first_state, last_state = (self.folder / n for n in ("whole", "first", "last"))
        whole = self.generate(prompt, *flags, "--max-new-tokens", "40", "--save-state", whole_state)
        first = self.generate(prompt, *flags, "--max-new-tokens", "15", "--save-state", first_state)
        second = self.generate(*flags, "--max-new-tokens", "25", "--load-state", first_state, "--save-state", last_state)
        self.assertEqual(first["ids"] + second["ids"], whole["ids"])
        self.assertEqual(last_state.read_bytes(), whole_state.read_bytes(), "bit for bit")
        self.assertEqual(second["prompt_tokens"], 1, "the last id, which was not fed yet")

    def test_a_prompt_continues_the_state(self):
        state = self.folder / "state"
        first, second = "The old man looked at", " the sea, and he"
        self.generate(first, "--max-new-tokens", "0", "--save-state", state)
        continued = self.generate(second, "--greedy", "--max-new-tokens", "10", "--load-state", state)
        together = self.generate(first + second, "--greedy", "--max-new-tokens", "10")
        self.assertEqual(continued["ids"], together["ids"])

    def test_nothing_pending_needs_a_prompt(self):
        state = self.folder / "state"
        self.generate("The old man", "--max-new-tokens", "0", "--save-state", state)
        self.refused("generate", "--model", STORYTELLER, "--load-state", state, code=2, says="got 0 bytes")


class Forward(CliTest):
    def forward(self, arrays, *flags, model=TINY):
        source, target = self.folder / "in.safetensors", self.folder / "out.safetensors"
        write_safetensors(source, arrays)
        self.assertEqual(self.out("forward", "--model", model, "--input", source, "--output", target, *flags), b"")
        return read_safetensors(target)

    ids = i64([[5, 9, 31, 60, 7, 8], [80, 12, 13, 14, 3, 90], [4, 4, 4, 4, 4, 4]])

    def test_names_and_shapes(self):
        out = self.forward({"input_ids": self.ids})
        self.assertEqual({k: a.shape for k, a in out.items()}, {"logits": [3, 6, 96], "last_hidden_state": [3, 6, 32]})
        out = self.forward({"input_ids": self.ids, "labels": self.ids, "step_ids": i64([[3, 4], [5, 6], [7, 8]])},
                           "--hidden-states", "--states", "--router-logits", "--attentions")
        self.assertEqual({k: a.shape for k, a in out.items()}, {
            "logits": [3, 6, 96], "last_hidden_state": [3, 6, 32], "loss": [], "step_logits": [3, 2, 96],
            "hidden_states.0": [3, 6, 32], "hidden_states.1": [3, 6, 32], "hidden_states.2": [3, 6, 32],
            "state.0.conv": [3, 96, 3], "state.0.ssm": [3, 4, 16, 16],
            "state.1.conv": [3, 96, 3], "state.1.ssm": [3, 4, 16, 16]})
        self.assertEqual({a.dtype for a in out.values()}, {"F32"})

    def test_masked_rows_are_the_rows_alone(self):
        mask = [[0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0], [0] * 6]
        out = self.forward({"input_ids": self.ids, "attention_mask": i64(mask)}, "--hidden-states", "--states")
        for r in range(2):
            row = [x for x, m in zip(self.ids.row(r), mask[r]) if m]
            alone = self.forward({"input_ids": i64([row])}, "--hidden-states", "--states")
            at = [t for t in range(6) if mask[r][t]]
            for name in ("logits", "last_hidden_state", "hidden_states.0", "hidden_states.2"):
                self.assertEqual([out[name].row(r, t) for t in at], [alone[name].row(0, i) for i in range(len(at))], name)
            for name in ("state.0.conv", "state.1.ssm"):
                self.assertEqual(out[name].row(r), alone[name].row(0), name)
        for r in range(3):
            for t in range(6):
                for name in ("logits", "last_hidden_state", "hidden_states.1"):
                    self.assertEqual(any(out[name].row(r, t)), bool(mask[r][t]), (name, r, t))
        self.assertFalse(any(out["state.1.ssm"].row(2)))

    def test_mask_types(self):
        want = self.forward({"input_ids": self.ids, "attention_mask": i64([[0, 1, 1, 1, 1, 1]] * 3)})["logits"].values
        for dtype in ("I32", "U8", "BOOL"):
            mask = Array(dtype, [3, 6], [0, 1, 1, 1, 1, 1] * 3)
            self.assertEqual(self.forward({"input_ids": self.ids, "attention_mask": mask})["logits"].values, want)

    def test_loss_is_the_mean_over_shifted_labels_that_count(self):
        labels = [[5, -100, 31, 60, 7, 8], [80, 12, 13, 14, -100, 90], [4] * 6]
        mask = [[1] * 6, [0, 0, 1, 1, 1, 1], [0] * 6]
        out = self.forward({"input_ids": self.ids, "labels": i64(labels), "attention_mask": i64(mask)})
        terms = []
        for r in range(3):
            for t in range(5):
                if mask[r][t] and mask[r][t + 1] and labels[r][t + 1] != -100:
                    row = out["logits"].row(r, t)
                    terms.append(math.log(sum(math.exp(x) for x in row)) - row[labels[r][t + 1]])
        self.assertEqual(len(terms), 6)
        self.assertAlmostEqual(out["loss"].values[0], sum(terms) / len(terms), places=5)

    def test_states_go_in_as_they_come_out(self):
        for model in (TINY, CONFORMANCE / "granitemoehybrid_moe_rope"):
            with self.subTest(model.name):
                vocab = json.loads((model / "config.json").read_text())["vocab_size"]
                rows = [[x % vocab for x in self.ids.row(r)] for r in range(3)]
                whole = self.forward({"input_ids": i64(rows)}, "--states", model=model)
                # The first row has read three tokens, behind padding, the others four.
                mask = i64([[0, 1, 1, 1]] + [[1] * 4] * 2)
                first = self.forward({"input_ids": i64([[0, *rows[0][:3]], rows[1][:4], rows[2][:4]]),
                                      "attention_mask": mask}, "--states", model=model)
                states = {name: a for name, a in first.items() if name.startswith("state.")}
                rest = {"input_ids": i64([rows[0][3:], rows[1][4:] + [0], rows[2][4:] + [0]]),
                        "attention_mask": i64([[1] * 3] + [[1, 1, 0]] * 2)}
                lengths = {"state_lengths": Array("I64", [3], [3, 4, 4])}
                second = self.forward({**rest, **states, **lengths}, "--states", model=model)
                for r, read in ((0, 3), (1, 4), (2, 4)):
                    for t in range(read, 6):
                        for a, b in zip(second["logits"].row(r, t - read), whole["logits"].row(r, t)):
                            self.assertAlmostEqual(a, b, places=4)
                rounded = self.forward({**rest, **states, **lengths}, "--state-dtype", "bf16", model=model)
                largest = max(map(abs, second["logits"].values))
                for a, b in zip(rounded["logits"].values, second["logits"].values):
                    self.assertAlmostEqual(a, b, delta=0.02 * largest)
                for name in states:
                    if name.endswith((".conv", ".ssm")):
                        for a, b in zip(second[name].values, whole[name].values):
                            self.assertAlmostEqual(a, b, places=4, msg=name)
                self.refused("forward", "--model", model, "--attentions", "--input", self.folder / "in.safetensors",
                             "--output", self.folder / "other", says="--attentions")

    def test_labels_after_a_hole_count_as_in_the_row_alone(self):
        mask = [1, 0, 1, 1, 0, 1]
        row = [x for x, m in zip(self.ids.row(0), mask) if m]
        ids = i64([self.ids.row(0)])
        out = self.forward({"input_ids": ids, "labels": ids, "attention_mask": i64([mask])})
        self.assertEqual(out["loss"].values, self.forward({"input_ids": i64([row]), "labels": i64([row])})["loss"].values)

    def test_a_batch_of_padding_has_the_arrays_of_any_other(self):
        model, flags = CONFORMANCE / "granitemoe_default", ("--router-logits", "--attentions", "--states")
        want = self.forward({"input_ids": self.ids}, *flags, model=model)
        self.assertIn("aux_loss", want)
        got = self.forward({"input_ids": self.ids, "attention_mask": i64([[0] * 6] * 3)}, *flags, model=model)
        self.assertEqual({k: a.shape for k, a in got.items()}, {k: a.shape for k, a in want.items()})
        self.assertFalse(any(x for a in got.values() for x in a.values))

    def test_steps_continue_the_rows(self):
        long = self.forward({"input_ids": self.ids})
        begun = self.forward({"input_ids": i64([self.ids.row(r)[:4] for r in range(3)]),
                              "step_ids": i64([self.ids.row(r)[4:] for r in range(3)])})
        for r in range(3):
            for s in range(2):
                for a, b in zip(begun["step_logits"].row(r, s), long["logits"].row(r, 4 + s)):
                    self.assertAlmostEqual(a, b, places=4)

    def test_embeddings_in_place_of_ids(self):
        """Granite multiplies what it is given, Falcon-H1 the table's rows alone, Zamba2 reads them in every block."""
        for case, scale in (("mamba2_default", None), ("granitemoe_default", None), ("zamba2_default", None),
                            ("falcon_h1_default", "embedding_multiplier")):
            with self.subTest(case):
                model = CONFORMANCE / case
                table = next(a for name, a in read_safetensors(model / "model.safetensors").items()
                             if name.endswith(("embed_tokens.weight", "embeddings.weight")))
                factor = json.loads((model / "config.json").read_text())[scale] if scale else 1
                mask = i64([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0], [1] * 6])
                values = [x * factor for r in range(3) for t in self.ids.row(r) for x in table.row(t)]
                embeddings = Array("F32", [3, 6, table.shape[1]], values)
                rest = {"attention_mask": mask, "labels": self.ids, "step_ids": i64([[3], [5], [7]])}
                flags = ("--hidden-states", "--states")
                want = self.forward({"input_ids": self.ids, **rest}, *flags, model=model)
                for chunk in ("512", "4"):
                    got = self.forward({"inputs_embeds": embeddings, **rest}, *flags, "--chunk", chunk, model=model)
                    self.assertEqual(got.keys(), want.keys())
                    for name, array in want.items():
                        for a, b in zip(got[name].values, array.values):
                            self.assertAlmostEqual(a, b, delta=0 if chunk == "512" else 1e-4, msg=name)

    def test_logits_of_the_last_positions_alone(self):
        mask = i64([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0] * 6])
        for extra in ({}, {"labels": self.ids}):
            inputs = {"input_ids": self.ids, "attention_mask": mask, **extra}
            whole = self.forward(inputs, "--hidden-states")
            for n in (1, 4, 6, 9):
                kept = self.forward(inputs, "--hidden-states", "--logits-to-keep", n, "--chunk", 3)
                columns = range(6 - min(n, 6), 6)
                for name, array in whole.items():
                    want = array.values
                    if name in ("logits", "last_hidden_state"):
                        want = [x for r in range(3) for t in columns for x in array.row(r, t)]
                    self.assertEqual(len(kept[name].values), len(want), name)
                    for a, b in zip(kept[name].values, want):
                        self.assertAlmostEqual(a, b, places=5, msg=name)

    def test_an_existing_output_is_replaced(self):
        self.forward({"input_ids": self.ids})
        out = self.forward({"input_ids": i64([[3]])})
        self.assertEqual(out["logits"].shape, [1, 1, 96])
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["in.safetensors", "out.safetensors"])


class Tokenize(CliTest):
    tokenize = ("tokenize", "--tokenizer", STORYTELLER)

    def test_round_trip_of_a_file(self):
        text = HOUND.read_bytes()
        ids = self.out(*self.tokenize, "--file", HOUND)
        self.assertEqual(ids.count(b"\n"), 1)
        path = self.folder / "ids"
        path.write_bytes(ids)
        self.assertEqual(self.out(*self.tokenize, "--decode", "--file", path), text)
        reference = read_safetensors(DATA / "storyteller" / "reference.safetensors")[f"ids.{HOUND.stem}"]
        self.assertEqual(list(map(int, ids.split())), list(reference.values))

    def test_lines(self):
        text = "Once upon a time\n\nthere was a sea — wide & “blue”.\n   last line".encode()
        ids = self.out(*self.tokenize, stdin=text)
        self.assertEqual(ids.count(b"\n"), 4)
        self.assertEqual(self.out(*self.tokenize, "--decode", stdin=ids), text + b"\n")
        plain = self.out(*self.tokenize, "--no-special", stdin=text)
        for with_bos, without in zip(ids.splitlines(), plain.splitlines()):
            self.assertEqual(with_bos.split()[1:], without.split())
            self.assertEqual(with_bos.split()[0], b"0")
        self.assertEqual(self.out(*self.tokenize, stdin=b""), b"")

    def test_json(self):
        path = self.folder / "text"
        path.write_text("Hello world\n")
        got = self.json(*self.tokenize, "--file", path)
        self.assertEqual(list(got), ["ids", "tokens"])
        self.assertEqual(len(got["ids"]), len(got["tokens"]))
        self.assertEqual(got["tokens"][0], "<|endoftext|>")
        self.assertEqual(self.json(*self.tokenize, stdin=path.read_bytes()), got)
        ids = " ".join(map(str, got["ids"])).encode()
        self.assertEqual(self.json(*self.tokenize, "--decode", stdin=ids)["text"], "Hello world\n")

    def test_several_files(self):
        texts = ["One\ntwo\n", "", "Three"]
        names = []
        for number, text in enumerate(texts):
            path = self.folder / str(number)
            path.write_text(text)
            names += ["--file", path]
        lines = self.out(*self.tokenize, *names).splitlines()
        self.assertEqual(len(lines), 3)
        for line, name in zip(lines, names[1::2]):
            self.assertEqual(line + b"\n", self.out(*self.tokenize, "--file", name))
        objects = self.out(*self.tokenize, *names, "--json").splitlines()
        self.assertEqual([json.loads(each)["ids"] for each in objects], [list(map(int, line.split())) for line in lines])

    def test_sentencepiece(self):
        model = DATA / "sentencepiece" / "bytes.model"
        golden = json.loads((DATA / "sentencepiece" / "cases.json").read_text())["bytes"]
        lines = [(text, ids) for text, ids in golden["encode"] if "\n" not in text and "\r" not in text]
        stdin = "".join(text + "\n" for text, _ in lines).encode()
        got = self.out("tokenize", "--tokenizer", model, "--no-special", stdin=stdin).decode().split("\n")
        self.assertEqual([list(map(int, line.split())) for line in got[:-1]], [ids for _, ids in lines])
        got = self.out("tokenize", "--tokenizer", model, "--decode", stdin=" ".join(map(str, lines[-1][1])).encode() + b"\n")
        # A space and the character that stands for it are one to these models.
        self.assertEqual(got.decode(), lines[-1][0].replace("\u2581", " ") + "\n")

    def test_a_folder_without_a_tokenizer_says_what_it_needs(self):
        model = self.model_copy(STORYTELLER)
        (model / "tokenizer.json").unlink()
        self.refused("tokenize", "--model", model, stdin=b"a\n", says=("tokenizer.model", "--tokenizer", "gpt-neox-20b"))

    def test_model_and_tokenizer_flags_name_the_same(self):
        want = self.out(*self.tokenize, stdin=b"Hello")
        self.assertEqual(self.out("tokenize", "--model", STORYTELLER, stdin=b"Hello"), want)
        self.assertEqual(self.out("tokenize", "--tokenizer", STORYTELLER / "tokenizer.json", stdin=b"Hello"), want)


class Chat(CliTest):
    TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    FLAGS = ("--greedy", "--ignore-eos", "--max-new-tokens", "12")

    def setUp(self):
        super().setUp()
        self.model = self.model_copy(STORYTELLER)
        self.write_template(self.TEMPLATE)

    def write_template(self, text):
        (self.model / "chat_template.jinja").write_text(text)

    def chat(self, *lines, flags=()):
        """The answers, what each prefill took, and standard error."""
        done = run("chat", "--model", self.model, *self.FLAGS, *flags, stdin="".join(line + "\n" for line in lines).encode())
        stderr = done.stderr.decode()
        self.assertEqual(done.returncode, 0, stderr)
        prefills = [int(line.split()[1]) for line in stderr.splitlines() if line.startswith("prefill ")]
        return done.stdout.decode(), prefills, stderr

    def count(self, text):
        path = self.folder / "text"
        path.write_text(text)
        return len(self.out("tokenize", "--model", self.model, "--no-special", "--file", path).split())

    def test_later_turns_read_only_what_is_new(self):
        out, prefills, _ = self.chat("Tell me of the sea", "And of the wind?", flags=("--system", "Be kind."))
        first = "system:Be kind.\nuser:Tell me of the sea\nassistant:"
        # The last token of the first answer, then the rest.
        self.assertEqual(prefills, [self.count(first), 1 + self.count("\nuser:And of the wind?\nassistant:")])
        want = self.out("generate", "--model", self.model, *self.FLAGS, "--no-special", stdin=first.encode()).decode()
        self.assertTrue(out.startswith(want), out)
        # What was kept is what reading everything again would have made.
        answer = want[:-1]
        whole = first + answer + "\nuser:And of the wind?\nassistant:"
        again = self.out("generate", "--model", self.model, *self.FLAGS, "--no-special", stdin=whole.encode()).decode()
        self.assertEqual(out, want + again)

    def test_save_and_load(self):
        state = self.folder / "state"
        out, _, _ = self.chat("One day", f"/save {state}", "And then?")
        resumed, prefills, _ = self.chat(f"/load {state}", "And then?")
        self.assertTrue(out.endswith(resumed) and resumed, (out, resumed))
        self.assertEqual(prefills, [1 + self.count("\nuser:And then?\nassistant:")])
        # Notes of one conversation do not go with the state of another, nor with none.
        other = self.folder / "other"
        self.chat("Two days", f"/save {other}")
        notes = self.folder / "state.chat.json"
        for text, says in (((self.folder / "other.chat.json").read_text(), "must be of the state beside it"),
                           (json.dumps({**json.loads(notes.read_text()), "state": None}), "got no state")):
            notes.write_text(text)
            self.refused("chat", "--model", self.model, stdin=f"/load {state}\n".encode(),
                         says=("state.chat.json", says))
        (self.folder / "state.chat.json").write_text("[]")
        done = run("chat", "--model", self.model, stdin=f"/load {state}\n".encode())
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"state.chat.json", done.stderr)

    def test_fork_and_reset(self):
        once, _, _ = self.chat("One day", "And then?")
        out, _, stderr = self.chat("One day", "/fork", "Why?", "/fork 1", "And then?")
        self.assertIn("/fork 1", stderr)
        first, _, _ = self.chat("One day")  # answers may have line ends of their own
        self.assertTrue(once.startswith(first) and out.startswith(first))
        self.assertTrue(out.endswith(once[len(first):]))
        self.assertNotEqual(out, once)
        twice, prefills, _ = self.chat("One day", "/reset", "One day", "/quit", "never read")
        self.assertEqual(len(prefills), 2)
        self.assertEqual(prefills[0], prefills[1])
        self.assertEqual(twice[:len(twice) // 2], twice[len(twice) // 2:])

    def test_a_template_that_changes_the_past(self):
        self.write_template(self.TEMPLATE.replace("m.content", "('' if m.role == 'assistant' and not loop.last else m.content)"))
        _, prefills, stderr = self.chat("One", "Two", "Three")
        self.assertEqual(stderr.count("reading it again"), 1)
        # From the last question on: its answer is gone, and the next question is new.
        self.assertEqual(prefills[1], self.count("assistant:\nuser:Two\nassistant:"))
        self.assertEqual(prefills[2], self.count("assistant:\nuser:Three\nassistant:"))

    def test_what_is_refused(self):
        for line, says in (("/nothing", "/quit"), ("/save", "/save F"), ("/fork x", "number"), ("/fork 7", "kept"),
                           (f"/save {self.folder / 'x'}", "answer"), (f"/load {self.folder / 'none'}", "none")):
            self.refused("chat", "--model", self.model, stdin=(line + "\n").encode(), says=says)
        self.refused("chat", "--model", self.model, "--stop", "", code=2, says="--stop")
        self.write_template("{{ raise_exception('no way') }}")
        self.refused("chat", "--model", self.model, stdin=b"Hi\n", says=("chat_template.jinja line 1", "no way"))
        self.write_template("{% if %}")
        self.refused("chat", "--model", self.model, stdin=b"Hi\n", says="chat_template.jinja line 1")
        (self.model / "chat_template.jinja").unlink()
        self.refused("chat", "--model", self.model, stdin=b"Hi\n", says="must have a chat template")

    def test_ctrl_c_ends_the_answer_alone(self):
        command = [ELAPID, "chat", "--model", self.model, "--greedy", "--ignore-eos", "--max-new-tokens", "1000000"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            # A key press may come between two answers, where it does nothing: presses go on until the answer ends.
            answered = threading.Event()

            def press():
                while not answered.wait(0.2):
                    process.send_signal(signal.SIGINT)

            drain = threading.Thread(target=process.stdout.read)
            drain.start()
            for line in (b"One\n", b"Two\n"):
                answered.clear()
                process.stdin.write(line)
                process.stdin.flush()
                presses = threading.Thread(target=press)
                presses.start()
                while not process.stderr.readline().startswith((b"prefill", b"interrupted")):
                    self.assertIsNone(process.poll())
                answered.set()
                presses.join()
            process.stdin.close()
            self.assertEqual(process.wait(60), 0)
            drain.join()

    def test_ctrl_c_ends_the_reading_of_a_long_turn(self):
        command = [ELAPID, "chat", "--model", self.model, *self.FLAGS, "--chunk", "16"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            ended = threading.Event()

            def press():
                while not ended.wait(0.2):
                    process.send_signal(signal.SIGINT)

            process.stdin.write(b"on and " * 200_000 + b"\n")
            process.stdin.flush()
            presses = threading.Thread(target=press)
            presses.start()
            self.assertEqual(process.stderr.readline(), b"interrupted before an answer: the turn is left out\n")
            ended.set()
            presses.join()
            out, err = process.communicate(b"One day\n", timeout=60)
            self.assertEqual(process.returncode, 0)
        alone, prefills, _ = self.chat("One day", flags=("--chunk", "16"))
        self.assertEqual(out.decode(), alone)
        self.assertTrue(err.startswith(b"prefill %d " % prefills[0]), err)


class Score(CliTest):
    def test_a_book_scores_as_in_the_reference(self):
        want = REFERENCE["validation"][HOUND.stem]
        got = self.json("score", "--model", STORYTELLER, "--file", HOUND, "--dtype", "f32")
        self.assertEqual(list(got), ["tokens", "nll_mean", "perplexity", "bits_per_byte", "tok_s", "peak_rss_mib"])
        self.assertEqual(got["tokens"], want["tokens"])
        self.assertAlmostEqual(got["nll_mean"], want["mean_nll_f64"], delta=1e-4)
        self.assertAlmostEqual(got["perplexity"], want["ppl"], delta=5e-3)
        self.assertAlmostEqual(got["bits_per_byte"], want["bits_per_byte"], delta=1e-4)
        self.assertGreater(got["tok_s"], 0)
        self.assertGreater(got["peak_rss_mib"], 1)

    def test_types_of_weights(self):
        """bf16 is what a bf16 checkpoint gets unless another type is asked for."""
        text = HOUND.read_bytes()[:6000].rsplit(b" ", 1)[0]
        nll = {dtype: self.json("score", "--model", STORYTELLER, "--dtype", dtype, stdin=text)["nll_mean"]
               for dtype in ("f32", "bf16", "auto", "int8", "int4")}
        self.assertEqual(nll["auto"], nll["bf16"])
        self.assertNotEqual(nll["f32"], nll["bf16"])
        self.assertAlmostEqual(nll["f32"], nll["bf16"], delta=2e-3)
        self.assertAlmostEqual(nll["f32"], nll["int8"], delta=4e-3)
        self.assertAlmostEqual(nll["f32"], nll["int4"], delta=0.1)
        self.assertEqual(len(set(nll.values())), 4)

    def test_ways_to_give_a_text(self):
        text = HOUND.read_bytes()[:1500].rsplit(b" ", 1)[0]
        path = self.folder / "text"
        path.write_bytes(text)
        score = ("score", "--model", STORYTELLER, "--dtype", "f32")
        want = self.json(*score, "--file", path, "--per-token")
        self.assertEqual(len(want["nll"]), want["tokens"])
        self.assertAlmostEqual(sum(want["nll"]) / want["tokens"], want["nll_mean"], places=6)
        self.assertEqual(self.json(*score, stdin=text)["nll_mean"], want["nll_mean"])
        self.assertAlmostEqual(self.json(*score, "--file", path, "--chunk", "7")["nll_mean"], want["nll_mean"], places=4)
        self.assertEqual(self.json(*score, "--file", path, "--threads", "1")["nll_mean"], want["nll_mean"])
        self.assertEqual(self.json(*score, "--file", path, "--no-special")["tokens"], want["tokens"] - 1)
        lines = self.out(*score, "--file", path, "--per-token").decode().splitlines()
        self.assertEqual(len(lines), want["tokens"] + 6)
        self.assertAlmostEqual(float(lines[0]), want["nll"][0], places=5)


class Eval(CliTest):
    def ids(self, text):
        path = self.folder / "text"
        path.write_bytes(text.encode())
        return [int(x) for x in self.out("tokenize", "--model", STORYTELLER, "--no-special", "--file", path).split()]

    def test_white_space_before_the_last_word_is_predicted_with_it(self):
        data, source, target = (self.folder / n for n in ("data", "in.safetensors", "out.safetensors"))
        context = "The old man looked at the"
        for space in (" ", "   ", "\n ", "\u00a0 "):
            with self.subTest(space):
                passage = context + space + "sea"
                data.write_text(json.dumps({"text": passage}) + "\n")
                got = self.json("eval", "--model", STORYTELLER, "--task", "lambada_openai", "--data", data)
                whole, before = self.ids(passage), len(self.ids(context))
                labels = [-100] * before + whole[before:]
                write_safetensors(source, {"input_ids": i64([whole]), "labels": i64([labels])})
                self.out("forward", "--model", STORYTELLER, "--input", source, "--output", target)
                loss = read_safetensors(target)["loss"].values[0]
                self.assertAlmostEqual(math.log(got["perplexity"]), loss * (len(whole) - before), places=3)
        data.write_text(json.dumps({"text": "  sea"}) + "\n")
        self.refused("eval", "--model", STORYTELLER, "--task", "lambada_openai", "--data", data, says="a word before")


class Memory(CliTest):
    def small_model(self):
        """A model of the storyteller's vocabulary that reads a book in a second."""
        width, vocab = 16, 4096
        config = {"model_type": "mamba2", "vocab_size": vocab, "hidden_size": width, "state_size": 8, "num_heads": 2,
                  "head_dim": 16, "n_groups": 1, "num_hidden_layers": 1, "tie_word_embeddings": True}
        rng = random.Random(1)
        arrays = {}
        for name, shape in {"embeddings.weight": [vocab, width], "norm_f.weight": [width], "layers.0.norm.weight": [width],
                            "layers.0.mixer.A_log": [2], "layers.0.mixer.D": [2], "layers.0.mixer.dt_bias": [2],
                            "layers.0.mixer.conv1d.weight": [48, 1, 4], "layers.0.mixer.conv1d.bias": [48],
                            "layers.0.mixer.in_proj.weight": [82, width], "layers.0.mixer.norm.weight": [32],
                            "layers.0.mixer.out_proj.weight": [width, 32]}.items():
            arrays["backbone." + name] = Array("F32", shape, [rng.uniform(-1, 1) for _ in range(math.prod(shape))])
        model = self.folder / "small"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(config))
        shutil.copyfile(STORYTELLER / "tokenizer.json", model / "tokenizer.json")
        write_safetensors(model / "model.safetensors", arrays)
        return model

    def large_model(self, dtype):
        """(folder, elements that are packed, of these the head's) of a model whose table is a quarter of it."""
        vocab, width, inner, states, heads, layers = 16384, 1024, 2048, 128, 32, 5
        conv = inner + 2 * states
        config = {"model_type": "mamba2", "vocab_size": vocab, "hidden_size": width, "state_size": states,
                  "num_heads": heads, "head_dim": inner // heads, "n_groups": 1, "num_hidden_layers": layers,
                  "tie_word_embeddings": True}
        shapes = {"embeddings.weight": [vocab, width], "norm_f.weight": [width]}
        for i in range(layers):
            shapes |= {f"layers.{i}." + name: shape for name, shape in {
                "norm.weight": [width], "mixer.A_log": [heads], "mixer.D": [heads], "mixer.dt_bias": [heads],
                "mixer.conv1d.weight": [conv, 1, 4], "mixer.conv1d.bias": [conv],
                "mixer.in_proj.weight": [inner + conv + heads, width], "mixer.norm.weight": [inner],
                "mixer.out_proj.weight": [width, inner]}.items()}
        rng, bf16 = random.Random(1), dtype == "BF16"
        values = array.array("f", [rng.gauss(0, 0.02) for _ in range(1 << 16)]).tobytes()
        if bf16:  # the upper halves
            values = b"".join(values[i:i + 2] for i in range(2, len(values), 4))
        header, at = {}, 0
        for name, shape in shapes.items():
            size = math.prod(shape) * (2 if bf16 else 4)
            header["backbone." + name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        model = self.folder / dtype
        model.mkdir()
        (model / "config.json").write_text(json.dumps(config))
        write_raw(model / "model.safetensors", header, (values * (at // len(values) + 1))[:at])
        projections = layers * width * (inner + conv + heads + inner)
        return model, projections + vocab * width, vocab * width

    def test_weights_are_in_memory_once(self):
        """Loading takes what the packed weights do and a tenth of that, however large one tensor is."""
        # Float32 scales of 64 weights; the head of a model in four bits has eight.
        bytes_of = {"f32": (4, 4), "bf16": (2, 2), "int4": (0.5 + 4 / 64, 1 + 4 / 64)}
        run_of_one = ("--prompt", "1", "--gen", "1", "--repeat", "1", "--threads", "2")
        for stored, held in (("F32", "f32"), ("BF16", "bf16"), ("BF16", "int4")):
            model, elements, head = self.large_model(stored)
            each, each_of_head = bytes_of[held]
            packed = ((elements - head) * each + head * each_of_head) / 2**20
            states = 5 * 4 * (3 * (2048 + 2 * 128) + 2048 * 128) / 2**20
            small = self.json("bench", "--model", TINY, "--dtype", held, *run_of_one)["peak_mem_mib"]
            got = self.json("bench", "--model", model, "--dtype", held, *run_of_one)["peak_mem_mib"] - small
            self.assertGreater(got, packed * 0.99, (stored, held))
            self.assertLess(got, packed * 1.1 + states, (stored, held))
            shutil.rmtree(model)

    def test_more_threads_than_cores_are_not_started(self):
        # Each thread reserves its stack; the limit leaves room for few.
        limited = ["sh", "-c", 'ulimit -v 4000000; exec "$0" "$@"', ELAPID, "generate", "hi", "--model", str(STORYTELLER),
                   "--threads", "1000", "--max-new-tokens", "2"]
        done = subprocess.run(limited, capture_output=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr.decode(), r"note: --threads 1000: this process may use \d+\n")

    def test_a_ten_times_longer_book_takes_no_more(self):
        book, long = self.folder / "book", self.folder / "long"
        text = HOUND.read_bytes() * 15  # the length of a short novel
        book.write_bytes(text)
        long.write_bytes(text * 10)
        score = ("score", "--model", self.small_model(), "--file")
        once, ten = self.json(*score, book), self.json(*score, long)
        self.assertGreater(ten["tokens"], 450_000)
        self.assertGreater(ten["tokens"], 9 * once["tokens"])
        self.assertLess(abs(ten["peak_rss_mib"] - once["peak_rss_mib"]), 8)


class PackedCache(CliTest):
    prompt = ("--prompt-ids", TINY_IDS, "--max-new-tokens", "8", "--greedy")

    def test_commands_map_what_the_first_one_packed(self):
        cache, state = self.folder / "new" / "cache", self.folder / "state"
        model = self.model_copy()
        plain = self.generate(*self.prompt, "--save-state", state, model=model)["ids"]
        flags = ("--packed-cache", cache)
        self.assertEqual(self.generate(*self.prompt, *flags, model=model)["ids"], plain)
        (kept,) = cache.iterdir()
        before = kept.stat()
        self.assertEqual(self.generate(*self.prompt, *flags, model=model)["ids"], plain)
        self.json("inspect", "--model", model, *flags)
        self.json("bench", "--model", model, *flags, "--prompt", "4", "--gen", "2", "--repeat", "1")
        (kept,) = cache.iterdir()
        after = kept.stat()
        self.assertEqual((before.st_ino, before.st_mtime_ns), (after.st_ino, after.st_mtime_ns))
        # A state knows its model with and without.
        states = ("--load-state", state, "--prompt-ids", "5", "--max-new-tokens", "4", "--greedy")
        self.assertEqual(self.generate(*states, *flags, model=model)["ids"], self.generate(*states, model=model)["ids"])
        # Another precision is another file; a damaged one is replaced.
        self.generate(*self.prompt, *flags, "--dtype", "int8", model=model)
        self.assertEqual(len(list(cache.iterdir())), 2)
        good = kept.read_bytes()
        kept.write_bytes(good[:3000])
        self.assertEqual(self.generate(*self.prompt, *flags, model=model)["ids"], plain)
        self.assertEqual(kept.read_bytes(), good)

    def test_two_at_once(self):
        cache = self.folder / "cache"
        command = [ELAPID, "generate", "--model", str(TINY), *self.prompt, "--json", "--packed-cache", str(cache)]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(8)]
        texts = [json.loads(p.communicate(timeout=100)[0])["ids"] for p in running]
        self.assertEqual([p.returncode for p in running], [0] * 8)
        self.assertEqual(texts, [texts[0]] * 8)
        self.assertEqual(len(list(cache.iterdir())), 1)

    def test_a_folder_that_cannot_be_written_is_one_warning(self):
        file = self.folder / "file"
        file.write_text("no folder")
        for folder in (file, "/proc/cache"):
            done = run("generate", "--model", TINY, *self.prompt, "--packed-cache", folder)
            self.assertEqual(done.returncode, 0)
            text = done.stderr.decode()
            self.assertRegex(text, r"\Anote: packed weights are not kept: [^\n]+\n")
            self.assertEqual(text.count("note:"), 1, text)
            self.assertEqual(done.stdout, run("generate", "--model", TINY, *self.prompt).stdout)
        self.refused("generate", "--model", TINY, "--packed-cache", "", code=2, says="--packed-cache")
        self.refused("bench", "--config", STORYTELLER / "config.json", "--packed-cache", self.folder, code=2,
                     says="--packed-cache")


class Inspect(CliTest):
    def test_a_folder(self):
        got = self.json("inspect", "--model", STORYTELLER)
        self.assertEqual(list(got), ["family", "layers", "parameters", "bytes", "dtypes", "state_bytes_per_sequence",
                                     "unknown_config_keys", "notes", "state_bytes_per_token", "quantization"])
        self.assertIsNone(got["quantization"])
        self.assertEqual((got["family"], got["layers"], got["parameters"]), ("mamba2", 12, 13500720))
        weights = sum(len(read_header(p)[1]) for p in STORYTELLER.glob("*.safetensors"))
        self.assertEqual(got["bytes"], weights)
        self.assertEqual(set(got["dtypes"]), {"bf16", "f32"})
        # conv [3, 768 + 2 * 128] and ssm [12, 64, 128], float32, 12 layers
        self.assertEqual(got["state_bytes_per_sequence"], 12 * 4 * (3 * 1024 + 12 * 64 * 128))
        self.assertEqual(got["unknown_config_keys"], [])
        self.assertEqual(got["state_bytes_per_token"], 0)
        # Two of four layers attend: keys and values of 2 heads of 8, float32.
        self.assertEqual(self.json("inspect", "--model", CONFORMANCE / "jamba_default")["state_bytes_per_token"],
                         2 * 2 * 2 * 8 * 4)
        text = self.out("inspect", "--model", STORYTELLER).decode()
        for part in ("mamba2", "13500720", "bf16"):
            self.assertIn(part, text)

    def test_devices(self):
        got = self.json("inspect", "--devices")["devices"]
        self.assertEqual(got[0]["device"], "cpu")
        self.assertEqual(got[0]["isa"][0], "baseline")
        self.assertIn(got[0]["active_isa"], got[0]["isa"])
        forced = self.json("inspect", "--devices", env={"ELAPID_FORCE_ISA": "baseline"})["devices"]
        self.assertEqual(forced[0]["active_isa"], "baseline")
        self.assertIn(b"cpu", self.out("inspect", "--devices"))


class Quantize(CliTest):
    """A folder in 8 or 4 bits is what loading the original so would hold: on every instruction set."""

    def quantized(self, dtype, *arguments):
        target = self.folder / dtype
        return target, self.json("quantize", "--model", STORYTELLER, "--dtype", dtype, "--output", target, *arguments)

    def test_a_folder_loads_as_it_would_have_been_rounded(self):
        text = HOUND.read_bytes()[:1500].rsplit(b" ", 1)[0]
        levels = self.json("inspect", "--devices")["devices"][0]["isa"]
        for dtype, bits, code in (("int8", 8, "int8"), ("int4", 4, "nf4")):
            with self.subTest(dtype):
                target, done = self.quantized(dtype)
                self.assertEqual((done["family"], done["dtype"]), ("mamba2", dtype))
                # in_proj and out_proj of twelve layers; the tied head is the embedding, which is looked up as stored.
                self.assertEqual(done["quantized_tensors"], 24)
                self.assertEqual(set(done["side_files"]), {p.name for p in target.iterdir()} -
                                 {"config.json", "model.safetensors"})
                self.assertIn("tokenizer.json", done["side_files"])
                self.assertEqual(done["bytes"], len(read_header(target / "model.safetensors")[1]) -
                                 self.padding(target / "model.safetensors"))
                self.assertLess(done["bytes"], done["original_bytes"])
                inspected = self.json("inspect", "--model", target)
                self.assertEqual(inspected["quantization"], {"method": "elapid", "bits": bits, "code": code})
                self.assertEqual(inspected["parameters"], 13500720)
                self.assertEqual(inspected["bytes"], done["bytes"])
                self.assertIn(code, inspected["dtypes"])
                self.assertEqual(inspected["unknown_config_keys"], [])
                for level in levels:
                    score = [self.json("score", "--per-token", *arguments, stdin=text, env={"ELAPID_FORCE_ISA": level})
                             for arguments in (("--model", STORYTELLER, "--dtype", dtype), ("--model", target),
                                               ("--model", target, "--dtype", dtype))]
                    self.assertEqual(score[0]["nll"], score[1]["nll"], level)
                    self.assertEqual(score[0]["nll"], score[2]["nll"], level)

    @staticmethod
    def padding(path):
        header, data = read_header(path)
        return len(data) - sum(t["data_offsets"][1] - t["data_offsets"][0]
                               for name, t in header.items() if name != "__metadata__")

    def test_layout_on_disk(self):
        """As docs/quantization.md has it, decoded here and compared with what was rounded."""
        for dtype in ("int8", "int4"):
            target, _ = self.quantized(dtype)
            config = json.loads((target / "config.json").read_text())
            self.assertEqual(config["quantization_config"],
                             {"quant_method": "elapid", "version": 1, "bits": 8 if dtype == "int8" else 4,
                              "group_size": 64, "code": "int8" if dtype == "int8" else "nf4"})
            name = "backbone.layers.3.mixer.out_proj.weight"
            source = next(p for p in STORYTELLER.glob("*.safetensors") if name in read_header(p)[0])
            header, data = read_header(source)
            rows, columns = header[name]["shape"]
            begin, _ = header[name]["data_offsets"]
            new_header, new_data = read_header(target / "model.safetensors")
            codes_at, scales_at = (new_header[n]["data_offsets"][0] for n in (name, name + ".scales"))
            groups = columns // 64
            self.assertEqual(new_header[name]["dtype"], "U8")
            self.assertEqual(new_header[name]["shape"], [rows, columns if dtype == "int8" else columns // 2])
            self.assertEqual(new_header[name + ".scales"]["shape"], [rows, groups])
            for row, group in ((0, 0), (7, groups - 1), (rows - 1, 1)):
                want = [struct.unpack("<f", b"\0\0" + data[at:at + 2])[0]
                        for at in range(begin + 2 * (row * columns + 64 * group), begin + 2 * (row * columns + 64 * group) + 128, 2)]
                (scale,) = struct.unpack_from("<f", new_data, scales_at + 4 * (row * groups + group))
                if dtype == "int8":
                    got = [scale * q for q in struct.unpack_from("<64b", new_data, codes_at + row * columns + 64 * group)]
                    bound = 0.5001 / 127
                else:
                    packed = new_data[codes_at + (row * columns + 64 * group) // 2:][:32]
                    got = [scale * NF4[q] for byte in packed for q in (byte >> 4, byte & 15)]
                    bound = 0.19  # half the widest step, or what a scale below the largest magnitude cuts off
                largest = max(map(abs, want))
                for a, b in zip(want, got, strict=True):
                    self.assertLessEqual(abs(a - b), largest * bound)

    def test_shards(self):
        target, done = self.quantized("int4", "--max-shard-size", "4MB")
        self.assertGreater(len(list(target.glob("model-*-of-*.safetensors"))), 1)
        self.assertEqual(self.json("inspect", "--model", target)["bytes"], done["bytes"])

    def test_loss_on_a_text(self):
        text = self.folder / "text"
        text.write_bytes(HOUND.read_bytes()[:4000].rsplit(b" ", 1)[0])
        target, done = self.quantized("int4", "--calib", text, "--calib-dtype", "f32")
        loss = done["loss"]
        self.assertEqual(list(loss), ["tokens", "original_dtype", "original_perplexity", "perplexity",
                                      "perplexity_change_percent", "kl_divergence"])
        want = self.json("score", "--model", STORYTELLER, "--dtype", "f32", "--file", text)
        rounded = self.json("score", "--model", target, "--file", text)
        self.assertEqual((loss["tokens"], loss["original_dtype"]), (want["tokens"], "f32"))
        self.assertAlmostEqual(loss["original_perplexity"] / want["perplexity"], 1, delta=1e-4)
        self.assertAlmostEqual(loss["perplexity"] / rounded["perplexity"], 1, delta=5e-3)
        self.assertAlmostEqual(loss["perplexity_change_percent"],
                               100 * (loss["perplexity"] / loss["original_perplexity"] - 1), places=6)
        # The divergence by its definition, over the logits of both.
        ids = [int(x) for x in self.out("tokenize", "--model", STORYTELLER, "--file", text).split()][:120]
        few, source = self.folder / "few", self.folder / "in.safetensors"
        write_safetensors(source, {"input_ids": i64([ids])})
        logits = []
        for arguments in (("--model", STORYTELLER, "--dtype", "f32"), ("--model", target)):
            self.out("forward", *arguments, "--input", source, "--output", few)
            logits.append(read_safetensors(few)["logits"])
        mean = 0
        for position in range(len(ids) - 1):
            p, q = (log_softmax(x.row(0, position)) for x in logits)
            mean += sum(math.exp(a) * (a - b) for a, b in zip(p, q)) / (len(ids) - 1)
        second = self.folder / "second"
        short = self.json("quantize", "--model", STORYTELLER, "--dtype", "int4", "--output", second, "--calib", text,
                          "--calib-dtype", "f32", "--calib-tokens", len(ids))["loss"]
        self.assertEqual(short["tokens"], len(ids) - 1)
        self.assertAlmostEqual(short["kl_divergence"] / mean, 1, delta=0.05)
        human = self.out("quantize", "--model", STORYTELLER, "--dtype", "int8", "--output", self.folder / "third",
                         "--calib", text, "--calib-tokens", "100").decode()
        for part in ("KL divergence", "in bf16", " %", "99"):
            self.assertIn(part, human)

    def test_what_is_refused(self):
        target, _ = self.quantized("int4")
        quantize, new = ("quantize", "--model", STORYTELLER, "--dtype", "int8", "--output"), self.folder / "new"
        self.refused(*quantize, target, says="must be a new or an empty folder")
        self.refused("quantize", "--model", target, "--dtype", "int8", "--output", new,
                     says=("quantize:", "must not be quantized yet, got nf4 by elapid"))
        self.refused("convert", "--model", target, "--output", new, says=("convert:", "not quantized, got nf4 by elapid"))
        self.refused("score", "--model", target, "--dtype", "int8", stdin=b"some text",
                     says=("is stored in int4", "got int8"))
        self.refused("quantize", "--model", TINY, "--dtype", "int8", "--output", new, says="128 inputs, got none")
        self.refused(*quantize, new, "--calib", self.folder / "none", says="none")
        empty = self.folder / "empty"
        empty.write_bytes(b"")
        self.refused(*quantize, new, "--calib", empty, says="at least two tokens")
        for dtype in ("f32", "bf16", "auto", "int3"):
            self.refused("quantize", "--model", STORYTELLER, "--output", new, "--dtype", dtype, code=2,
                         says=f"--dtype: must be int8 or int4, got {dtype}")
        self.refused("quantize", "--model", STORYTELLER, "--output", new, code=2, says="--dtype")
        self.refused("quantize", "--model", STORYTELLER, "--dtype", "int8", code=2, says="--output")
        self.refused(*quantize, new, "--calib-tokens", "1", code=2, says="--calib-tokens")
        self.refused(*quantize, new, "--calib-dtype", "int8", code=2, says="--calib-dtype")
        self.refused(*quantize, new, "--max-shard-size", "big", code=2, says="--max-shard-size")
        self.assertFalse(new.exists())
        model = self.model_copy(STORYTELLER)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
        self.refused("inspect", "--model", model, says=("quantization_config", "gptq"))


def log_softmax(x):
    largest = max(x)
    total = largest + math.log(sum(math.exp(v - largest) for v in x))
    return [v - total for v in x]


NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


class Bench(CliTest):
    keys = ["model", "device", "dtype", "threads", "batch", "prompt", "gen", "prefill_tok_s", "decode_tok_s",
            "decode_ms_per_token", "load_s", "peak_mem_mib", "weight_bytes_per_token", "ceiling_gb_s", "of_bandwidth",
            "ceiling_tflops", "of_compute"]

    def check(self, got, **want):
        self.assertEqual(list(got), self.keys)
        for key, value in want.items():
            self.assertEqual(got[key], value, key)
        for key in self.keys[7:]:
            self.assertGreater(got[key], 0, key)
        self.assertAlmostEqual(got["decode_tok_s"] * got["decode_ms_per_token"], 1000 * got["batch"], delta=1)
        self.assertLess(got["of_compute"], 1.2)

    def test_a_model_and_a_config(self):
        sizes = ("--prompt", "40", "--gen", "5", "--repeat", "2")
        self.check(self.json("bench", "--model", TINY, *sizes, "--batch", "3", "--threads", "1"), batch=3, prompt=40,
                   gen=5, threads=1, device="cpu", model=str(TINY))
        self.check(self.json("bench", "--config", STORYTELLER / "config.json", *sizes), batch=1)
        text = self.out("bench", "--model", TINY, *sizes).decode()
        self.assertIn("prefill", text)
        self.assertIn("decode", text)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[1:]])
