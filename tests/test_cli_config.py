#!/usr/bin/env python3
"""Settings from a YAML file. Usage: test_cli_config.py PATH-OF-QLORA [unittest options]"""
import json
import os
import signal

from cli_support import Case, contents, main, run, start


class Config(Case):
    def config(self, text, name="run.yaml"):
        path = self.dir / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def files(self, output):
        return f"model: {self.model}\ndata: {self.text}\noutput: {self.dir / output}\n"

    def test_same_as_command_line(self):
        """Each kind of value: whole and broken numbers, flags, choices, bytes, text, names as a list."""
        path = self.config(self.files("by-file") + "seq-len: 32\nlr: 1e-2\nsteps: 3\nrank: 4\nrecompute: true\n"
                           "double-quant: off\nschedule: linear\nmax-memory: 1G\n"
                           "target-modules:\n  - q_proj\n  - 'v_proj'\nquiet: false # a remark\n")
        self.assertCode(run("finetune", "--config", path), 0)
        self.assertCode(self.finetune("by-words", "--steps", 3, "--rank", 4, "--recompute", "--no-double-quant",
                                      "--schedule", "linear", "--max-memory", "1G", "--target-modules",
                                      "q_proj,v_proj"), 0)
        ours, theirs = contents(self.dir / "by-file"), contents(self.dir / "by-words")
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            self.assertEqual(ours[name], theirs[name])

    def test_command_line_goes_first(self):
        path = self.config(self.files("first") + "seq-len: 32\nsteps: 5\nrank: 4\njson: true\nvalid: null\n")
        report = run("finetune", "--config", path, "--steps", 2).json()
        self.assertEqual(report["steps"], 2)
        self.assertEqual(json.loads((self.dir / "first" / "adapter_config.json").read_text())["r"], 4)

    def test_refusals(self):
        for text, line, message in (
                ("rnk: 4", 1, "unknown key 'rnk'; did you mean 'rank'?"),
                ("model: m\n\nbatch_size: 4", 3, "unknown key 'batch_size'; did you mean 'batch-size'?"),
                ("xyzzyplugh: 4", 1, "unknown key 'xyzzyplugh'\n"),
                ("rank: eight", 1, "rank: eight: must be a whole number, 1 to 1024"),
                ("rank: 2.5", 1, "rank: 2.5: must be a whole number"),
                ("lr: fast", 1, "lr: fast: must be a number, 0 to 10"),
                ("quiet: 1", 1, "quiet: 1: must be true or false"),
                ("recompute: some", 1, "recompute: some: must be none, all or a whole number up to"),
                ("schedule: cubic", 1, "schedule: cubic: must be one of constant|linear|cosine"),
                ("max-memory: lots", 1, "must be bytes"),
                ("data: a\nrank: 4\ndata: b", 3, "'data' is given twice; the first time in line 1"),
                ("rank: [4, 8]", 1, "rank: must be a whole number, 1 to 1024, not a list"),
                ("rank: {r: 4}", 1, "rank: must be a whole number, 1 to 1024, not a mapping"),
                ("target-modules: [[q_proj]]", 1, "plain values only"),
                ("rank:", 1, "rank: has no value"),
                ("config: other.yaml", 1, "cannot name another one"),
                ("- rank", 1, "not settings: a list"),
                ("rank", 1, "not settings"),
                ("rank: &x 1\nsteps: *x", 2, "aliases"),
                ("rank: 1\n---\nrank: 2", 2, "a second document"),
                ("rank: 1\n  steps: 2", 2, "not YAML"),
                ("data: \"a\\0b\"", 1, "NUL"),
                ("? [a, b]\n: 1", 1, "a key must be a plain word"),
                ("a: " + "{a: " * 20 + "1" + "}" * 20, 1, "nested too deeply"),
                (b"data: \xff", 1, "not YAML"),
                ("rank: 1\nquiet: true", "", "--model MODEL is missing")):
            path = self.config(text)
            where = f"{path}:{line}: " if line else ""
            self.assertFails(run("finetune", "--config", path), where, message, "See 'qlora finetune --help'.", code=2)
        self.assertFails(run("finetune", "--config", self.dir / "nowhere"), "nowhere: cannot read it")
        self.assertFails(run("finetune", "--config", self.dir), "cannot read it")
        self.assertFails(run("finetune", "--config", self.config("#" * (1 << 20))), "larger than settings are", code=2)

    def test_plan_takes_it_too(self):
        path = self.config(f"model: {self.model}\nrank: 4\nseq-len: 64\njson: true\n")
        reports = [run("plan", "--config", path, "--no-time").json(),
                   run("plan", "--model", self.model, "--rank", 4, "--seq-len", 64, "--json", "--no-time").json()]
        for report in reports:
            for key in ("process", "total"): # of these the process itself is a part
                del report["kept"][key], report["recomputed"][key], report["chosen"][key]
        self.assertEqual(*reports)


