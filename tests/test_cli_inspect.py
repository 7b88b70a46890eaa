#!/usr/bin/env python3
"""`qlora inspect`: data as the model meets it, and files that are whole or broken.
Usage: test_cli_inspect.py PATH-OF-QLORA [unittest options]"""
import array
import json
import os
import pathlib
import pty
import shutil
import struct
import subprocess

from cli_support import Case, DATA, binary, main, needs, run

GREEN, RESET = "\x1b[32m", "\x1b[0m"


def chat(*turns):
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def read_safetensors(path):
    raw = pathlib.Path(path).read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:8 + length]), bytearray(raw[8 + length:])


def write_safetensors(path, header, data):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def on_a_terminal(*words, **environment):
    """What the command writes when standard output is a terminal."""
    host, terminal = pty.openpty()
    process = subprocess.Popen([binary(), *map(str, words)], stdout=terminal, env={**os.environ, "TERM": "xterm", **environment})
    os.close(terminal)
    out = b""
    while True:
        try:
            piece = os.read(host, 65536)
        except OSError:
            break
        if not piece:
            break
        out += piece
    os.close(host)
    assert process.wait() == 0, out
    return out.decode()


class Data(Case):
    def look(self, lines, *more):
        path = self.dir / "look.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run("inspect", path, "--model", self.model, *more)

    def test_samples_show_what_is_learned(self):
        done = self.look([chat(("user", "Hi\t<|im_end|>"), ("assistant", "Yo\x1b[31m"))], "--color", "never")
        self.assertCode(done, 0)
        self.assertIn("|H|i|\\t|<|||i|m|_|e|n|d|||>|<|im_end|>|", done.out)  # words are no special token
        self.assertIn("[[Y|o|\\x1b|[|3|1|m|<|im_end|>]]\\n", done.out)
        self.assertNotIn("\x1b", done.out)
        done = self.look([{"prompt": "a", "completion": "b"}], "--color", "always")
        self.assertIn("\x1b[90ma" + RESET, done.out)
        self.assertIn("\x1b[1;32mb" + RESET + GREEN + "<|endoftext|>" + RESET, done.out)

    def test_colour_is_for_terminals(self):
        path = self.dir / "tty.jsonl"
        path.write_text(json.dumps({"prompt": "a", "completion": "b"}))
        words = ("inspect", path, "--model", self.model)
        self.assertIn(GREEN, on_a_terminal(*words, NO_COLOR=""))
        self.assertNotIn("\x1b", on_a_terminal(*words, NO_COLOR="1"))
        self.assertNotIn("\x1b", on_a_terminal(*words, TERM="dumb"))
        self.assertNotIn("\x1b", on_a_terminal(*words, "--color", "never"))
        self.assertNotIn("\x1b", run(*words).out)

    def test_numbers_and_samples_as_json(self):
        lines = [{"prompt": "ab", "completion": "c" * n} for n in (1, 2, 30, 60)] + [{"prompt": "q" * 70, "completion": "r"}]
        done = self.look(lines, "--seq-len", 40, "--samples", 1, "--json")
        self.assertCode(done, 0)
        got = done.json()
        self.assertEqual({k: got[k] for k in ("samples", "tokens", "learned", "shortest", "median", "longest", "too_long",
                                              "lost", "emptied", "no_end", "twice", "double_bos")},
                         {"samples": 5, "tokens": 4 + 5 + 33 + 63 + 72, "learned": 2 + 3 + 31 + 61 + 2, "shortest": 4,
                          "median": 33, "longest": 72, "too_long": 2, "lost": 22 + 2, "emptied": 1, "no_end": 0, "twice": 0,
                          "double_bos": 0})
        self.assertEqual(got["lengths"], {"4": 2, "32": 2, "64": 1})
        self.assertEqual(got["shown"], [{"length": 4, "learned": 2, "ids": [97, 98, 99, 256], "learn": [0, 0, 1, 1],
                                         "tokens": ["a", "b", "c", "<|endoftext|>"]}])
        self.assertEqual(len(got["warnings"]), 2)
        self.assertEqual(got["faults"], [])
        # the same that a run says of its data
        seen = run("eval", "--model", self.model, "--data", self.dir / "look.jsonl", "--seq-len", 40, "--json").json()
        self.assertEqual(seen["learned"], got["learned"] - got["lost"])
        self.assertEqual(seen["samples"], got["samples"] - got["emptied"])

    def test_what_is_suspicious_is_named(self):
        lines = [chat(("user", "a"), ("assistant", ""))] * 2
        done = self.look(lines)
        self.assertIn("2 samples have empty answers", done.out)
        self.assertIn("1 samples are repetitions of others", done.out)
        model = self.dir / "warned"
        shutil.copytree(self.model, model)
        config = json.loads((model / "tokenizer_config.json").read_text())
        config.update(bos_token="<|im_start|>", add_bos_token=True, eos_token=None, pad_token="<|im_end|>")
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        path = self.dir / "texts.jsonl"
        path.write_text(json.dumps({"text": "<|im_start|>words"}) + "\n")
        done = run("inspect", path, "--model", model, "--json").json()
        self.assertEqual((done["double_bos"], done["no_end"]), (1, 1))
        for words in ("begin with two BOS", "no end token stands behind", 'padding token "<|im_end|>" is an end token'):
            self.assertTrue(any(words in w for w in done["warnings"]), (words, done["warnings"]))
        config["chat_template"] = "..{% for m in messages %}{{ m.content if loop.last else '' }}{% endfor %}"
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        path.write_text(json.dumps(chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))) + "\n")
        done = run("inspect", path, "--model", model, "--json").json()
        self.assertTrue(any("not prefix-stable" in w and "first on line 1" in w for w in done["warnings"]), done["warnings"])

    def test_text_is_cut_into_samples(self):
        done = run("inspect", self.text, "--model", self.model, "--seq-len", 32, "--json").json()
        self.assertTrue(done["packed"])
        self.assertEqual((done["longest"], done["too_long"]), (33, 0))
        self.assertFails(run("inspect", self.text), "--model is missing", code=2)
        self.assertFails(self.look([{"x": 1}]), "look.jsonl:1")


