#!/usr/bin/env python3
"""Proves that includes between rooms point one way only (see README, "Where things are")."""
import pathlib
import re
import sys

SEES = {
    "base": [],
    "kern": ["base"],
    "quant": ["base", "kern"],
    "lora": ["base", "kern", "quant"],
    "io": ["base"],
    "text": ["base", "io"],
    "model": ["base", "kern", "quant", "lora", "io"],
    "train": ["base", "kern", "quant", "lora", "io", "text", "model"],
    "cli": [],
}
PUBLIC = {
    "kern": ["base", "quant"],
    "quant": ["base", "quant"],
    "lora": ["base", "quant", "lora"],
    "io": ["base", "quant", "io"],
    "text": ["base", "io", "text", "data"],
    "model": ["base", "quant", "lora", "io", "text", "model"],
    "base": ["base"],
}
# The kernel rooms must link into an inference engine without JSON, regular expressions or Unicode tables.
FOREIGN = {"jansson.h": ["io", "text", "model", "train", "cli"], "pcre2.h": ["text", "train"], "utf8proc.h": ["text", "train"],
           "yaml.h": ["cli"]}


def main(root):
    faults = []
    for path in sorted((root / "src").rglob("*.[ch]")):
        room = path.relative_to(root / "src").parts[0]
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = re.match(r'\s*#\s*include\s*["<]([^">]+)[">]', line)
            if not found:
                continue
            target = found.group(1)
            where = f"{path.relative_to(root)}:{number}: {target}"
            if target in FOREIGN and room not in FOREIGN[target]:
                faults.append(f"{where}: not in room {room}")
            parts = target.split("/")
            if len(parts) == 1:
                continue
            if parts[0] == "qlora":
                allowed = PUBLIC.get(room)
                if allowed is not None and parts[1][:-2] not in allowed:
                    faults.append(f"{where}: room {room} may not see this public header")
            elif parts[0] in SEES and parts[0] != room and parts[0] not in SEES[room]:
                faults.append(f"{where}: room {room} may not see room {parts[0]}")
    for fault in faults:
        print(fault)
    print(f"rooms: {'FAILED' if faults else 'ok'}, {len(faults)} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
