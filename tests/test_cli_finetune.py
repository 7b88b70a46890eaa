#!/usr/bin/env python3
"""`qlora finetune` end to end: learning, determinism, logs, interruption, disks that fill up.
Usage: test_cli_finetune.py PATH-OF-QLORA [unittest options]"""
import json
import os
import pty
import re
import resource
import shlex
import signal
import subprocess
import time
import unittest

from cli_support import (Case, DATA, RESULT, STORIES, VERSE, adapter, binary, contents, main, needs, plain_signals, run,
                         start)


class Training(Case):
    def test_loss_falls(self):
        done = self.finetune("falls", "--steps", 30, "--val-fraction", 0.2, "--json")
        self.assertCode(done, 0)
        report = done.json()
        self.assertEqual(report["steps"], 30)
        self.assertFalse(report["interrupted"])
        self.assertLess(report["held_out_after"]["loss"], report["held_out_before"]["loss"] - 0.5)
        self.assertEqual(set(contents(self.dir / "falls")), RESULT)
        self.assertGreater(report["memory"]["peak_resident"], report["memory"]["codes"])
        for part in ("Model ", "Data ", "Memory ", "trainable parameters", "Held-out loss before",
                     "Held-out loss after", "step 30/30", "tokens/s", "ETA"):
            self.assertIn(part, done.err)
        words = ("eval", "--model", self.model, "--data", self.text, "--seq-len", 32, "--json")
        base, tuned = run(*words).json(), run(*words, "--adapter", self.dir / "falls").json()
        self.assertLess(tuned["loss"], base["loss"] - 0.5)

    def test_every_way_to_train(self):
        for i, words in enumerate((["--format", "none"], ["--format", "int8", "--no-double-quant"],
                                   ["--format", "fp4", "--group-size", 32], ["--rslora", "--rank", 3, "--alpha", 6],
                                   ["--target-modules", "q_proj,v_proj"], ["--dropout", 0.1], ["--dora"],
                                   ["--init", "gaussian"], ["--init", "pissa"], ["--init", "loftq", "--format", "int4"], ["--recompute"],
                                   ["--schedule", "linear", "--warmup-ratio", 0.5, "--weight-decay", 0.1],
                                   ["--batch-size", 2, "--grad-accum", 3, "--max-grad-norm", 0])):
            done = self.finetune(f"way{i}", "--steps", 4, "--json", *words)
            self.assertCode(done, 0)
            self.assertEqual(done.json()["steps"], 4)

    def test_chats(self):
        report = self.finetune("chats", "--epochs", 2, "--batch-size", 3, "--json", data=self.chats).json()
        self.assertEqual(report["samples"], 8)
        self.assertEqual(report["steps"], 2 * 3)

    def test_same_bits_whatever_the_threads(self):
        folders = [self.dir / f"threads{threads}" for threads in (1, 2, 3)]
        for threads, folder in zip((1, 2, 3), folders):
            self.assertCode(self.finetune(folder.name, "--steps", 5, "--dropout", 0.1, "--threads", threads), 0)
        files = [adapter(folder) for folder in folders]
        self.assertEqual(files[0], files[1])
        self.assertEqual(files[0], files[2])
        self.assertCode(self.finetune("seed1", "--steps", 5, "--dropout", 0.1, "--seed", 1), 0)
        self.assertNotEqual(files[0], adapter(self.dir / "seed1"))

    def test_log(self):
        log = self.dir / "log.jsonl"
        done = self.finetune("logged", "--steps", 4, "--val-fraction", 0.2, "--eval-every", 2, "--log", log)
        self.assertCode(done, 0)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        self.assertEqual([(l["event"], l.get("step")) for l in lines],
                         [("start", None), ("eval", 0), ("step", 1), ("step", 2), ("eval", 2), ("step", 3), ("step", 4),
                          ("eval", 4), ("end", None)])
        keys = {"event", "step", "epoch", "loss", "grad_norm", "lr", "tokens", "learned", "seconds",
                "tokens_per_second"}
        for line in lines:
            if line["event"] == "step":
                self.assertEqual(set(line), keys)
                self.assertGreater(line["grad_norm"], 0)
        self.assertEqual(lines[2]["tokens"], lines[2]["learned"])
        self.assertIn("Held-out loss at step 2", done.out)
        self.assertCode(self.finetune("logged", "--steps", 1, "--log", log), 0)
        self.assertEqual(len(log.read_text().splitlines()), len(lines) + 3)

    def test_log_that_cannot_grow(self):
        done = self.finetune("unlogged", "--steps", 2, "--log", "/dev/full")
        self.assertCode(done, 0)
        self.assertIn("warning: /dev/full", done.err)
        self.assertEqual(set(contents(self.dir / "unlogged")), RESULT)

    def test_goes_on_from_an_adapter(self):
        self.assertCode(self.finetune("first", "--steps", 20, "--rank", 4), 0)
        more = self.finetune("second", "--steps", 20, "--adapter", self.dir / "first", "--json").json()
        fresh = self.finetune("third", "--steps", 20, "--rank", 4, "--json").json()
        self.assertLess(more["first_loss"], fresh["first_loss"] - 0.3)
        self.assertEqual(more["trainable_parameters"], fresh["trainable_parameters"])
        self.assertEqual(json.loads((self.dir / "second" / "adapter_config.json").read_text())["r"], 4)

    def test_quiet(self):
        done = self.finetune("quiet", "--steps", 2, "--quiet")
        self.assertEqual((done.code, done.out, done.err), (0, "", ""))

    def test_shorter_positions_than_the_default(self):
        done = run("finetune", "--model", self.model, "--data", self.text, "--output", self.dir / "short", "--steps", 1)
        self.assertCode(done, 0)
        self.assertIn("longest 129", done.out)  # 128 positions and the last target

    @needs(STORIES, DATA / "corpora" / "tinyshakespeare.txt")
    def test_stories_learn_shakespeare(self):
        report = run("finetune", "--model", STORIES, "--data", DATA / "corpora" / "tinyshakespeare.txt",
                     "--val-fraction", 0.01, "--output", self.dir / "bard", "--steps", 12, "--batch-size", 2,
                     "--seq-len", 128, "--lr", "5e-3", "--json").json()
        self.assertGreater(report["held_out_before"]["loss"], 4)
        self.assertLess(report["held_out_after"]["loss"], report["held_out_before"]["loss"] - 0.4)


