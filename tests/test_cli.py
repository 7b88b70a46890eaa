#!/usr/bin/env python3
"""The command line as a user meets it: help, wrong usage, refusals, results of eval and generate.
Usage: test_cli.py PATH-OF-QLORA [unittest options]"""
import json
import pathlib
import shutil
import struct
import unittest

from cli_support import Case, DATA, STORIES, contents, main, needs, run

COMMANDS = ("finetune", "plan", "eval", "generate")


class Usage(Case):
    def test_help(self):
        top = run("--help")
        self.assertCode(top, 0)
        for command in COMMANDS:
            self.assertIn(command, top.out)
            page = run(command, "--help")
            self.assertCode(page, 0)
            self.assertEqual(page.err, "")
            for word in ("Usage: qlora " + command, "Examples:", "--model MODEL", "(default nf4)", "Exit status:"):
                self.assertIn(word, page.out)
            self.assertEqual(run(command, "--rank", "--help").out, page.out)
            self.assertEqual(run(command, "-h").out, page.out)
            for line in page.out.splitlines():
                self.assertTrue(len(line) <= 80 or line.startswith("  qlora "), line)

    def test_commands(self):
        self.assertFails(run(), "Usage: qlora COMMAND", code=2)
        self.assertFails(run("fintune"), "did you mean 'finetune'?", code=2)
        self.assertFails(run("xyzzy"), "unknown command 'xyzzy'", code=2)
        self.assertRegex(run("--version").out, r"^qlora \d+\.\d+\.\d+\n$")

    def test_wrong_options(self):
        for words, message in (
                ("--rnk 4", "unknown option --rnk; did you mean --rank?"),
                ("--seq_len=4", "did you mean --seq-len?"),
                ("--xyzzyplugh 4", "unknown option --xyzzyplugh\n"),
                ("--no-rank", "unknown option --no-rank"),
                ("--rank", "--rank needs a value: --rank N"),
                ("--rank --alpha 3", "--rank needs a value"),
                ("--rank 0", "--rank 0: must be a whole number, 1 to 1024"),
                ("--rank 1025", "1 to 1024"),
                ("--rank -1", "1 to 1024"),
                ("--rank 8x", "1 to 1024"),
                ("--rank=", "1 to 1024"),
                ("--steps 99999999999999999999999", "must be a whole number"),
                ("--lr nan", "--lr nan: must be a number, 0 to 10"),
                ("--lr 1e", "must be a number"),
                ("--dropout 1", "0 to 0.95"),
                ("--rank 4 --rank=5", "--rank is given twice"),
                ("--double-quant=yes", "takes no value; --no-double-quant turns it off"),
                ("--schedule cubic", "must be one of constant|linear|cosine"),
                ("stray", "unexpected argument 'stray'"),
                ("--", "unexpected argument '--'")):
            self.assertFails(run("finetune", *words.split()), message, "See 'qlora finetune --help'.", code=2)
        self.assertFails(run("finetune", "--model", "m", "--data", "d"), "--output DIR is missing", code=2)

    def test_options_that_contradict(self):
        for words, message in (
                (["--valid", self.text, "--val-fraction", 0.1], "--valid and --val-fraction"),
                (["--eval-every", 5], "--eval-every needs"),
                (["--log", "run", "--report", "run"], "--log and --report"),
                (["--steps", 5, "--epochs", 2], "--steps and --epochs"),
                (["--warmup-steps", 5, "--warmup-ratio", 0.1], "--warmup-steps and --warmup-ratio"),
                (["--adapter", "x", "--rank", 4], "--rank: the adapter given with --adapter sets this"),
                (["--target-modules", "q_proj,nonsense"], "nonsense"),
                (["--format", "nf5"], "nf5"),
                (["--format", "nf4", "--group-size", 48], "48"),
                (["--seq-len=129"], "128 positions")):
            done = run("finetune", "--model", self.model, "--data", self.text, "--output", self.dir / "no", *words)
            self.assertFails(done, message, code=2)
        self.assertFalse((self.dir / "no").exists())
        generate = ("generate", "--model", self.model)
        self.assertFails(run(*generate), "--prompt TEXT", code=2)
        self.assertFails(run(*generate, "--prompt", "a", "--prompt-file", "b"), "--prompt", code=2)
        self.assertFails(run(*generate, "--prompt", "a", "--system", "b"), "--system needs --chat", code=2)
        self.assertFails(run(*generate, "--prompt", "a", "--stop", ""), "--stop", code=2)
        self.assertFails(run(*generate, "--prompt", "a", *["--stop=x"] * 17), "more than 16 times", code=2)


