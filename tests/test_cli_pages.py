#!/usr/bin/env python3
"""Manual pages and shell completion, which have to know every option. Usage: test_cli_pages.py PATH-OF-QLORA"""
import os
import re
import shutil
import subprocess
import unittest

from cli_support import Case, binary, main, run


def has(program):
    if not shutil.which(program):
        print("skipped:", program, "is not there", flush=True)
    return unittest.skipUnless(shutil.which(program), f"{program} not there")


def commands():
    page = run("--help").out
    return re.findall(r"^  (\w+) ", page.split("Commands:\n")[1].split("\n\n")[0], re.M)


def options(command):
    """As --help shows them: --rank, --no-double-quant, ..."""
    return re.findall(r"^  --([\w-]+)", run("help", command).out.split("Examples:")[1], re.M)


class Pages(Case):
    def test_options_are_everywhere(self):
        shells = {shell: run("completion", shell).out for shell in ("bash", "zsh", "fish")}
        self.assertIn("finetune", commands())
        for command in commands():
            page = run("man", command).out
            bash = re.search(rf"^    {command}\)\n.*?^        ;;", shells["bash"], re.M | re.S).group()
            zsh = re.search(rf"^    {command}\)\n.*?^        ;;", shells["zsh"], re.M | re.S).group()
            fish = [line for line in shells["fish"].splitlines() if f"from {command}'" in line]
            for option in options(command):
                escaped = option.replace("-", r"\-")
                self.assertRegex(page, rf"(?m)^\\fB\\-\\-{re.escape(escaped)}(\\fR| \\fI)")
                self.assertIn(f"--{option} ", re.search(r'options="(.*)"', bash).group(1))
                self.assertRegex(zsh, rf"'\*?--{option}=?\[")
                self.assertTrue(any(f" -l {option} " in line for line in fish), (command, option))
            self.assertIn(command, run("man").out)

    def test_pages_as_files(self):
        done = run("man", "-o", self.dir / "pages")
        self.assertCode(done, 0)
        names = {p.name for p in (self.dir / "pages").iterdir()}
        self.assertEqual(names, {"qlora.1"} | {f"qlora-{c}.1" for c in commands()})
        for command in commands():
            self.assertEqual((self.dir / "pages" / f"qlora-{command}.1").read_text(), run("man", command).out)
        self.assertFails(run("man", "nothing"), "nothing: no such command", code=2)
        self.assertFails(run("man", "plan", "--output", self.dir), "plan: --output writes the pages", code=2)
        self.assertFails(run("man", "--output", self.text), "this is a file")

    @has("mandoc")
    def test_mandoc_has_no_complaints(self):
        self.assertCode(run("man", "-o", self.dir / "linted"), 0)
        for page in sorted((self.dir / "linted").iterdir()):
            done = subprocess.run(["mandoc", "-Tlint", page], capture_output=True, text=True)
            complaints = [l for l in done.stdout.splitlines() if "referenced manual not found" not in l]
            self.assertEqual(complaints, [])

    @has("groff")
    def test_groff_has_no_complaints(self):
        for command in [(), *((c,) for c in commands())]:
            done = subprocess.run(["groff", "-man", "-Tutf8", "-ww"], input=run("man", *command).out, text=True,
                                  capture_output=True)
            self.assertEqual(done.stderr, "")

    @has("bash")
    def test_bash(self):
        (self.dir / "a file.jsonl").write_text("")
        (self.dir / "a folder").mkdir()
        script = self.dir / "completion.bash"
        script.write_text(run("completion", "bash").out)

        def complete(*words):
            """What the tab key offers behind the last of the words, as bash splits them."""
            program = ('source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
                       '[[ $(complete -p qlora) == "complete -F _qlora qlora" ]] || exit 3; _qlora; '
                       'printf "%s\\n" "${COMPREPLY[@]}"')
            done = subprocess.run(["bash", "--norc", "-c", program, script, *words], capture_output=True, text=True,
                                  cwd=self.dir)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            return done.stdout.splitlines()

        files = ["a file.jsonl", "a folder"]
        self.assertEqual(complete("qlora", "fine"), ["finetune"])
        self.assertEqual(complete("qlora", ""), [*commands(), "help", "--help", "--version"])
        self.assertEqual(complete("qlora", "help", "pl"), ["plan"])
        self.assertEqual(complete("qlora", "finetune", "--sch"), ["--schedule"])
        self.assertEqual(complete("qlora", "finetune", "--schedule", ""), ["constant", "linear", "cosine"])
        self.assertEqual(complete("qlora", "finetune", "--schedule", "=", "co"), ["constant", "cosine"])
        self.assertEqual(complete("qlora", "finetune", "--schedule", "="), ["constant", "linear", "cosine"])
        self.assertEqual(sorted(complete("qlora", "finetune", "--data", "a")), files)
        self.assertEqual(complete("qlora", "finetune", "--output", "a"), ["a folder"])
        self.assertEqual(complete("qlora", "finetune", "--rank", ""), [""])
        self.assertEqual(complete("qlora", "finetune", "--rank", "4", "--no-d"), ["--no-double-quant"])
        self.assertEqual(sorted(complete("qlora", "report", "a f")), files)
        self.assertEqual(complete("qlora", "completion", ""), ["bash", "zsh", "fish"])
        self.assertEqual(complete("qlora", "man", "me"), ["merge"])
        self.assertEqual(complete("qlora", "xyzzy", ""), [""])
        for command in commands():
            self.assertEqual(complete("qlora", command, "--"), [f"--{o}" for o in options(command)] + ["--help"])

    @has("fish")
    def test_fish(self):
        script = self.dir / "qlora.fish"
        script.write_text(run("completion", "fish").out)

        def complete(line):
            done = subprocess.run(["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"], text=True,
                                  capture_output=True, env={**os.environ, "HOME": str(self.dir)})
            self.assertEqual(done.stderr, "")
            return [word.split("\t")[0] for word in done.stdout.splitlines()]

        self.assertEqual(sorted(complete("qlora ")), sorted([*commands(), "help"]))
        self.assertEqual(complete("qlora finetune --sch"), ["--schedule"])
        self.assertEqual(sorted(complete("qlora finetune --schedule ")), ["constant", "cosine", "linear"])
        self.assertEqual(sorted(complete("qlora completion ")), ["bash", "fish", "zsh"])

    @has("zsh")
    def test_zsh(self):
        """On a terminal of its own, as there is no other way to ask for completion there."""
        folder = self.dir / "functions"
        folder.mkdir()
        (folder / "_qlora").write_text(run("completion", "zsh").out)
        program = f'''
            zmodload zsh/zpty; zpty shell zsh -f -i
            zpty -w shell 'PS1=; fpath=({folder} $fpath); autoload -U compinit; compinit -D -u; echo rea""dy'
            zpty -r shell line '*ready*'
            zpty -n -w shell "$1"$'\\t\\t'
            for ((i = 0; i < 200; i++)); do
                while zpty -r -t shell line; do seen+=$line; done
                [[ $seen == *$2* ]] && break; sleep 0.05
            done; zpty -d shell; print -r -- "$seen"'''

        def complete(line, last):
            """What the terminal shows when `last` is there."""
            done = subprocess.run(["zsh", "-f", "-c", program, "zsh", line, last], capture_output=True, text=True,
                                  env={**os.environ, "TERM": "dumb", "HOME": str(self.dir)})
            self.assertIn(last, done.stdout)
            return done.stdout

        complete("qlora finetune --sched", "--schedule")
        text = complete("qlora finetune --schedule ", "linear")
        for word in ("constant", "cosine"):
            self.assertIn(word, text)

    def test_install_script(self):
        source = os.path.join(os.environ["QLORA_SOURCE_ROOT"], "tools", "install_pages.sh")
        env = {**os.environ, "MESON_INSTALL_DESTDIR_PREFIX": str(self.dir / "prefix")}
        subprocess.run([source, binary(), "share/man", "share"], env=env, check=True)
        share = self.dir / "prefix" / "share"
        self.assertEqual((share / "man/man1/qlora-plan.1").read_text(), run("man", "plan").out)
        for shell, place in (("bash", "bash-completion/completions/qlora"), ("zsh", "zsh/site-functions/_qlora"),
                             ("fish", "fish/vendor_completions.d/qlora.fish")):
            self.assertEqual((share / place).read_text(), run("completion", shell).out)


if __name__ == "__main__":
    main()
