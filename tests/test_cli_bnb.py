#!/usr/bin/env python3
"""The command over bitsandbytes' 4-bit folders: they are trained on as they are stored.
Usage: test_cli_bnb.py PATH-OF-QLORA [unittest options]"""
import json
import pathlib
import shutil

import bnb_model
from cli_support import Case, main, run

KINDS = [("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False)]
LAYER = "model.layers.1.mlp.down_proj.weight"


class Bitsandbytes(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folders = {kind: bnb_model.write_models(cls.model, cls.dir / f"bnb-{i}", cls.dir / f"meant-{i}", *kind)
                       for i, kind in enumerate(KINDS)}
        cls.quantized, cls.meant = cls.folders[KINDS[0]]

    def loss(self, model, *more):
        done = run("eval", "--model", model, "--data", self.text, "--seq-len", 64, "--json", *more)
        self.assertCode(done, 0)
        return done.json()["loss"]

    def test_the_values_are_those_of_the_codes(self):
        as_given = self.loss(self.model, "--format", "none")
        for (kind, nested), (quantized, meant) in self.folders.items():
            wanted, got = self.loss(meant, "--format", "none"), self.loss(quantized)
            self.assertAlmostEqual(got, wanted, delta=2e-6)
            self.assertGreater(abs(wanted - as_given), 1e-4)
            done = run("eval", "--model", quantized, "--data", self.text)
            self.assertIn(f"bnb-{kind} g64{' dq' if nested else ''} as stored", done.out)
            texts = [run("generate", "--model", m, "--prompt", "The", "--temperature", 0, "--max-tokens", 20, *more)
                     for m, more in ((quantized, []), (meant, ["--format", "none"]))]
            self.assertCode(texts[0], 0)
            self.assertEqual(texts[0].out, texts[1].out)

    def test_a_format_given_by_hand_quantizes_anew(self):
        words = ["--format", "int8", "--group-size", 32]
        self.assertAlmostEqual(self.loss(self.quantized, *words), self.loss(self.meant, *words), delta=2e-6)

    def test_training_and_its_plan(self):
        words = ["--seq-len", 32, "--lr", "1e-2", "--steps", 4, "--json", "--threads", 2, "--log"]
        logs = []
        for i, (model, more) in enumerate(((self.quantized, []), (self.meant, ["--format", "none"]))):
            logs.append(self.dir / f"log-{i}")
            done = run("finetune", "--model", model, "--data", self.text, "--output", self.dir / f"out-{i}", *words,
                       logs[-1], *more)
            self.assertCode(done, 0)
            if i == 0:
                held = done.json()["memory"]
        losses = [[json.loads(line)["loss"] for line in log.read_text().splitlines()
                   if "loss" in json.loads(line)] for log in logs]
        self.assertGreaterEqual(len(losses[0]), 4)
        for a, b in zip(*losses):
            self.assertAlmostEqual(a, b, delta=1e-4)
        plan = run("plan", "--model", pathlib.Path(self.quantized) / "config.json", "--seq-len", 32, "--json",
                   "--threads", 2)
        self.assertCode(plan, 0)
        for part in ("codes", "scales", "dense", "mapped", "adapters"):
            self.assertEqual(plan.json()["kept"][part], held[part], part)
        self.assertEqual(plan.json()["format"], "bnb-nf4 g64 dq")

    def test_merging_takes_what_the_codes_stand_for(self):
        adapter = self.dir / "to-merge"
        self.assertCode(run("finetune", "--model", self.quantized, "--data", self.text, "--output", adapter, "--seq-len",
                            32, "--lr", "1e-2", "--steps", 3), 0)
        words = ["--adapter", adapter, "--output"]
        for i, (model, more) in enumerate(((self.quantized, ["--data", self.text]), (self.meant, []))):
            done = run("merge", "--model", model, *words, self.dir / f"merged-{i}", *more)
            self.assertCode(done, 0)
        merged = [bnb_model.read_safetensors(self.dir / f"merged-{i}" / "model.safetensors") for i in range(2)]
        self.assertEqual(merged[0], merged[1])
        config = json.loads((self.dir / "merged-0" / "config.json").read_text())
        self.assertNotIn("quantization_config", config)
        self.assertEqual(config["torch_dtype"], "float32")
        with_adapter = self.loss(self.quantized, "--adapter", adapter)
        self.assertAlmostEqual(self.loss(self.dir / "merged-0", "--format", "none"), with_adapter, delta=1e-4)
        files = [self.dir / f"merged-{i}.gguf" for i in range(2)]
        for model, file in zip((self.quantized, self.meant), files):
            self.assertCode(run("merge", "--model", model, *words, file, "--dtype", "q8_0"), 0)
        sizes = [file.stat().st_size for file in files]
        self.assertAlmostEqual(sizes[0], sizes[1], delta=64) # the names of the folders are in them
        self.assertAlmostEqual(self.loss(files[0]), self.loss(files[1]), delta=1e-6)
        self.assertFails(run("merge", "--model", self.quantized, *words, self.dir / "no", "--from", "quantized"),
                         "as it is stored")

    def test_layers_left_dense(self):
        mixed, meant = bnb_model.write_models(self.model, self.dir / "mixed", self.dir / "mixed-meant",
                                              dense_layers=["layers.0.mlp", "layers.1.self_attn.q_proj"])
        self.assertAlmostEqual(self.loss(mixed), self.loss(meant, "--format", "none"), delta=2e-6)
        self.assertFails(run("plan", "--model", mixed), "llm_int8_skip_modules")

    def broken(self, change):
        """A copy of the folder whose tensors `change` has changed."""
        folder = self.dir / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.quantized, folder)
        tensors = bnb_model.read_safetensors(folder / "model.safetensors")
        change(tensors)
        bnb_model.write_safetensors(folder / "model.safetensors", tensors)
        return run("eval", "--model", folder, "--data", self.text)

    def test_broken_checkpoints(self):
        state = LAYER + ".quant_state.bitsandbytes__nf4"

        def edit(**values):
            def change(tensors):
                text = json.dumps({**json.loads(tensors[state][2]), **values}).encode()
                tensors[state] = ("U8", [len(text)], text)
            return change

        def cut(part, shape, size):
            return lambda t: t.__setitem__(LAYER + part, (t[LAYER + part][0], shape, t[LAYER + part][2][:size]))

        for change, words in (
                (edit(shape=[48, 32]), ["48 x 32", "32 x 48"]),
                (edit(blocksize=48), ["absmax"]),
                (edit(blocksize=1 << 40), ["blocksize"]),
                (edit(quant_type="fp4"), ["contradicts"]),
                (edit(nested_offset="x"), ["nested_offset"]),
                (edit(nested_offset=1e39), ["nested_offset"]),
                (cut("", [10, 1], 10), ["10 bytes", "768"]),
                (cut(".absmax", [7], 7), ["absmax"]),
                (cut(".nested_quant_map", [255], 1020), ["nested_quant_map"]),
                (lambda t: t.pop(LAYER + ".nested_absmax"), ["nested_absmax", "no tensor"]),
                (lambda t: t.pop(state), [LAYER]),
                (lambda t: t.__setitem__(LAYER + ".quant_map", ("F32", [16], bytes(64))), ["quant_map", "means 0"])):
            with self.subTest(words=words):
                done = self.broken(change)
                self.assertFails(done, "down_proj", *words)

    def test_other_quantizations_are_refused_by_name(self):
        folder = self.dir / "other"
        shutil.copytree(self.quantized, folder)
        config = json.loads((folder / "config.json").read_text())
        for quantization, name in (({"quant_method": "bitsandbytes", "load_in_8bit": True}, "LLM.int8"),
                                   ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
                                   ({"quant_method": "awq", "bits": 4}, "AWQ"),
                                   ({"quant_method": "hqq"}, "hqq"),
                                   ({"quant_method": "bitsandbytes", "load_in_4bit": True,
                                     "bnb_4bit_quant_type": "int4"}, "int4")):
            (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
            for command in (["eval", "--data", self.text], ["plan"]):
                self.assertFails(run(*command, "--model", folder), name)


if __name__ == "__main__":
    main()