class Refusals(Case):
    """Inputs from outside that cannot be used: exit status 1, a message that names the culprit, nothing written."""

    def refused(self, *parts, **options):
        words = {"model": self.model, "data": self.text, "output": self.dir / "out", **options}
        done = run("finetune", *[w for key, value in words.items() for w in ("--" + key, value)])
        self.assertFails(done, "qlora: error: ", *map(str, parts))
        self.assertFalse((self.dir / "out").exists())

    def broken_model(self, name):
        return pathlib.Path(shutil.copytree(self.model, self.dir / name))

    def test_missing_files(self):
        nowhere = self.dir / "nowhere"
        self.refused(nowhere, "hf download", model=nowhere)
        self.refused("this folder has no config.json", model=self.dir)
        (self.dir / "table.csv").write_text("a,b\n")
        self.refused("table.csv: tables are not read", data=self.dir / "table.csv")
        self.refused(nowhere, data=nowhere)
        self.refused(nowhere, valid=nowhere)
        self.refused(nowhere, adapter=nowhere)
        self.refused(nowhere, log=nowhere / "log.jsonl")

    def test_output(self):
        self.refused("this is a file", output=self.text)
        self.refused("cannot make the folder", output=self.text / "below")
        self.refused("/proc/qlora", output="/proc/qlora")

    def test_data(self):
        for name, text, message in (("empty.txt", "", "empty.txt"), ("empty.jsonl", "\n\n", "empty.jsonl"),
                                    ("broken.jsonl", '{"text": "a b c d"}\n{"text": \n', ":2"),
                                    ("other.jsonl", '{"question": "a"}\n', "question"),
                                    ("bytes.txt", "abc\udcff", "UTF-8")):
            path = self.dir / name
            path.write_text(text, errors="surrogateescape")
            self.refused(message, data=path)

    def test_model_files(self):
        for name, damage in (("truncated", lambda raw: raw[:-10]), ("short", lambda raw: raw[:5]),
                             ("huge", lambda raw: struct.pack("<Q", 1 << 60) + raw[8:]),
                             ("nothing", lambda raw: b""),
                             ("shape", lambda raw: raw.replace(b"[48, 32]", b"[32, 48]"))):
            folder = self.broken_model(name)
            file = folder / "model.safetensors"
            file.write_bytes(damage(file.read_bytes()))
            self.refused(folder, model=folder)

    def test_model_config(self):
        for key, value in (("model_type", "gpt2"), ("hidden_size", -1), ("num_hidden_layers", 10 ** 18),
                           ("vocab_size", 300), ("num_attention_heads", 3)):
            folder = self.broken_model(key)
            config = json.loads((folder / "config.json").read_text())
            config[key] = value
            if key == "model_type":
                config["architectures"] = ["GPT2LMHeadModel"]
            (folder / "config.json").write_text(json.dumps(config))
            self.refused(model=folder)

    @needs(DATA / "models" / "tiny-random" / "tiny_llama3_tied_mlx4bit")
    def test_mlx_quantized_model(self):
        """It has no tokenizer of its own: with one, the weights themselves must be refused."""
        folder = self.dir / "mlx"
        shutil.copytree(DATA / "models" / "tiny-random" / "tiny_llama3_tied_mlx4bit", folder)
        folder.chmod(0o755)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(pathlib.Path(self.model) / name, folder)
        self.refused("mlx", model=folder)

    @needs(STORIES, DATA / "peft" / "gpt2-lora-r8")
    def test_adapter_of_another_architecture(self):
        adapter = DATA / "peft" / "gpt2-lora-r8"
        self.refused("gpt2-lora-r8", adapter=adapter)
        for words in (("eval", "--data", self.text), ("generate", "--prompt", "a")):
            self.assertFails(run(*words, "--model", STORIES, "--adapter", adapter), "gpt2-lora-r8")


