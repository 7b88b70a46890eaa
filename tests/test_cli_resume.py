#!/usr/bin/env python3
"""Stopped and killed runs of `qlora finetune`: --save-every, --resume, Ctrl-C.
Usage: test_cli_resume.py PATH-OF-QLORA [unittest options]"""
import json
import random
import shlex
import shutil
import signal
import struct
import time

from cli_support import Case, RESULT, VERSE, adapter, contents, main, run, start

CHECKPOINT = "checkpoint.safetensors"


def metadata(path):
    data = path.read_bytes()
    header = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
    assert len(data) == 8 + struct.unpack("<Q", data[:8])[0] + max(
        t["data_offsets"][1] for name, t in header.items() if name != "__metadata__")
    return header["__metadata__"]


class Resume(Case):
    def words(self, output, *more):
        return ["finetune", "--model", self.model, "--data", self.text, "--output", self.dir / output, "--seq-len", 16,
                "--batch-size", 1, "--grad-accum", 2, "--dropout", 0.1, "--lr", "1e-2", "--threads", 1, *more]

    def wait_for_a_step(self, going):
        for line in going.stderr:
            if line.startswith(b"step "):
                return True
        return False

    def test_killed_again_and_again(self):
        """20 kills at random moments: never a damaged file, never more than N steps lost, the same adapter."""
        self.assertCode(run(*self.words("whole", "--steps", 1500)), 0)
        every, folder, log, rng = 3, self.dir / "killed", self.dir / "killed.jsonl", random.Random(1)
        words = self.words("killed", "--steps", 1500, "--save-every", every, "--log", log)
        kills = 0
        for _ in range(20):
            resumed = (folder / CHECKPOINT).exists()
            going = start(*map(str, words), *(["--resume"] if resumed else []))
            if rng.random() < 0.8:
                self.wait_for_a_step(going)
                time.sleep(rng.random() * 0.03)
            else:
                time.sleep(rng.random() * 0.2)
            going.kill()
            text, error = going.communicate()
            if going.returncode == 0:
                break
            self.assertEqual(going.returncode, -signal.SIGKILL, error)
            kills += 1
            done = int(metadata(folder / CHECKPOINT)["done"]) if (folder / CHECKPOINT).exists() else 0
            lines = log.read_text().splitlines() if log.exists() else []
            steps = [json.loads(line)["step"] for line in lines if '"event":"step"' in line.replace(" ", "")]
            self.assertLessEqual(max(steps, default=0) - done, every, "more steps lost than --save-every says")
        self.assertGreaterEqual(kills, 10)
        if (folder / CHECKPOINT).exists():
            self.assertCode(run(*words, "--resume"), 0)
        self.assertEqual(set(contents(folder)), RESULT)
        self.assertEqual(adapter(folder), adapter(self.dir / "whole"))

    def test_interrupted(self):
        """The command that Ctrl-C prints ends with the adapter of a run that was never stopped."""
        for name, more in (("plain", []), ("pissa", ["--init", "pissa"])):
            self.assertCode(run(*self.words("straight-" + name, "--epochs", 15.3, *more)), 0)
            out = "it's stopped " + name
            going = start(*map(str, self.words(out, "--epochs", 15.3, *more)))
            self.assertTrue(self.wait_for_a_step(going))
            going.send_signal(signal.SIGINT)
            text, error = going.communicate()
            self.assertEqual(going.returncode, 0, error)
            self.assertEqual(set(contents(self.dir / out)), RESULT | {CHECKPOINT})
            command = [line for line in error.decode().splitlines() if line.startswith("  qlora finetune ")]
            words = shlex.split(command[0])[1:]
            self.assertEqual(words[-1], "--resume")
            done = int(metadata(self.dir / out / CHECKPOINT)["done"])
            report = run(*words, "--json").json()
            self.assertEqual(report["resumed_at"], done)
            self.assertEqual(adapter(self.dir / out), adapter(self.dir / ("straight-" + name)))
            self.assertNotIn(CHECKPOINT, contents(self.dir / out))

    def test_refusals(self):
        words = self.words("refused", "--steps", 100000, "--save-every", 0)
        self.assertFails(run(*words, "--resume"), "nothing to --resume")
        self.assertFalse((self.dir / "refused").exists())
        going = start(*map(str, words))
        self.wait_for_a_step(going)
        going.send_signal(signal.SIGTERM)
        going.communicate()
        there = contents(self.dir / "refused")
        self.assertFails(run(*words), "add --resume to go on from it, or remove it")
        self.assertFails(run(*words, "--resume", "--rank", 4), "its rank was 8 and is 4 now")
        self.assertFails(run(*words, "--resume", "--format", "int4"), "its base format was nf4 g64 dq and is int4")
        self.assertFails(run(*words, "--resume", "--seed", 3), "its seed was 0 and is 3 now")
        self.assertFails(run(*words, "--resume", "--val-fraction", 0.2), "its data was")
        self.assertEqual(contents(self.dir / "refused"), there)

    def test_half_written_files_are_swept(self):
        folder = self.dir / "swept"
        folder.mkdir()
        (folder / "checkpoint.safetensors.tmp-4194304-0").write_bytes(b"half")  # no process has this number
        (folder / "adapter_config.json.tmp-1-0").write_bytes(b"somebody's")
        (folder / ".try-abcdef").write_bytes(b"")
        (folder / "mine.tmp-4194304-0").write_bytes(b"mine")
        self.assertCode(run(*self.words("swept", "--steps", 1)), 0)
        self.assertEqual(set(contents(folder)), RESULT | {"adapter_config.json.tmp-1-0", "mine.tmp-4194304-0"})


class Health(Case):
    def test_numbers_that_are_not_finite(self):
        """A NaN in the embedding of "Z", which one sample has."""
        model, data = self.dir / "spoiled", self.dir / "z.txt"
        shutil.copytree(self.model, model)
        file = (model / "model.safetensors").read_bytes()
        begin = 8 + struct.unpack("<Q", file[:8])[0]
        header, table = json.loads(file[8:begin]), bytearray(file[begin:])
        embed = header["model.embed_tokens.weight"]
        first, last = embed["data_offsets"]
        header["lm_head.weight"] = dict(embed, data_offsets=[len(table), len(table) + last - first])
        table += table[first:last]  # an LM head of its own, without the NaN
        vocab = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
        at = first + vocab["Z"] * embed["shape"][1] * 4
        table[at:at + 4] = struct.pack("<f", float("nan"))
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + table)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(dict(config, tie_word_embeddings=False)))
        data.write_text(VERSE * 4 + "Zzz." + VERSE * 4)
        words = ["finetune", "--model", model, "--data", data, "--seq-len", 16, "--batch-size", 1, "--threads", 1]
        done = run(*words, "--output", self.dir / "stops")
        self.assertFails(done, "qlora: error: step ", "sample 20: ", "not finite; it begins in the embedding")
        log = self.dir / "skips.jsonl"
        done = run(*words, "--output", self.dir / "skips", "--on-nonfinite", "skip", "--log", log, "--json")
        self.assertCode(done, 0)
        self.assertIn("warning: left out: step ", done.err)
        self.assertEqual(done.json()["skipped_steps"], 1)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        self.assertEqual(sum(line.get("skipped", False) for line in lines), 1)
        self.assertEqual(set(contents(self.dir / "skips")), RESULT)


if __name__ == "__main__":
    main()
