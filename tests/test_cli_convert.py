#!/usr/bin/env python3
"""The commands that carry adapters elsewhere: export and merge.
Usage: test_cli_convert.py PATH-OF-QLORA [unittest options]"""
import json
import pathlib
import resource

from cli_support import Case, contents, main, plain_signals, run


def limit():
    plain_signals()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


class Convert(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.adapter = cls.dir / "adapter"
        done = run("finetune", "--model", cls.model, "--data", cls.text, "--output", cls.adapter, "--seq-len", 32,
                   "--steps", 5, "--lr", "1e-2", "--rank", 4, "--format", "none")
        assert done.code == 0, done.err
        cls.words = ("--model", cls.model, "--adapter", cls.adapter)

    def loss(self, *words):
        return run("eval", "--data", self.text, "--seq-len", 64, "--format", "none", "--json", *words).json()["loss"]

    def test_export(self):
        for target in ("gguf", "mlx", "peft"):
            out = self.dir / ("exported-" + target)
            report = run("export", *self.words, "--to", target, "--output", out, "--json").json()
            self.assertEqual((report["to"], report["output"]), (target, str(out)))
            people = run("export", *self.words, "--to", target, "--output", out)
            self.assertCode(people, 0)
            self.assertIn(str(out), people.out)
            self.assertEqual(run("export", *self.words, "--to", target, "--output", out, "--quiet").out, "")
        self.assertEqual((self.dir / "exported-gguf").read_bytes()[:4], b"GGUF")
        config = json.loads((self.dir / "exported-mlx" / "adapter_config.json").read_text())
        self.assertEqual(config["lora_parameters"]["rank"], 4)
        self.assertEqual(self.loss("--model", self.model, "--adapter", self.dir / "exported-peft"),
                         self.loss(*self.words))

    def test_merge(self):
        base, adapted = self.loss("--model", self.model), self.loss(*self.words)
        self.assertGreater(abs(base - adapted), 0.1)
        for dtype, near in ((None, 1e-4), ("f32", 1e-4), ("f16", 1e-3), ("bf16", 1e-2)):
            out = self.dir / f"merged-{dtype}"
            words = (*self.words, "--output", out, "--data", self.text, "--seq-len", 64,
                     *(["--dtype", dtype] if dtype else []))
            report = run("merge", *words, "--json").json()
            self.assertEqual(report["before"]["loss"], adapted)
            self.assertEqual(report["after"]["loss"], self.loss("--model", out))
            self.assertLess(abs(report["after"]["loss"] - adapted), near)
            self.assertEqual(report["max_error"] > 0, dtype in ("f16", "bf16"))
            people = run("merge", *words)
            self.assertCode(people, 0)
            for part in ("14 of", str(out), f"{adapted:.6f} before", "Rounding"):
                self.assertIn(part, people.out)
            config = json.loads((out / "config.json").read_text())
            want = json.loads((pathlib.Path(self.model) / "config.json").read_text())
            names = {"f16": "float16", "bf16": "bfloat16"}
            self.assertEqual(config, {**want, "torch_dtype": names.get(dtype, "float32")})
            for name in ("tokenizer.json", "tokenizer_config.json"):
                self.assertEqual((out / name).read_bytes(), (pathlib.Path(self.model) / name).read_bytes())

    def test_merge_from_quantized(self):
        out = self.dir / "merged-quantized"
        report = run("merge", *self.words, "--output", out, "--from", "quantized", "--format", "int4", "--data",
                     self.text, "--seq-len", 64, "--json").json()
        self.assertIn("int4", report["format"])
        trained = run("eval", *self.words, "--data", self.text, "--seq-len", 64, "--format", "int4", "--json").json()
        self.assertEqual(report["before"]["loss"], trained["loss"])
        self.assertLess(abs(report["after"]["loss"] - trained["loss"]), 1e-4)
        self.assertGreater(abs(report["after"]["loss"] - self.loss(*self.words)), 1e-4)

    def test_wrong_usage(self):
        for words, message in ((["export"], "--to gguf|mlx|peft is missing"),
                               (["export", "--to", "onnx"], "must be one of gguf|mlx|peft"),
                               (["merge", "--dtype", "f8"], "must be one of bf16|f16|f32"),
                               (["merge", "--format", "nf4"], "--format needs --from quantized")):
            done = run(*words, *self.words, "--output", self.dir / "never")
            self.assertFails(done, message, code=2)
        self.assertFalse((self.dir / "never").exists())

    def test_refusals(self):
        before = contents(self.model)
        self.assertFails(run("merge", *self.words, "--output", self.model), "the model's own folder")
        self.assertEqual(contents(self.model), before)
        nowhere = self.dir / "nowhere"
        for command in (["merge"], ["export", "--to", "gguf"], ["export", "--to", "mlx"]):
            out = self.dir / "refused"
            done = run(*command, "--model", self.model, "--adapter", nowhere, "--output", out)
            self.assertFails(done, "qlora: error: ", str(nowhere))
            self.assertFalse(out.exists())
            done = run(*command, *self.words, "--output", "/proc/qlora")
            self.assertFails(done, "qlora: error: ", "/proc/qlora")

    def test_full_disk(self):
        for command in (["merge"], ["export", "--to", "mlx"], ["export", "--to", "peft"]):
            out = self.dir / ("full-" + command[-1])
            self.assertCode(run(*command, *self.words, "--output", out), 0)
            there = contents(out)
            self.assertFails(run(*command, *self.words, "--output", out, before=limit), "qlora: error: ", str(out))
            self.assertEqual(contents(out), there)
        fresh = self.dir / "fresh"
        self.assertCode(run("merge", *self.words, "--output", fresh, before=limit), 1)
        self.assertFalse(fresh.exists(), "an empty folder of a failed run stays behind")
        file = self.dir / "full.gguf"
        self.assertCode(run("export", "--to", "gguf", *self.words, "--output", file), 0)
        there = file.read_bytes()
        self.assertFails(run("export", "--to", "gguf", *self.words, "--output", file, before=limit), "File too large")
        self.assertEqual(file.read_bytes(), there)
        self.assertEqual([p.name for p in self.dir.glob("full.gguf*")], ["full.gguf"])


if __name__ == "__main__":
    main()