class EvalAndGenerate(Case):
    @needs(STORIES / "reference.json")
    def test_eval_agrees_with_reference(self):
        """The first 16 pieces of 255 tokens, as reference.json cuts them: look for where their text ends."""
        want = json.loads((STORIES / "reference.json").read_text())["text_losses"][0]
        text = (DATA / "corpora" / "tinystories-excerpt.txt").read_bytes()[:want["bytes_used"]]
        part = self.dir / "part.txt"

        def measure(size):
            part.write_bytes(text[:size])
            words = ("--data", part, "--format", "none", "--seq-len", 255, "--json")
            return run("eval", "--model", STORIES, *words).json()

        low, high = len(text) // 2, len(text) * 9 // 16
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if measure(middle)["learned"] < 16 * 255 else (low, middle)
        reports = [measure(size) for size in range(low, low + 8)]
        losses = [r["loss"] for r in reports if r["learned"] == 16 * 255]
        self.assertLess(min(abs(loss - want["mean_loss"]) for loss in losses), 1e-4)

    def test_eval(self):
        for data in (self.text, self.chats):
            words = ("eval", "--model", self.model, "--data", data, "--seq-len", 64)
            report = run(*words, "--json").json()
            self.assertGreater(report["learned"], 0)
            self.assertAlmostEqual(report["perplexity"], 2.718281828459045 ** report["loss"], 6)
            people = run(*words)
            self.assertCode(people, 0)
            self.assertIn(f"{report['loss']:.4f}", people.out)
            self.assertEqual(run(*words, "--quiet").out, "")
            self.assertEqual(run(*words, "--json", "--threads", 1).json()["loss"], report["loss"])
        head = run(*words, "--json", "--head-format", "int8").json()
        self.assertNotEqual(head["loss"], report["loss"])
        self.assertLess(abs(head["loss"] - report["loss"]), 0.02 * report["loss"])
        self.assertFails(run(*words, "--head-format", "int9"), "--head-format int9: format 'int9' is not known", code=2)
        masked = report["learned"]
        self.assertGreater(run(*words, "--json", "--train-on-inputs").json()["learned"], masked)

    @needs(STORIES / "reference.json")
    def test_greedy_text_agrees_with_reference(self):
        for want in json.loads((STORIES / "reference.json").read_text())["prompts"]:
            made = len(want["greedy_token_ids"]) - len(want["token_ids"])
            done = run("generate", "--model", STORIES, "--format", "none", "--temperature", 0, "--max-tokens", made,
                       "--prompt", want["text"])
            self.assertCode(done, 0)
            self.assertEqual((want["text"] + done.out).strip(), want["greedy_text"].strip())
            self.assertIn("tokens/s", done.err)

    @needs(STORIES)
    def test_stop_texts(self):
        words = ("generate", "--model", STORIES, "--format", "none", "--temperature", 0, "--prompt", "Once upon a time")
        self.assertEqual(run(*words, "--stop", "named Lily").out, ", there was a little girl \n")
        report = run(*words, "--stop", "xyz", "--stop", " play", "--json").json()
        self.assertEqual(report["text"], ", there was a little girl named Lily. She loved to")
        self.assertEqual(report["ended"], "stop")
        self.assertEqual(run(*words, "--max-tokens", 2, "--json").json()["ended"], "length")

    def test_sampling(self):
        """A random model speaks in random bytes: what comes out must be UTF-8 all the same."""
        words = ("generate", "--model", self.model, "--max-tokens", 100, "--temperature", 3, "--top-p", 1)
        one, again = run(*words, "--prompt", "a", "--seed", 1), run(*words, "--prompt", "a", "--seed", 1)
        self.assertCode(one, 0)
        self.assertEqual(one.out, again.out)
        self.assertNotEqual(one.out, run(*words, "--prompt", "a", "--seed", 2).out)
        self.assertEqual(run(*words, "--prompt", "a", "--seed", 1, "--quiet").err, "")
        self.assertEqual(run(*words, "--prompt-file", "-", "--seed", 1, stdin=b"a").out, one.out)
        report = run(*words, "--prompt", "a", "--seed", 1, "--json").json()
        self.assertEqual(report["text"].rstrip("\n"), one.out.rstrip("\n"))
        self.assertEqual(report["prompt_tokens"], 1)

    def test_chat(self):
        words = ("generate", "--model", self.model, "--chat", "--prompt", "hi", "--max-tokens", 3, "--json")
        plain = run(*words).json()["prompt_tokens"]
        self.assertEqual(plain, len("s" "user\nhi" "e" "\n" "s" "assistant\n"))  # s, e: one token each
        more = run(*words, "--system", "be brief").json()["prompt_tokens"]
        self.assertEqual(more - plain, len("s" "system\nbe brief" "e" "\n"))

    def test_prompt_limits(self):
        words = ("generate", "--model", self.model, "--max-tokens", 1000, "--json", "--prompt")
        self.assertFails(run(*words, "a" * 128), "128 positions")
        report = run(*words, "a" * 120).json()
        self.assertLessEqual(report["tokens"], 8)
        self.assertFails(run(*words, ""), "empty")


if __name__ == "__main__":
    main()
