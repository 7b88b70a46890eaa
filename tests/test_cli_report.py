#!/usr/bin/env python3
"""The page of a run. Usage: test_cli_report.py PATH-OF-QLORA [unittest options]"""
import html.parser
import json
import re
import signal

from cli_support import Case, adapter, main, run, start

VOID = {"meta", "link", "path"}


class Page(html.parser.HTMLParser):
    """What is on the page, after a check that its tags match."""

    def __init__(self, text):
        super().__init__()
        self.text, self.stack, self.words, self.scripts, self.references = text, [], [], [], []
        self.feed(text)
        assert not self.stack, self.stack
        self.charts = {}
        for figure in re.findall(r"<figure.*?</figure>", text, re.S):
            title = re.search(r"<figcaption>([^<]*)", figure).group(1).strip()
            self.charts[title] = json.loads(re.search(r"<script[^>]*>(.*?)</script>", figure, re.S).group(1))

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.stack.append(tag)
        self.references += [value for key, value in attributes if key in ("src", "href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.stack.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        (self.scripts if self.stack and self.stack[-1] in ("script", "style") else self.words).append(data)

    def series(self, chart, name):
        return next(s for s in self.charts[chart]["series"] if s["name"] == name)


class Reports(Case):
    def log(self, name, *events, end="\n"):
        path = self.dir / name
        path.write_text("\n".join(json.dumps(e) if isinstance(e, dict) else e for e in events) + end)
        return path

    def page(self, log):
        done = run("report", log, "-o", self.dir / "page.html")
        self.assertCode(done, 0)
        return Page((self.dir / "page.html").read_text())

    def test_page_of_a_run(self):
        log, report = self.dir / "run.jsonl", self.dir / "run.html"
        words = ("--steps", 12, "--val-fraction", 0.2, "--eval-every", 5, "--schedule", "linear")
        done = self.finetune("reported", *words, "--log", log, "--report", report, "--samples", 3)
        self.assertCode(done, 0)
        page = Page(report.read_text())
        events = [json.loads(line) for line in log.read_text().splitlines()]
        steps = [e for e in events if e["event"] == "step"]
        evals = [e for e in events if e["event"] == "eval"]
        loss, lr = page.series("Loss, nats a token", "each step"), page.series("Learning rate", "learning rate")
        self.assertEqual(loss["x"], [e["step"] for e in steps])
        for value, event in zip(loss["y"], steps):
            self.assertAlmostEqual(value, event["loss"], delta=1e-4 * event["loss"])
        for value, event in zip(lr["y"], steps):
            self.assertAlmostEqual(value, event["lr"], delta=1e-3 * event["lr"])
        held_out = page.series("Loss, nats a token", "held out")
        self.assertEqual(held_out["x"], [0, 5, 10, 12])
        for value, event in zip(held_out["y"], evals):
            self.assertAlmostEqual(value, event["loss"], delta=1e-4 * event["loss"])
        self.assertEqual(set(page.charts), {"Loss, nats a token", "Learning rate", "Gradient norm, before clipping",
                                            "Tokens a second"})
        words = "".join(page.words)
        for part in ("Samples", "Before", "After", "In the data", "Memory", "activations", "eval-every", "val-fraction",
                     "seq-len", "Defaults of the other options", "SHA-256 of the files", "OpenBLAS"):
            self.assertIn(part, words)
        self.assertEqual(words.count("Prompt"), 3)
        samples = [e for e in events if e["event"] == "sample"]
        self.assertEqual([(e["sample"], e["step"]) for e in samples], [(n, s) for s in (0, 12) for n in (1, 2, 3)])
        self.assertTrue(all(e["prompt"] and e["wanted"] for e in samples))
        memory = events[0]["memory"]
        self.assertEqual(sum(v for k, v in memory.items() if k != "total"), memory["total"])
        self.assertEqual(page.references, ["data:,"])
        self.assertNotRegex(page.text, r"https?://|url\(|@import")
        self.assertEqual(self.page(log).text, page.text)

    def test_a_report_changes_no_bits(self):
        for name, more in (("plain", ()), ("with-page", ("--report", self.dir / "some.html"))):
            self.assertCode(self.finetune(name, "--steps", 4, "--dropout", 0.1, *more), 0)
        self.assertEqual(adapter(self.dir / "plain"), adapter(self.dir / "with-page"))

    def test_texts_are_escaped(self):
        evil = "</script><script>alert(1)</script></style></pre>&amp;\"'\x00\x07\u202e\u00e9\u6f22<!--"
        key = evil.replace("\x00", "")
        seen, seen_key = (re.sub("[\x00\x07\u202e]", "\ufffd", text) for text in (evil, key))
        page = self.page(self.log(
            "evil.jsonl", {"event": "start", "model": evil, "format": evil, "program": evil, "options": {key: evil},
                           "defaults": {key: evil}, "files": {"data": {key: evil}}, "memory": {"codes": 1}},
            {"event": "step", "step": 1, "loss": 1}, {"event": evil},
            {"event": "sample", "sample": 1, "step": 0, "prompt": evil, "text": evil, "wanted": evil}))
        words = "".join(page.words)
        self.assertEqual((words.count(seen), words.count(seen_key)), (10, 3))
        self.assertEqual(len(re.findall("<script", page.text)), len(page.charts) + 1)
        self.assertNotIn("alert(1)", "".join(page.scripts))

    def test_logs_that_lack_something(self):
        step = {"event": "step", "step": 1, "loss": None, "lr": 1e300, "grad_norm": "x"}
        page = self.page(self.log("one.jsonl", {"event": "start"}, step))
        self.assertEqual(page.charts, {})
        self.assertIn("has not ended", "".join(page.words))
        page = self.page(self.log("half.jsonl", {"event": "step", "step": 1, "loss": 2}, '{"event": "st', end=""))
        self.assertEqual(page.series("Loss, nats a token", "each step")["y"], [2])
        page = self.page(self.log("gaps.jsonl", *({"event": "step", "step": n, "loss": None if n == 3 else n}
                                                  for n in range(1, 6))))
        self.assertEqual(page.series("Loss, nats a token", "each step")["y"], [1, 2, None, 4, 5])
        page = self.page(self.log("twice.jsonl", *({"event": "step", "step": n, "loss": loss} for n, loss in
                                                   ((1, 1), (2, 9), (3, 9), (2, 2), (3, 3)))))
        self.assertEqual(page.series("Loss, nats a token", "each step")["y"], [1, 2, 3])
        page = self.page(self.log("long.jsonl", *({"event": "step", "step": n, "loss": 1 + n % 2, "tokens": 10,
                                                   "seconds": 2} for n in range(1, 5001))))
        loss = page.series("Loss, nats a token", "each step")
        self.assertEqual(loss["x"][:2] + loss["x"][-1:], [5, 10, 5000])
        self.assertEqual(set(loss["y"]), {1.4, 1.6})
        self.assertIn("mean of 5 steps", "".join(page.words))
        self.assertEqual(set(page.series("Tokens a second", "tokens/s")["y"]), {5})

    def test_runs_that_go_on(self):
        """A run is stopped after its step 6, goes on from the checkpoint at 4, and an older run is in the log too."""
        steps = [{"event": "step", "step": n, "loss": 9} for n in range(1, 10)]
        again = [{"event": "step", "step": n, "loss": n} for n in range(5, 9)]
        first = {"event": "start", "resumed_at": 0}
        evals = [{"event": "eval", "step": n, "loss": 7} for n in (0, 4, 6, 4)]
        page = self.page(self.log("chain.jsonl", first, *steps, first, evals[0], *steps[:4], evals[1], *steps[4:6],
                                  evals[2], {"event": "start", "resumed_at": 4}, evals[3], *again))
        loss = page.series("Loss, nats a token", "each step")
        self.assertEqual(loss["x"], [1, 2, 3, 4, 5, 6, 7, 8])
        self.assertEqual(loss["y"], [9, 9, 9, 9, 5, 6, 7, 8])
        self.assertEqual(page.series("Loss, nats a token", "held out")["x"], [0, 4])

    def test_stopped_run(self):
        report = self.dir / "stopped.html"
        process = start("finetune", "--model", self.model, "--data", self.text, "--output", self.dir / "stopped",
                        "--seq-len", 32, "--steps", 100000, "--report", report)
        process.stderr.readline()
        self.assertIn("has not ended", report.read_text())
        process.send_signal(signal.SIGINT)
        process.communicate()
        self.assertEqual(process.returncode, 0)
        self.assertIn("was stopped before its last step", report.read_text())

    def test_refusals(self):
        text = self.log("text.jsonl", "Once upon a time")
        out = self.dir / "refused.html"
        self.assertFails(run("report", text, "-o", out), "text.jsonl:1: not the log of a run")
        self.assertFails(run("report", self.log("empty.jsonl", end=""), "-o", out), "no run is in this log")
        self.assertFails(run("report", self.log("list.jsonl", "[]"), "-o", out), "list.jsonl:1")
        self.assertFails(run("report", self.dir / "nowhere", "-o", out), "nowhere: cannot read it")
        self.assertFails(run("report", self.dir, "-o", out), "cannot read")
        self.assertFalse(out.exists())
        good = self.log("good.jsonl", {"event": "step", "step": 1, "loss": 2})
        self.assertFails(run("report", good, "-o", self.dir / "nowhere" / "x.html"), "cannot write")
        self.assertFails(run("report", "-o", out), "LOG is missing", code=2)
        self.assertFails(run("report", good, good, "-o", out), "unexpected argument", code=2)
        self.assertFails(run("report", "-x", good, "-o", out), "unexpected argument '-x'", code=2)
        done = self.finetune("unreported", "--steps", 2, "--report", self.dir / "nowhere" / "x.html")
        self.assertFails(done, "--report", "x.html")
        self.assertFalse((self.dir / "unreported").exists())
        self.assertEqual(run("report", good, "-o", out, "--json").json()["output"], str(out))


if __name__ == "__main__":
    main()