class Record(Case):
    """run.yaml beside an adapter: the run again, with the same bits."""

    def repeat(self, folder, *more):
        return run("finetune", "--config", self.dir / folder / "run.yaml", *more)

    def adapter(self, folder):
        return (self.dir / folder / "adapter_model.safetensors").read_bytes()

    def test_again(self):
        name = 'a "strange": name, #1\n\u00e9'
        data = self.dir / (name + ".txt")
        data.write_text(self.text.read_text())
        words = ("--rank", 4, "--steps", 4, "--seed", 7, "--dropout", 0.1, "--target-modules", "q_proj,up_proj",
                 "--no-double-quant", "--val-fraction", 0.2, "--max-memory", "1G", "--quiet")
        self.assertCode(self.finetune(name, *words, data=data), 0)
        self.assertIn("recompute: 0\n", (self.dir / name / "run.yaml").read_text())
        again = self.repeat(name, "--output", self.dir / "again", "--threads", 1)
        self.assertCode(again, 0)
        self.assertEqual(again.err.count("warning"), 0, again.err)
        self.assertIn("It is, bit for bit, the one", again.out)
        self.assertEqual(self.adapter("again"), self.adapter(name))
        third = self.repeat("again", "--output", self.dir / "third", "--json").json()
        self.assertTrue(third["as_recorded"])
        other = self.repeat("again", "--output", self.dir / "other", "--seed", 8)
        self.assertIn("It differs from the one", other.out)
        self.assertNotEqual(self.adapter("other"), self.adapter("again"))

    def test_what_changed(self):
        data = self.dir / "changing.txt"
        data.write_text(self.text.read_text())
        self.assertCode(self.finetune("before", "--steps", 2, data=data), 0)
        data.write_text(self.text.read_text() + "More.")
        path = self.dir / "before" / "run.yaml"
        path.write_text(path.read_text().replace('program: "qlora ', 'program: "qlora 0.0.'))
        again = self.repeat("before", "--output", self.dir / "after")
        self.assertCode(again, 0)
        for part in ("warning", "SHA-256 of changing.txt (--data)", "the program was qlora 0.0."):
            self.assertIn(part, again.err)
        self.assertEqual(again.err.count("warning"), 2)

    def test_defaults_of_another_time(self):
        self.assertCode(self.finetune("old", "--steps", 2, "--alpha", 8), 0)
        path = self.dir / "old" / "run.yaml"
        text = path.read_text()
        for key in ("    rank: 8\n", "    double-quant: true\n", "\nalpha: 8\n"):
            self.assertIn(key, text)
        path.write_text(text.replace("    rank: 8\n", "    rank: 2\n    gone: 1\n"))
        self.assertCode(self.repeat("old", "--output", self.dir / "new"), 0)
        self.assertEqual(json.loads((self.dir / "new" / "adapter_config.json").read_text())["r"], 2)
        self.assertIn("    rank: 2\n", (self.dir / "new" / "run.yaml").read_text())
        path.write_text(text.replace("    rank: 8\n", "    rank: lots\n"))
        self.assertFails(self.repeat("old"), "rank: lots: must be a whole number", code=2)

    def test_stopped_runs_record_no_result(self):
        process = start("finetune", "--model", self.model, "--data", self.text, "--output", self.dir / "stopped",
                        "--seq-len", 32, "--steps", 100000)
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate()
        text = (self.dir / "stopped" / "run.yaml").read_text()
        self.assertIn("    steps: ", text)
        self.assertNotIn("adapter-sha256", text)

    def test_names_that_are_not_utf8(self):
        data = os.fsencode(self.dir) + b"/\xff.txt"
        with open(data, "wb") as file:
            file.write(self.text.read_bytes())
        done = self.finetune("unrecorded", "--steps", 1, data=os.fsdecode(data))
        self.assertCode(done, 0)
        self.assertIn("the run is not recorded", done.err)


if __name__ == "__main__":
    main()
