#!/usr/bin/env python3
"""`qlora plan`, and `qlora finetune --max-memory`: the plan and the run hold the same bytes.
Usage: test_cli_plan.py PATH-OF-QLORA [unittest options]"""
import os
import pathlib
import shutil
import subprocess

from cli_support import Case, DATA, STORIES, binary, main, needs, run

CLASSES = ("codes", "scales", "dense", "mapped", "adapters", "gradients", "optimizer", "activations", "workspace")
TEXT = DATA / "corpora" / "tinyshakespeare.txt"
CONFIG = DATA / "configs" / "Qwen2.5-0.5B-Instruct.config.json"


class Plan(Case):
    def plan(self, *more, model=None):
        return run("plan", "--model", model or self.model, "--threads", 2, *more)

    def test_the_run_holds_what_the_plan_says(self):
        for i, words in enumerate((["--format", "none"], ["--recompute", "--rank", 3],
                                   ["--batch-size", 3, "--dropout", 0.1, "--head-format", "int8"],
                                   ["--format", "int8", "--target-modules", "q_proj,down_proj"])):
            words = ["--data", self.text, "--seq-len", 32, "--json", "--val-fraction", 0.2, *words]
            plan = self.plan(*words)
            self.assertCode(plan, 0)
            plan = plan.json()
            made = run("finetune", "--model", self.model, "--threads", 2, "--output", self.dir / f"run{i}", "--steps",
                       1, *words)
            self.assertCode(made, 0)
            held, way = made.json()["memory"], plan["recomputed" if "--recompute" in words else "kept"]
            self.assertEqual(way, plan["chosen"])
            self.assertEqual([held[c] for c in CLASSES], [way[c] for c in CLASSES])
            self.assertEqual(way["total"], sum(way[c] for c in CLASSES) + way["evaluation"] + way["process"])
            self.assertGreater(way["evaluation"], 0)
            self.assertGreater(plan["kept"]["activations"], plan["recomputed"]["activations"])

    def test_a_budget_gives_the_same_batches_in_less_memory(self):
        words = ["--data", self.text, "--seq-len", 120, "--batch-size", 8, "--json"]
        asked = self.plan(*words).json()
        # half of the activations: more than what the process itself takes varies by, with sanitizers too
        budget = asked["kept"]["total"] - asked["kept"]["activations"] // 2
        fitted = self.plan(*words, "--max-memory", budget).json()
        self.assertTrue(fitted["fits"])
        self.assertEqual(fitted["batch_size"] * fitted["grad_accum"], 8)
        self.assertNotEqual((fitted["batch_size"], fitted["recompute"]), (8, 0))
        done = run("finetune", "--model", self.model, "--threads", 2, "--output", self.dir / "fitted", "--steps", 2,
                   "--max-memory", budget, *words)
        self.assertCode(done, 0)
        self.assertIn("planned", done.err)
        held = done.json()["memory"]
        self.assertLess(held["activations"], asked["kept"]["activations"])
        self.assertLess(held["planned"], asked["kept"]["total"] + (4 << 20))
        refused = run("finetune", "--model", self.model, "--output", self.dir / "no", "--max-memory", "1M", *words)
        self.assertFails(refused, "1000000 bytes are not enough", "the run needs ")
        self.assertFalse((self.dir / "no").exists())
        self.assertFails(self.plan(*words, "--max-memory", "1Mi"), "1048576 bytes are not enough")

    @needs(STORIES, TEXT)
    def test_the_peak_is_what_was_planned(self):
        """With so many tokens that what a process varies by, about a megabyte, is less; sanitizers have memory of their
        own."""
        if "libasan" in subprocess.run(["ldd", binary()], capture_output=True, text=True).stdout:
            return
        os.environ.pop("MALLOC_PERTURB_", None)  # Meson's: it touches memory that a run does not
        text = self.dir / "peak.txt"
        text.write_bytes(TEXT.read_bytes()[:60000])
        for i, words in enumerate((["--threads", 1], ["--threads", 2, "--recompute"],
                                   ["--threads", 8, "--optim", "adamw8bit", "--activations", "f32", "--rank", 32],
                                   ["--threads", 2, "--val-fraction", 0.05, "--compute", "bf16"])):
            words = ["--model", STORIES, "--data", text, "--batch-size", 32, "--seq-len", 256, "--json", *words]
            memory = run("finetune", *words, "--steps", 2, "--output", self.dir / f"peak{i}").json()["memory"]
            self.assertLess(abs(memory["peak_resident"] / memory["planned"] - 1), 0.03, (words, memory))
            plan = run("plan", *words, "--no-time").json()["recomputed" if "--recompute" in words else "kept"]
            self.assertLess(abs(memory["peak_resident"] / plan["total"] - 1), 0.03, (words, memory, plan))

    def test_the_time_of_a_step(self):
        words = ["--json", "--seq-len", 64, "--batch-size", 3, "--grad-accum", 2]
        plan = self.plan(*words).json()
        for way in ("kept", "recomputed"):
            seconds = plan[way]["seconds_per_step"]
            self.assertGreater(seconds, 0)
            self.assertAlmostEqual(plan[way]["tokens_per_second"] * seconds, 2 * 3 * 64, delta=1e-6)
        self.assertGreater(plan["recomputed"]["seconds_per_step"], plan["kept"]["seconds_per_step"])
        self.assertNotIn("seconds_per_step", self.plan(*words, "--no-time").json()["kept"])
        self.assertIn("Tokens a second", self.plan("--seq-len", 64).out)

    def test_configuration_alone(self):
        alone = self.dir / "alone.json"
        shutil.copy(pathlib.Path(self.model) / "config.json", alone)
        done = self.plan("--seq-len", 64, model=alone)
        self.assertCode(done, 0)
        for words in ("base codes", "activations", "with --recompute", "in all"):
            self.assertIn(words, done.out)
        self.assertFails(self.plan("--data", self.text, model=alone), "tokenizer.json")
        self.assertFails(self.plan("--adapter", self.dir, model=alone), "adapter_config.json")
        self.assertFails(self.plan("--max-memory", "2X", model=alone), "--max-memory 2X: must be bytes", code=2)
        self.assertFails(self.plan("--max-memory", "-2G", model=alone), "must be bytes", code=2)

    @needs(CONFIG)
    def test_a_real_shape(self):
        plan = self.plan("--json", "--batch-size", 1, "--recompute", model=CONFIG).json()
        self.assertEqual(plan["parameters"], 494032768)
        self.assertEqual(plan["kept"]["codes"], 24 * (2 * 896 * 896 + 2 * 128 * 896 + 3 * 896 * 4864) // 2)
        self.assertEqual(plan["kept"]["mapped"], 151936 * 896 * 2)
        self.assertLess(plan["recomputed"]["total"], 3e9)
        self.assertEqual((plan["recompute"], plan["chosen"]["total"]), (23, plan["recomputed"]["total"]))

    @needs(CONFIG)
    def test_as_many_blocks_as_memory_asks_for(self):
        words = ["--json", "--batch-size", 1, "--no-time"]
        plan = self.plan(*words, "--recompute", 12, model=CONFIG).json()
        total = plan["chosen"]["total"]
        self.assertTrue(plan["recomputed"]["total"] < total < plan["kept"]["total"])
        spare = 1 << 20  # a block takes more; what the process itself takes varies by less
        fitted = self.plan(*words, "--max-memory", total + spare, model=CONFIG).json()
        self.assertEqual((fitted["recompute"], fitted["batch_size"]), (12, 1))
        self.assertLess(self.plan(*words, "--recompute", 11, model=CONFIG).json()["chosen"]["total"] - total, 30 << 20)
        done = self.plan(*words[1:], "--max-memory", total + spare, model=CONFIG).out
        self.assertIn("--recompute 12", done)
        self.assertFails(self.plan("--recompute", "most", model=CONFIG), "--recompute most: must be none, all or", code=2)


if __name__ == "__main__":
    main()
