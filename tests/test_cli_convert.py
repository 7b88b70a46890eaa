#!/usr/bin/env python3
"""The commands that carry adapters elsewhere: export and merge.
Usage: test_cli_convert.py PATH-OF-QLORA [unittest options]"""
import json
import pathlib
import resource
import shutil
import signal
import struct

from cli_support import Case, DATA, STORIES, contents, main, needs, plain_signals, run, start

FILES = {name: DATA / "models" / "gguf" / f"stories260K-{name}.gguf" for name in ("q4_0", "q8_0")}
TRAINED = DATA / "finetune-reference" / "lora-fp32-qv" / "adapter_final"
RANDOM = [DATA / "models" / "tiny-random" / name for name in ("tiny_llama3", "tiny_qwen3")]
EXCERPT = DATA / "corpora" / "tinystories-excerpt.txt"


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
                               (["merge", "--dtype", "f8"], "must be one of bf16|f16|f32|q8_0"),
                               (["merge", "--format", "nf4"], "--format needs --from quantized")):
            done = run(*words, *self.words, "--output", self.dir / "never")
            self.assertFails(done, message, code=2)
        self.assertFalse((self.dir / "never").exists())

    def test_refusals(self):
        before = contents(self.model)
        self.assertFails(run("merge", *self.words, "--output", self.model), "this is the model itself")
        self.assertEqual(contents(self.model), before)
        nowhere = self.dir / "nowhere"
        for command in (["merge"], ["export", "--to", "gguf"], ["export", "--to", "mlx"]):
            out = self.dir / "refused"
            done = run(*command, "--model", self.model, "--adapter", nowhere, "--output", out)
            self.assertFails(done, "qlora: error: ", str(nowhere))
            self.assertFalse(out.exists())
            done = run(*command, *self.words, "--output", "/proc/qlora")
            self.assertFails(done, "qlora: error: ", "/proc/qlora")

    def test_signals_leave_nothing(self):
        """Ctrl-C while a file is written: nothing half-written stays, and no empty folder."""
        stopped = 0
        for attempt in range(200):
            out = self.dir / f"stopped{attempt}"
            number = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[attempt % 3]
            if attempt % 2:
                out.mkdir()
                (out / "model.safetensors").write_bytes(b"before")
            process = start("merge", *self.words, "--output", out)
            while process.poll() is None and not list(out.glob("model.safetensors.tmp-*")):
                pass
            process.send_signal(number)
            process.communicate()
            if process.returncode == 0:
                continue  # it was faster
            self.assertEqual(process.returncode, -number)
            there = contents(out) if out.exists() else {"no": "folder"}
            self.assertFalse([name for name in there if ".tmp-" in name] or not there, there)
            stopped += out.exists() == bool(attempt % 2) and there.get("model.safetensors", b"before") == b"before"
            if stopped == 6:
                break
        self.assertGreater(stopped, 0)

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


