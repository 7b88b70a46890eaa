#!/usr/bin/env python3
"""Writes text files as C strings. Usage: embed.py OUTPUT.c NAME=FILE ..."""
import json
import pathlib
import sys


def main(output, *pairs):
    text = ""
    for name, file in (pair.split("=", 1) for pair in pairs):
        lines = pathlib.Path(file).read_text(encoding="ascii").splitlines(keepends=True)
        text += f"extern const char {name}[];\nconst char {name}[] =\n" + "".join(
            "    " + json.dumps(line) + "\n" for line in lines) + "    ;\n"
    pathlib.Path(output).write_text(text)


main(*sys.argv[1:])
