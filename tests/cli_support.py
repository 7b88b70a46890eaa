"""What the tests of the command share: running it, a tiny model, and data to train on."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import tiny_model

ROOT = pathlib.Path(os.environ.get("QLORA_SOURCE_ROOT", pathlib.Path(__file__).resolve().parents[1]))
DATA = pathlib.Path(os.environ.get("QLORA_TEST_DATA", ROOT / ".." / "shared" / "data"))
STORIES = DATA / "models" / "stories260K-hf"
VERSE = "The cat sat on the mat.\nThe rat sat on the hat.\nAnd that, said the bat, was that.\n"


def binary():
    return os.environ["QLORA_BINARY"]


def plain_signals():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def json(self):
        text, rest = self.out.split("\n", 1)
        assert not rest, self.out
        return json.loads(text)


def run(*words, stdin=None, before=plain_signals, timeout=300):
    done = subprocess.run([binary(), *map(str, words)], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          preexec_fn=before, timeout=timeout)
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def start(*words, **more):
    return subprocess.Popen([binary(), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=plain_signals, **more)


def needs(*paths):
    """Skips a test whose reference data is not here."""
    missing = [str(p) for p in paths if not pathlib.Path(p).exists()]
    if missing:
        print("skipped:", *missing, "is not there", flush=True)
    return unittest.skipIf(missing, f"{missing} not there")


ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
RESULT = ADAPTER | {"run.yaml"}


def contents(folder):
    return {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()}


def adapter(folder):
    return {name: data for name, data in contents(folder).items() if name in ADAPTER}


class Case(unittest.TestCase):
    """A folder of its own with a tiny model and data, gone afterwards."""

    @classmethod
    def setUpClass(cls):
        cls.dir = pathlib.Path(tempfile.mkdtemp(prefix="qlora-cli-"))
        cls.model = tiny_model.write_model(cls.dir / "model")
        cls.text = cls.dir / "verse.txt"
        cls.text.write_text(VERSE * 40)
        cls.chats = cls.dir / "chats.jsonl"
        cls.chats.write_text("".join(json.dumps({"messages": [
            {"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}!"}]}) + "\n"
            for n in ("one", "two", "three", "four", "five", "six", "seven", "eight")))

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.dir)

    def finetune(self, output, *more, data=None, **how):
        """A short run; more options go last."""
        return run("finetune", "--model", self.model, "--data", data or self.text, "--output", self.dir / output,
                   "--seq-len", 32, "--lr", "1e-2", *more, **how)

    def assertCode(self, result, code):
        self.assertEqual(result.code, code, result.out + result.err)

    def assertFails(self, result, *parts, code=1):
        """A refusal: its code, one message with those parts, no result."""
        self.assertCode(result, code)
        for part in parts:
            self.assertIn(part, result.err)
        self.assertNotIn("Sanitizer", result.err)
        self.assertNotIn("runtime error", result.err)


def main():
    os.environ["QLORA_BINARY"] = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
