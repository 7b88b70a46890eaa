#!/usr/bin/env python3
"""Adds up meson's test logs: tally.py FAILED_BUILDS testlog.json...

Counts Check's single tests where a program prints Check's summary, and the program itself otherwise. A failed build
counts as a failure. The last line reads "N passed, N failed, N skipped"; the exit status is 1 after any failure."""
import json
import pathlib
import re
import sys

SUMMARY = re.compile(r"^\d+%: Checks: (\d+), Failures: (\d+), Errors: (\d+)", re.MULTILINE)
SKIPPED = re.compile(r"^skipped: ", re.MULTILINE)


def count(entry):
    """(passed, failed, skipped) of one test program."""
    if entry["result"] == "SKIP":
        return 0, 0, 1
    output = entry.get("stdout", "") + "\n" + entry.get("stderr", "")
    good = entry["result"] in ("OK", "EXPECTEDFAIL")
    summaries = [tuple(map(int, found)) for found in SUMMARY.findall(output)]
    if not summaries:
        return int(good), int(not good), 0
    checks, failures, errors = (sum(column) for column in zip(*summaries))
    failed = failures + errors
    if not good and not failed:
        failed = 1
    skipped = min(len(SKIPPED.findall(output)), checks - failures - errors)
    return checks - failures - errors - skipped, failed, skipped


def main():
    total = [0, int(sys.argv[1]), 0]
    for log in sys.argv[2:]:
        path = pathlib.Path(log)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if not lines:
            print(f"{log}: no test ran")
            total[1] += 1
        for line in lines:
            total = [a + b for a, b in zip(total, count(json.loads(line)))]
    print("{} passed, {} failed, {} skipped".format(*total))
    return int(total[1] > 0 or total[0] == 0)


if __name__ == "__main__":
    sys.exit(main())