class Files(Case):
    def look(self, path, *more, code=0):
        done = run("inspect", path, "--json", *more)
        self.assertCode(done, code)
        return done.json()

    def broken(self, name, change):
        """A copy of the model whose weights `change` has changed."""
        folder = self.dir / name
        shutil.copytree(self.model, folder)
        header, data = read_safetensors(folder / "model.safetensors")
        change(header, data)
        write_safetensors(folder / "model.safetensors", header, data)
        return folder

    def test_a_model(self):
        got = self.look(self.model, "--values")
        self.assertEqual(got["kind"], "model")
        self.assertEqual((got["faults"], got["warnings"]), ([], []))
        self.assertEqual(got["facts"]["architecture"], "llama")
        self.assertEqual(got["facts"]["layers"], 2)
        self.assertEqual(got["facts"]["values read"], got["facts"]["parameters"])
        self.assertEqual(got["facts"]["chat template"], "runs")
        self.assertEqual(got["total"]["tensors"], len(got["tensors"]))
        self.assertEqual(got["total"]["bytes"], 4 * got["facts"]["parameters"])
        self.assertIn({"name": "model.layers.1.mlp.up_proj.weight", "type": "F32", "shape": [48, 32], "bytes": 4 * 48 * 32,
                       "file": str(pathlib.Path(self.model) / "model.safetensors")}, got["tensors"])
        words = run("inspect", self.model, "--tensors", 3)
        self.assertCode(words, 0)
        for part in ("architecture          llama", "... and ", "Nothing is wrong with it."):
            self.assertIn(part, words.out)
        self.assertEqual(run("inspect", self.model, "--quiet").out, "")

    def test_missing_and_wrong_tensors(self):
        def drop(header, data):
            for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"):
                header[name + ".else"] = header.pop(name)
            header["model.layers.1.self_attn.k_proj.weight"]["shape"].reverse()

        faults = "\n".join(self.look(self.broken("dropped", drop), code=1)["faults"])
        self.assertIn("model.layers.0.self_attn.q_proj.weight", faults)
        self.assertIn("tensor model.layers.1.mlp.up_proj.weight is missing", faults)
        self.assertIn("model.layers.1.self_attn.k_proj.weight is 32 x 16, the configuration needs 16 x 32", faults)

    def test_numbers_that_are_none(self):
        def spoil(header, data):
            begin = header["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0]
            data[begin + 20:begin + 28] = array.array("f", [float("nan"), float("-inf")]).tobytes()

        folder = self.broken("spoilt", spoil)
        self.look(folder)  # only on request
        faults = self.look(folder, "--values", code=1)["faults"]
        self.assertEqual(faults, ["tensor model.layers.1.mlp.up_proj.weight: 2 of 1536 values are not finite, the first is "
                                  "number 5"])

    def test_damage_and_other_files(self):
        folder = self.dir / "damaged"
        shutil.copytree(self.model, folder)
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-4])
        for target in (folder, path):
            self.assertIn("model.safetensors", self.look(target, code=1)["faults"][0])
        (folder / "tokenizer.json").write_text("{")
        self.assertEqual(len(self.look(folder, code=1)["faults"]), 2)
        self.assertIn("tokenizer.json", self.look(folder / "tokenizer.json", code=1)["faults"][0])
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
        self.assertIn("mamba", self.look(folder / "config.json", code=1)["faults"][0])
        self.assertEqual(self.look(pathlib.Path(self.model) / "tokenizer.json")["kind"], "tokenizer")
        template = {"chat_template": "\n{% extends 'x' %}"}
        (folder / "tokenizer.json").write_bytes((pathlib.Path(self.model) / "tokenizer.json").read_bytes())
        (folder / "tokenizer_config.json").write_text(json.dumps(template))
        warnings = "\n".join(self.look(folder / "tokenizer.json")["warnings"])
        self.assertIn("the tag \"extends\" is not supported", warnings)
        self.assertFails(run("inspect", self.dir / "nowhere"), "no such file")
        self.assertFails(run("inspect", self.dir), "a folder without")
        self.assertFails(run("inspect"), "FILE is missing", code=2)

    def test_adapters_and_checkpoints(self):
        self.assertCode(self.finetune("out", "--steps", 2, "--rank", 3, "--alpha", 6), 0)
        got = self.look(self.dir / "out", "--values")
        self.assertEqual((got["kind"], got["facts"]["rank"], got["facts"]["scaling"]), ("adapter", 3, 2))
        self.assertEqual(got["faults"], [])
        weights = self.dir / "out" / "adapter_model.safetensors"
        header, data = read_safetensors(weights)
        name = next(n for n in header if n.endswith("lora_B.weight"))
        header[name.replace("lora_B", "lora_C")] = header.pop(name)
        write_safetensors(weights, header, data)
        self.assertTrue(any("is there without" in f for f in self.look(self.dir / "out", code=1)["faults"]))

    @needs(DATA / "models" / "gguf", DATA / "tokenizer-vectors", DATA / "peft")
    def test_files_of_others(self):
        got = self.look(DATA / "models" / "gguf" / "stories260K-q4_0.gguf", "--values")
        self.assertEqual(got["facts"]["values read"], 260032)
        self.assertEqual(got["metadata"]["llama.feed_forward_length"], 172)
        self.assertEqual(got["metadata"]["tokenizer.ggml.tokens"], "[512 strings]")
        got = self.look(DATA / "tokenizer-vectors" / "ggml-vocab-gpt-2.gguf")
        self.assertEqual((got["kind"], got["facts"]["tokens"]), ("gguf", 50257))
        self.assertIn("fan_in_fan_out", self.look(DATA / "peft" / "gpt2-lora-r8", code=1)["faults"][0])


if __name__ == "__main__":
    main()
