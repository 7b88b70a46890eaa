#!/usr/bin/env python3
"""Trains small adapters with qlora and loads them in other programs: logits beside PEFT's and mlx-lm's, greedy texts beside
llama.cpp's. Prints a line for each; what is not installed is left out.

    python3 tools/compare_elsewhere.py --build build --model ../shared/data/models/stories260K-hf --text some.txt
    (torch, transformers, peft; mlx-lm and mlx[cpu]; llama-cpp-python)
"""
import argparse
import ctypes as c
import pathlib
import subprocess
import tempfile

KINDS = {
    "lora": ["--format", "none"], "rslora": ["--format", "none", "--rslora"], "dora": ["--format", "none", "--dora"],
    "dora over nf4": ["--dora"], "dora, rslora": ["--dora", "--rslora"], "pissa": ["--init", "pissa"],
    "loftq": ["--init", "loftq"],
}
PROMPTS = ["Once upon a time", "Lily and Tom went to", "The little dog", "One day, a boy named Tim"]
IDS = [1, 403, 407, 261, 378, 432, 394, 383, 286, 261, 410, 419, 403, 396, 290, 351]


class Format(c.Structure):
    _fields_ = [("code", c.c_int), ("scale", c.c_int), ("group", c.c_uint32), ("flat", c.c_bool)]


class Error(c.Structure):
    _fields_ = [("status", c.c_int), ("message", c.c_char * 1024)]


class Ours:
    """The library: base and adapter in fp32."""

    def __init__(self, build):
        self.library, self.error = c.CDLL(str(build / "src" / "libqlora-train.so")), Error()
        self.binary, self.workers, self.format = str(build / "src" / "cli" / "qlora"), c.c_void_p(), Format()
        self.call("ql_workers_create", c.byref(self.workers), c.c_size_t(1))
        self.call("ql_format_parse", c.byref(self.format), b"none", c.c_uint32(0), c.c_bool(False))

    def call(self, name, *arguments):
        if getattr(self.library, name)(*arguments, c.byref(self.error)):
            raise SystemExit(self.error.message.decode())

    def logits(self, model, adapter):
        import numpy
        handle, generator, out, row = c.c_void_p(), c.c_void_p(), [], c.POINTER(c.c_float)()
        self.call("ql_model_open", c.byref(handle), str(model).encode(), self.format, self.workers)
        self.call("ql_adapter_load", handle, str(adapter).encode(), c.c_bool(False))
        self.call("ql_generator_create", c.byref(generator), handle, c.c_size_t(len(IDS)), self.workers)
        self.library.ql_tokenizer_vocab.restype = c.c_size_t
        tokenizer = c.c_void_p()
        self.call("ql_tokenizer_open", c.byref(tokenizer), str(model).encode())
        vocabulary = self.library.ql_tokenizer_vocab(tokenizer)
        for token in IDS:
            self.call("ql_generator_feed", generator, c.byref(c.c_int32(token)), c.c_size_t(1), c.byref(row))
            out.append(numpy.ctypeslib.as_array(row, (vocabulary,)).copy())
        self.library.ql_tokenizer_close(tokenizer)
        self.library.ql_generator_destroy(generator)
        self.library.ql_model_destroy(handle)
        return numpy.array(out)

    def run(self, command, *words):
        done = subprocess.run([self.binary, command, *map(str, words)], capture_output=True, text=True, check=True)
        return done.stdout


def of_peft(model, adapter):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        return PeftModel.from_pretrained(base, adapter).eval()(torch.tensor([IDS])).logits[0].numpy()


def of_mlx(ours, model, adapter, folder):
    import mlx.core as mx
    import numpy
    from mlx_lm import load
    ours.run("export", "--model", model, "--adapter", adapter, "--to", "mlx", "--output", folder / "mlx")
    mx.set_default_device(mx.cpu)
    loaded, _ = load(str(model), adapter_path=str(folder / "mlx"))
    return numpy.array(loaded(mx.array([IDS]))[0].astype(mx.float32))


def same_texts(ours, file, lora, words):
    """Of how many prompts llama.cpp writes on as `qlora generate` does of the same numbers."""
    from llama_cpp import Llama
    engine = Llama(str(file), lora_path=lora and str(lora), n_ctx=256, n_threads=1, verbose=False)
    same = 0
    for prompt in PROMPTS:
        theirs = engine.create_completion(prompt, max_tokens=60, temperature=0, top_k=1, repeat_penalty=1.0)
        own = ours.run("generate", *words, "--format", "none", "--prompt", prompt, "--temperature", 0, "--max-tokens", 60,
                       "--quiet")
        same += theirs["choices"][0]["text"].rstrip("\n") == own.rstrip("\n")
    return f"{same}/{len(PROMPTS)} texts"


def of_llama_cpp(ours, kind, model, adapter, folder):
    found = []
    for dtype in ("f32", "f16"):
        file = folder / f"{dtype}.gguf"
        ours.run("merge", "--model", model, "--adapter", adapter, "--output", file, "--dtype", dtype)
        found.append(f"merged {dtype} {same_texts(ours, file, None, ['--model', file])}")
    if "dora" not in kind:
        ours.run("export", "--model", model, "--adapter", adapter, "--to", "gguf", "--output", folder / "lora.gguf")
        words = ["--model", model, "--adapter", adapter]
        found.append(f"adapter {same_texts(ours, folder / 'base.gguf', folder / 'lora.gguf', words)}")
    return ", ".join(found)


def train(ours, model, text, adapter, options):
    ours.run("finetune", "--model", model, "--data", text, "--output", adapter, "--seq-len", 64, *options)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default="build")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    options = parser.parse_args()
    ours = Ours(options.build)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        train(ours, options.model, options.text, folder / "none", ["--steps", 1, "--lr", 0, "--format", "none"])
        ours.run("merge", "--model", options.model, "--adapter", folder / "none", "--output", folder / "base.gguf",
                 "--dtype", "f32")
        for kind, words in KINDS.items():
            adapter = folder / kind
            train(ours, options.model, options.text, adapter, ["--steps", 12, "--lr", "5e-3", *words])
            own = ours.logits(options.model, adapter)
            print(f"{kind}: largest logit {abs(own).max():.1f}", flush=True)
            for program, compare in (
                    ("PEFT", lambda: f"logits within {abs(own - of_peft(options.model, adapter)).max():.1e}"),
                    ("mlx-lm", lambda: f"logits within {abs(own - of_mlx(ours, options.model, adapter, folder)).max():.1e}"),
                    ("llama.cpp", lambda: of_llama_cpp(ours, kind, options.model, adapter, folder))):
                try:
                    print(f"    {program}: {compare()}", flush=True)
                except ImportError as missing:
                    print(f"    {program}: left out, {missing}", flush=True)


if __name__ == "__main__":
    main()
