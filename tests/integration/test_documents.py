"""The documents name files and flags that exist."""

import pathlib
import re
import subprocess

import harness
import pytest

DOCUMENTS = ["README.md", "docs/architecture.md", "docs/development.md", "docs/failures.md",
             "docs/http_api.md", "docs/metrics.md", "docs/operations.md", "docs/resume.md",
             "docs/sampling.md", "docs/security.md",
             "client/python/README.md"]
FILE = re.compile(r"`([\w./-]+\.(?:cc|h|py|proto|md|cmake|json))`")
LINK = re.compile(r"\]\((?!https?:)([\w./-]+)\)")
COMMAND = re.compile(r"build/bin/(blockserve(?:-\w+)?)((?: [^\n|]*?(?:\\\n[^\n|]*)*)?)$", re.MULTILINE)


def texts():
    for name in DOCUMENTS:
        yield name, (harness.ROOT / name).read_text(encoding="utf-8")


def test_files_that_are_named_exist():
    known = {path.name for folder in harness.ROOT.iterdir()
             if folder.is_dir() and not folder.name.startswith((".", "build"))
             for path in folder.rglob("*") if path.is_file()}
    missing = []
    for name, text in texts():
        for path in FILE.findall(text):
            exists = (harness.ROOT / path).exists() if "/" in path else path in known
            # Files of a model folder, wherever it is.
            if not exists and path not in ("config.json", "tokenizer.json", "chat_format.json"):
                missing.append(f"{name}: {path}")
        for path in LINK.findall(text):
            if not ((harness.ROOT / name).parent / path).exists():
                missing.append(f"{name}: link to {path}")
    assert not missing


def test_commands_of_the_readme_have_flags_that_exist():
    text = (harness.ROOT / "README.md").read_text(encoding="utf-8")
    commands = COMMAND.findall(text)
    assert len(commands) >= 5
    for program, arguments in commands:
        words = arguments.replace("\\\n", " ").split()
        subcommand = [words[0]] if words and not words[0].startswith("-") else []
        shown = subprocess.run([harness.program(program), *subcommand, "--helpfull"], text=True,
                               capture_output=True, check=True).stdout
        for flag in (word for word in words if word.startswith("--")):
            assert flag in shown, f"{program} {subcommand} has no {flag}"
