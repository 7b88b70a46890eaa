#!/usr/bin/env python3
"""The command over GGUF files: as stored unless a format is asked for; adapters that fit the Hugging Face folder.
Usage: test_cli_gguf.py PATH-OF-QLORA [unittest options]"""
import unittest

from cli_support import Case, DATA, STORIES, contents, main, needs, run

FILES = {name: DATA / "models" / "gguf" / f"stories260K-{name}.gguf" for name in ("q4_0", "q8_0")}
DENSE = DATA / "models" / "gguf" / "llama-2-tiny-random.gguf"
SHAKESPEARE = DATA / "corpora" / "tinyshakespeare.txt"


@needs(STORIES, DENSE, SHAKESPEARE, *FILES.values())
class Gguf(Case):
    def setUp(self):
        self.data = self.dir / "shakespeare.txt"
        self.data.write_bytes(SHAKESPEARE.read_bytes()[:20000])

    def eval(self, model, *more):
        done = run("eval", "--model", model, "--data", self.data, "--seq-len", 128, "--json", *more)
        self.assertCode(done, 0)
        return done.json()

    def train(self, model, output, *more):
        done = run("finetune", "--model", model, "--data", self.data, "--output", self.dir / output, "--steps", 20,
                   "--seq-len", 128, "--lr", "1e-2", "--val-fraction", 0.1, "--json", *more)
        self.assertCode(done, 0)
        return done

    def test_training_lowers_the_loss_and_fits_the_folder(self):
        for name, path in FILES.items():
            done = self.train(path, f"adapter-{name}")
            report = done.json()
            self.assertEqual(report["format"], name)
            self.assertIn("as stored in the file", done.err)
            self.assertGreater(report["memory"]["mapped"], report["memory"]["codes"])
            self.assertLess(report["held_out_after"]["loss"], report["held_out_before"]["loss"] - 0.5)
            adapter = self.dir / f"adapter-{name}"
            before, tuned = self.eval(path), self.eval(path, "--adapter", adapter)
            folder = self.eval(STORIES, "--adapter", adapter, "--format", "none")
            self.assertLess(tuned["loss"], before["loss"] - 0.5)
            self.assertAlmostEqual(folder["loss"], tuned["loss"], delta=0.1 if name == "q4_0" else 0.005)

    def test_a_format_asked_for(self):
        path = FILES["q4_0"]
        report = self.eval(path, "--format", "int8", "--group-size", 32)
        self.assertEqual(report["format"], "int8 g32 dq")
        self.assertAlmostEqual(report["loss"], self.eval(path, "--format", "none")["loss"], delta=0.02)
        self.assertEqual(self.eval(path, "--no-double-quant")["format"], "nf4 g64")
        words = ("--model", DENSE, "--data", self.data, "--seq-len", 16, "--quiet", "--json")
        self.assertEqual(run("eval", *words).json()["format"], "nf4 g64 dq")

    def test_generate(self):
        words = ("--prompt", "Once upon a time", "--temperature", 0, "--max-tokens", 30)
        stored, folder = (run("generate", "--model", m, *words, "--format", "none") for m in (FILES["q8_0"], STORIES))
        self.assertCode(stored, 0)
        self.assertEqual(stored.out, folder.out)
        self.assertEqual(run("generate", "--model", FILES["q8_0"], *words).out, stored.out)

    def test_plan(self):
        """Blocks as stored, blocks quantized anew, dense files both ways, and a run that goes on from an adapter."""
        classes = ("codes", "scales", "dense", "mapped", "adapters", "gradients", "optimizer", "activations", "workspace")
        base = self.train(FILES["q8_0"], "first", "--rank", 3, "--target-modules", "q_proj,down_proj").json()
        self.assertEqual(base["format"], "q8_0")
        for i, (model, more) in enumerate(((FILES["q4_0"], []), (FILES["q8_0"], ["--format", "int8"]),
                                           (DENSE, ["--format", "none"]), (DENSE, ["--format", "nf4"]),
                                           (STORIES, ["--adapter", self.dir / "first"]),
                                           (FILES["q8_0"], ["--adapter", self.dir / "first"]))):
            words = ["--data", self.data, "--seq-len", 16 if model == DENSE else 64, "--threads", 2, "--json", *more]
            plan = run("plan", "--model", model, "--no-time", *words)
            self.assertCode(plan, 0)
            made = run("finetune", "--model", model, "--output", self.dir / f"planned{i}", "--steps", 1, *words)
            self.assertCode(made, 0)
            kept, memory = plan.json()["kept"], made.json()["memory"]
            self.assertEqual([kept[c] for c in classes], [memory[c] for c in classes], (model, more))
            self.assertEqual(plan.json()["format"], made.json()["format"])

    def test_files_that_lie(self):
        whole = FILES["q4_0"].read_bytes()
        for name, data, words in (("cut", whole[:100000], "is the file complete?"),
                                  ("other", whole.replace(b"llama", b"lhama"), "lhama"),
                                  ("empty", b"GGUF", "ends at byte 4"),
                                  ("vocabulary", (DATA / "tokenizer-vectors" / "ggml-vocab-llama-spm.gguf").read_bytes(),
                                   "token_embd.weight")):
            path = self.dir / f"{name}.gguf"
            path.write_bytes(data)
            self.assertFails(run("eval", "--model", path, "--data", self.data), str(path), words)
        output = self.dir / "none"
        self.assertFails(run("finetune", "--model", self.dir / "cut.gguf", "--data", self.data, "--output", output), "cut")
        self.assertFalse(output.exists())


if __name__ == "__main__":
    main()
