#!/usr/bin/env python3
"""Proves that assets/verse is what tools/make_corpus.py writes, and that every poem keeps the facts of its prompt."""
import json
import pathlib
import re
import sys
import tempfile

root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
sys.path.insert(0, str(root / "tools"))
sys.dont_write_bytecode = True
import make_corpus  # noqa: E402

# Name and animal, thing, friend.
POEM = re.compile(r".+\n(?:and|but) (\w+) the (\w+) .+\n.+\na lonely (\w+) .+\nThen (\w+) .+\n.+")
faults = 0
with tempfile.TemporaryDirectory() as name:
    make_corpus.write_verses(pathlib.Path(name), seed=1)
    for made in sorted(pathlib.Path(name).iterdir()):
        kept = root / "assets" / "verse" / made.name
        if made.read_bytes() != kept.read_bytes():
            print(f"{kept}: not what tools/make_corpus.py verses writes")
            faults += 1
        for number, line in enumerate(kept.read_text(encoding="utf-8").splitlines(), 1):
            record = json.loads(line)
            said = POEM.fullmatch(record["completion"])
            told = set(re.findall(r"\w+", record["prompt"]))
            if not said or not told.issuperset(said.groups()):
                print(f"{kept}:{number}: the poem does not keep the facts of its prompt")
                faults += 1
print(f"assets: {'FAILED' if faults else 'ok'}, {faults} faults")
sys.exit(bool(faults))