class Terminal(Case):
    def test_one_line_is_rewritten(self):
        ours, theirs = pty.openpty()
        done = subprocess.Popen([binary(), "finetune", "--model", self.model, "--data", self.text, "--output",
                                 self.dir / "tty", "--steps", "5", "--seq-len", "32"], stdout=subprocess.DEVNULL,
                                stderr=theirs, preexec_fn=plain_signals)
        os.close(theirs)
        text = b""
        try:
            while piece := os.read(ours, 4096):
                text += piece
        except OSError:
            pass  # the other side is closed
        os.close(ours)
        self.assertEqual(done.wait(), 0)
        lines = text.decode().split("\r")
        self.assertEqual(sum("/5 " in line for line in lines), 5)
        self.assertTrue(all(len(line.replace("\x1b[K", "")) < 80 for line in lines), lines)
        self.assertTrue(text.endswith(b"\n"))


class Interrupted(Case):
    def begin(self, output, *more):
        """A long run, caught after its first step."""
        run_ = start("finetune", "--model", self.model, "--data", self.text, "--output", self.dir / output, "--seq-len",
                     "32", *more)
        for line in run_.stderr:
            if line.startswith(b"step 1/"):
                return run_
        self.fail("it ended before its first step")

    def test_saves_and_says_how_to_go_on(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            out = f"it's {number}"
            going = self.begin(out, "--steps", "100000", "--rank", "4", "--seed", "7", "--no-double-quant")
            going.send_signal(number)
            text, error = going.communicate()
            self.assertEqual(going.returncode, 0, error)
            self.assertEqual(set(contents(self.dir / out)), RESULT | {"checkpoint.safetensors"})
            command = [l for l in error.decode().splitlines() if l.startswith("  qlora finetune ")]
            words = shlex.split(command[0])[1:]
            self.assertEqual(words[words.index("--seed") + 1], "7")
            self.assertIn("--no-double-quant", words)
            again = self.begin_words(words, f"step {self.done(error) + 1}/100000")
            again.send_signal(number)
            text, error = again.communicate()
            self.assertEqual(again.returncode, 0, error)

    @staticmethod
    def done(error):
        return int(re.search(r"Stopped after step (\d+) of", error.decode()).group(1))

    def begin_words(self, words, line):
        run_ = start(*words)
        for text in run_.stderr:
            if text.decode().startswith(line):
                return run_
        self.fail(f"it ended without {line}")

    def test_second_signal_quits_at_once(self):
        long = self.dir / "long.txt"
        long.write_text(VERSE * 30000)  # one step of all of it takes far longer than this test
        going = start("finetune", "--model", self.model, "--data", long, "--output", self.dir / "twice", "--grad-accum",
                      "65536")
        for line in going.stdout:
            if line.startswith(b"Memory"):
                break
        time.sleep(0.5)
        going.send_signal(signal.SIGINT)
        for line in going.stderr:
            if line.startswith(b"Stopping after this step"):
                break
        going.send_signal(signal.SIGTERM)
        try:
            going.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            going.kill()
            going.communicate()
        self.assertEqual(going.returncode, -signal.SIGTERM)
        self.assertFalse((self.dir / "twice").exists())

    def test_before_the_first_step(self):
        """While much held-out data is measured."""
        valid = self.dir / "long.txt"
        valid.write_text(VERSE * 4000)
        going = start("finetune", "--model", self.model, "--data", self.text, "--valid", valid, "--output",
                      self.dir / "never")
        for line in going.stdout:
            if line.startswith(b"Memory"):
                break
        going.send_signal(signal.SIGINT)
        going.communicate()
        self.assertEqual(going.returncode, -signal.SIGINT)
        self.assertFalse((self.dir / "never").exists())


class FullDisk(Case):
    def test_file_size_limit(self):
        """A disk that fills while saving loses nothing that was there, and leaves nothing half-written."""
        self.assertCode(self.finetune("full", "--steps", 1, "--rank", 2), 0)
        there = contents(self.dir / "full")

        def limit():
            plain_signals()
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

        done = self.finetune("full", "--steps", 1, "--rank", 4, before=limit)
        self.assertFails(done, "qlora: error: ", "adapter_model.safetensors")
        self.assertEqual(contents(self.dir / "full"), there)
        done = self.finetune("fresh", "--steps", 1, before=limit)
        self.assertCode(done, 1)
        self.assertFalse((self.dir / "fresh").exists(), "an empty folder of a failed run stays behind")

    def test_full_file_system(self):
        disk = self.dir / "disk"
        disk.mkdir()
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], stderr=subprocess.DEVNULL)
        if mount.returncode:
            print("skipped: a tmpfs cannot be mounted here", flush=True)
            self.skipTest("no tmpfs")
        try:
            self.assertCode(self.finetune("disk/out", "--steps", 1, "--rank", 1), 0)
            there = contents(disk / "out")
            done = self.finetune("disk/out", "--steps", 1, "--rank", 64)
            self.assertFails(done, "qlora: error: ")
            self.assertEqual(contents(disk / "out"), there)
        finally:
            subprocess.run(["umount", disk], check=True)


if __name__ == "__main__":
    main()
