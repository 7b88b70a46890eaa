#!/usr/bin/env python3
"""qlora --cache: the same results from the file of packed weights; a file that is not right is named and made anew."""
import json
import os
import pathlib
import shutil
import unittest

from cli_support import Case, STORIES, adapter, main, needs, run


class Cache(Case):
    def loss(self, cache=None, *more, model=None, code=0):
        """The exact loss and what was said about the cache."""
        result = run("eval", "--model", model or self.model, "--data", self.text, "--seq-len", 32, "--json",
                     *(["--cache", cache] if cache else []), *more)
        self.assertCode(result, code)
        return json.loads(result.out)["loss"], "".join(s for s in result.err.splitlines() if s.startswith("Cache"))

    def file(self, cache):
        files = list(pathlib.Path(cache).iterdir())
        self.assertEqual(len(files), 1, files)
        return files[0]

    def test_second_start_is_from_the_file(self):
        cache = self.dir / "new" / "folder"
        without, nothing = self.loss()
        self.assertEqual(nothing, "")
        first, made = self.loss(cache)
        self.assertIn("not there yet; the weights were read anew and written there", made)
        self.assertIn("-nf4-g64-dq-", self.file(cache).name)
        again, used = self.loss(cache)
        self.assertIn(f"weights from {self.file(cache)}", used)
        self.assertEqual([first, again], [without, without])
        other, _ = self.loss(cache, "--format", "int8")
        self.assertEqual(other, self.loss(cache, "--format", "int8")[0])
        self.assertNotEqual(other, without)
        self.assertEqual(len(list(cache.iterdir())), 2)
        self.assertIn("nothing to keep", self.loss(cache, "--format", "none")[1])

    def test_training_is_the_same(self):
        cache = self.dir / "training"
        for name, more in (("plain", []), ("making", ["--cache", cache]), ("using", ["--cache", cache])):
            self.assertCode(self.finetune(name, "--steps", 3, *more), 0)
        self.assertEqual(adapter(self.dir / "plain"), adapter(self.dir / "making"))
        self.assertEqual(adapter(self.dir / "plain"), adapter(self.dir / "using"))

    def test_damage_is_seen(self):
        cache = self.dir / "damaged"
        right, _ = self.loss(cache)
        file = self.file(cache)
        whole = file.read_bytes()
        places = list(range(0, len(whole), len(whole) // 25 + 1)) + [9, 200, len(whole) - 1]
        for place in places:
            if whole[place:place + 1] == b" ":  # between the header and the numbers: means nothing
                continue
            damaged = bytearray(whole)
            damaged[place] ^= 1
            file.write_bytes(damaged)
            loss, said = self.loss(cache)
            self.assertEqual(loss, right, place)
            self.assertIn(str(file), said)
            self.assertIn("written there", said, place)
            self.assertEqual(file.read_bytes(), whole)
        for size in (0, 7, 500, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:size])
            self.assertEqual(self.loss(cache)[0], right)
            self.assertEqual(file.read_bytes(), whole)

    def test_what_it_was_made_from(self):
        cache, model = self.dir / "stale", self.dir / "copy"
        shutil.copytree(self.model, model)
        weights = model / "model.safetensors"
        self.loss(cache, model=model)
        info = weights.stat()
        os.utime(weights, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
        said = self.loss(cache, model=model)[1]
        self.assertIn("its source is 1 files of", said)
        self.assertIn("written there", said)
        self.assertIn("weights from", self.loss(cache, model=model)[1])
        file = self.file(cache)
        file.write_bytes(file.read_bytes().replace(b'"version":"1"', b'"version":"0"'))
        self.assertIn("its version is 0, not 1", self.loss(cache, model=model)[1])

    def test_folders_that_cannot_be_written(self):
        blocked = self.dir / "a-file"
        blocked.write_text("x")
        result = run("eval", "--model", self.model, "--data", self.text, "--seq-len", 32, "--cache", blocked)
        self.assertFails(result, str(blocked))
        if os.geteuid() == 0:
            return
        locked = self.dir / "locked"
        locked.mkdir(mode=0o500)
        self.assertIn("not written", self.loss(locked)[1])

    @needs(STORIES)
    def test_rows_that_do_not_fill_blocks(self):
        cache = self.dir / "stories"
        for form in (["--format", "nf4", "--group-size", 128], ["--format", "int4", "--no-double-quant"],
                     ["--format", "fp4"]):
            without = self.loss(None, *form, model=STORIES)[0]
            self.assertEqual([self.loss(cache, *form, model=STORIES)[0] for _ in range(2)], [without] * 2)


if __name__ == "__main__":
    main()
