#!/usr/bin/env python3
"""Settings from a YAML file. Usage: test_cli_config.py PATH-OF-QLORA [unittest options]"""
import json

from cli_support import Case, contents, main, run


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
                ("recompute: 1", 1, "recompute: 1: must be true or false"),
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
                ("rank: 1\nquiet: true", "", "--model DIR is missing")):
            path = self.config(text)
            where = f"{path}:{line}: " if line else ""
            self.assertFails(run("finetune", "--config", path), where, message, "See 'qlora finetune --help'.", code=2)
        self.assertFails(run("finetune", "--config", self.dir / "nowhere"), "nowhere: cannot read it")
        self.assertFails(run("finetune", "--config", self.dir), "cannot read it")
        self.assertFails(run("finetune", "--config", self.config("#" * (1 << 20))), "larger than settings are", code=2)

    def test_plan_takes_it_too(self):
        path = self.config(f"model: {self.model}\nrank: 4\nseq-len: 64\njson: true\n")
        reports = [run("plan", "--config", path).json(),
                   run("plan", "--model", self.model, "--rank", 4, "--seq-len", 64, "--json").json()]
        for report in reports:
            for key in ("process", "total"): # of these the process itself is a part
                del report["kept"][key], report["recomputed"][key]
        self.assertEqual(*reports)


if __name__ == "__main__":
    main()