@needs(*RANDOM)
class Architectures(Case):
    """Folders of other kinds (scaled rotations, heads of their own, norms of q and k) as GGUF files."""

    def test_folders_become_files(self):
        for source in RANDOM:
            folder = self.dir / source.name
            shutil.copytree(source, folder)
            tokenizer = json.loads((pathlib.Path(self.model) / "tokenizer.json").read_text())
            (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": []}))
            adapter, out = self.dir / (source.name + "-adapter"), self.dir / (source.name + ".gguf")
            done = run("finetune", "--model", folder, "--data", self.text, "--output", adapter, "--seq-len", 32, "--steps",
                       3, "--lr", "1e-2", "--rank", 4, "--format", "none")
            self.assertCode(done, 0)
            report = run("merge", "--model", folder, "--adapter", adapter, "--output", out, "--dtype", "f32", "--data",
                         self.text, "--seq-len", 64, "--json").json()
            self.assertGreater(abs(report["base"]["loss"] - report["before"]["loss"]), 0.01)
            self.assertLess(abs(report["rounding_cost"]), 1e-5)


class Mistral(Case):
    """In GGUF files it is a Llama; with a window it has no place there."""

    def folder(self, name, **changes):
        folder = self.dir / name
        shutil.copytree(self.model, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    def test_becomes_a_llama(self):
        model = self.folder("mistral", model_type="mistral", sliding_window=None)
        adapter, out = self.dir / "mistral-adapter", self.dir / "mistral.gguf"
        self.assertCode(run("finetune", "--model", model, "--data", self.text, "--output", adapter, "--seq-len", 32,
                            "--steps", 3, "--lr", "1e-2", "--rank", 4, "--format", "none"), 0)
        report = run("merge", "--model", model, "--adapter", adapter, "--output", out, "--dtype", "f32", "--data",
                     self.text, "--seq-len", 64, "--json").json()
        self.assertLess(abs(report["rounding_cost"]), 1e-5)
        self.assertIn(b"\x05\0\0\0\0\0\0\0llama", out.read_bytes()[:200])
        for name, changes, words in (("window", {"sliding_window": 16}, "a sliding window"),
                                     ("gemma", {"model_type": "gemma2"}, "architecture gemma2")):
            windowed = self.folder(name, **{"model_type": "mistral", **changes})
            refused = self.dir / "refused.gguf"
            for command in (["merge"], ["export", "--to", "gguf"]):
                done = run(*command, "--model", windowed, "--adapter", adapter, "--output", refused)
                self.assertFails(done, words)
                self.assertFalse(refused.exists())


@needs(STORIES, TRAINED, EXCERPT, *FILES.values())
class Gguf(Case):
    """Files merged into files."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.data = cls.dir / "stories.txt"
        cls.data.write_bytes(EXCERPT.read_bytes()[:20000])

    def merge(self, model, output, *more, adapter=TRAINED):
        done = run("merge", "--model", model, "--adapter", adapter, "--output", self.dir / output, "--data", self.data,
                   "--seq-len", 128, "--json", *more)
        self.assertCode(done, 0)
        return done.json()

    def generate(self, *words):
        done = run("generate", "--prompt", "Once upon a time", "--temperature", 0, "--max-tokens", 60, "--format", "none",
                   *words)
        self.assertCode(done, 0)
        return done.out

    def zeros(self):
        """The trained adapter with B = 0."""
        folder = self.dir / "zeros"
        folder.mkdir(exist_ok=True)
        shutil.copy(TRAINED / "adapter_config.json", folder)
        raw = bytearray((TRAINED / "adapter_model.safetensors").read_bytes())
        start = 8 + struct.unpack("<Q", raw[:8])[0]
        for name, tensor in json.loads(raw[8:start]).items():
            if name.endswith("lora_B.weight"):
                begin, end = (start + offset for offset in tensor["data_offsets"])
                raw[begin:end] = bytes(end - begin)
        (folder / "adapter_model.safetensors").write_bytes(raw)
        return folder

    def test_zeros_change_no_bit(self):
        zeros = self.zeros()
        for name, path in FILES.items():
            report = self.merge(path, "same.gguf", adapter=zeros)
            self.assertEqual((report["max_error"], report["merged"]), (0, 10))
            self.assertEqual(report["after"]["loss"], report["before"]["loss"])
            data = path.read_bytes()[-report["bytes"]:]
            self.assertEqual((self.dir / "same.gguf").read_bytes()[-len(data):], data)

    def test_merged_files_say_the_same(self):
        base = self.generate("--model", FILES["q8_0"])
        want = self.generate("--model", FILES["q8_0"], "--adapter", TRAINED)
        self.assertNotEqual(base, want)
        for dtype, near, error in (("f32", 1e-4, 0), ("f16", 1e-3, 2 ** -10), ("q8_0", 0.02, 0.02), ("q4_0", 0.5, 0.2)):
            report = self.merge(FILES["q8_0"], dtype + ".gguf", "--dtype", dtype)
            self.assertLess(abs(report["after"]["loss"] - report["before"]["loss"]), near)
            self.assertLessEqual(report["max_error"], error)
        self.assertEqual(self.generate("--model", self.dir / "f32.gguf"), want)
        self.assertEqual(self.generate("--model", self.dir / "f16.gguf"), want)

    def tensors(self, path):
        """Type and data of each tensor of a GGUF file."""
        raw = path.read_bytes()
        at, found = 24, {}

        def take(form):
            nonlocal at
            value = struct.unpack_from("<" + form, raw, at)[0]
            at += struct.calcsize("<" + form)
            return value

        def text():
            nonlocal at
            length = take("Q")
            at += length
            return raw[at - length:at].decode()

        def skip(kind):
            nonlocal at
            if kind == 8:
                text()
            elif kind == 9:
                element, count = take("I"), take("Q")
                for _ in range(count):
                    skip(element)
            else:
                at += (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)[kind]

        count, values = struct.unpack_from("<QQ", raw, 8)
        for _ in range(values):
            text()
            skip(take("I"))
        infos = []
        for _ in range(count):
            name = text()
            shape = [take("Q") for _ in range(take("I"))]
            infos.append((name, shape, take("I"), take("Q")))
        start = (at + 31) // 32 * 32
        blocks = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34)}
        for name, shape, kind, offset in infos:
            elements = 1
            for side in shape:
                elements *= side
            size = elements // blocks[kind][0] * blocks[kind][1]
            found[name] = (kind, raw[start + offset:start + offset + size])
        return found

    def test_a_folder_becomes_a_file(self):
        """Without a change the tensors are those of files that another program made of the same model."""
        zeros = self.zeros()
        for name, path in FILES.items():
            report = self.merge(STORIES, "folder.gguf", "--dtype", name, adapter=zeros)
            ours, theirs = self.tensors(self.dir / "folder.gguf"), self.tensors(path)
            self.assertEqual(sorted(ours), sorted(theirs))
            for tensor, (kind, data) in theirs.items():
                if name == "q4_0" and tensor == "token_embd.weight":
                    self.assertEqual(ours[tensor][0], 8)  # Q8_0: it is the LM head too
                else:
                    self.assertTrue(ours[tensor] == (kind, data), tensor)
            self.assertEqual(report["base"]["loss"], report["before"]["loss"])
            self.assertEqual(report["rounding_cost"], report["after"]["loss"] - report["before"]["loss"])

    def test_a_folder_and_its_file_say_the_same(self):
        want = self.generate("--model", STORIES, "--adapter", TRAINED)
        for dtype, near in ((None, 1e-4), ("f32", 1e-4), ("f16", 1e-3), ("bf16", 0.01), ("q8_0", 0.01), ("q4_0", 0.3)):
            report = self.merge(STORIES, "out.gguf", *(("--dtype", dtype) if dtype else ()))
            self.assertLess(abs(report["rounding_cost"]), near)
            self.assertNotEqual(report["base"]["loss"], report["before"]["loss"])
            if dtype in (None, "f32", "f16"):
                self.assertEqual(self.generate("--model", self.dir / "out.gguf"), want)
        report = self.merge(STORIES, "out.gguf", "--dtype", "f32", "--from", "quantized")
        self.assertLess(abs(report["rounding_cost"]), 1e-4)

    def test_an_exported_folder_and_file_agree(self):
        """The GGUF base has its rows in another order than the folder: one adapter fits both."""
        self.merge(FILES["q8_0"], "file.gguf", "--dtype", "f32")
        self.merge(STORIES, "folder", "--dtype", "f32")
        file, folder = (run("eval", "--model", self.dir / name, "--data", self.data, "--seq-len", 128, "--format", "none",
                            "--json").json()["loss"] for name in ("file.gguf", "folder"))
        self.assertAlmostEqual(file, folder, delta=0.005)

    def test_refusals(self):
        copy = shutil.copy(FILES["q8_0"], self.dir / "copy.gguf")
        before = copy.read_bytes()
        words = ("--adapter", TRAINED, "--output")
        self.assertFails(run("merge", "--model", copy, *words, copy), "this is the model itself")
        self.assertEqual(copy.read_bytes(), before)
        self.assertFails(run("merge", "--model", copy, *words, self.dir / "no.gguf", "--from", "quantized"),
                         "merged into as it is stored")
        self.assertFails(run("merge", "--model", STORIES, *words, self.dir / "no", "--dtype", "q8_0"),
                         "cannot have this type of weights")
        self.assertFails(run("merge", "--model", FILES["q4_0"], *words, copy, before=limit), "File too large")
        self.assertEqual(copy.read_bytes(), before)
        self.assertFalse((self.dir / "no").exists() or (self.dir / "no.gguf").exists())


if __name__ == "__main__":
    main()
