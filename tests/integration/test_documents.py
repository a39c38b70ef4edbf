"""The documents name files and flags that exist."""

import pathlib
import re
import subprocess

import harness
import pytest

# Every page of docs/, and every README.
DOCUMENTS = sorted(
    str(path.relative_to(harness.ROOT))
    for folder in [harness.ROOT, *harness.ROOT.iterdir()]
    if folder.is_dir() and not folder.name.startswith((".", "build", "dist"))
    for path in (folder.glob("*.md") if folder == harness.ROOT else folder.rglob("*.md"))
    if not any(part.startswith(".") for part in path.relative_to(harness.ROOT).parts))
FILE = re.compile(r"`([\w./-]+\.(?:cc|h|py|proto|md|cmake|json))`")
# Files of a model folder, and what programs write, wherever it is.
WRITTEN = {"config.json", "tokenizer.json", "chat_format.json", "stats.json", "results/results.json"}
LINK = re.compile(r"\]\((?!https?:)([\w./-]*)(?:#([\w-]+))?\)")
COMMAND = re.compile(r"build/bin/(blockserve(?:-\w+)?)((?: [^\n|]*?(?:\\\n[^\n|]*)*)?)$", re.MULTILINE)


def texts():
    for name in DOCUMENTS:
        yield name, (harness.ROOT / name).read_text(encoding="utf-8")


def test_every_page_is_looked_at():
    assert {"README.md", "docs/gpu.md", "docs/performance.md", "kernels/cuda/README.md", "tools/README.md",
            "client/python/README.md", "models/demo-block/README.md"} <= set(DOCUMENTS)


def test_files_that_are_named_exist():
    known = {path.name for folder in harness.ROOT.iterdir()
             if folder.is_dir() and not folder.name.startswith((".", "build"))
             for path in folder.rglob("*") if path.is_file()}
    known |= {path.name for path in harness.ROOT.iterdir() if path.is_file()}
    missing = []
    for name, text in texts():
        for path in FILE.findall(text):
            places = [harness.ROOT / path, (harness.ROOT / name).parent / path]
            exists = any(map(pathlib.Path.exists, places)) if "/" in path else path in known
            if not exists and path not in WRITTEN:
                missing.append(f"{name}: {path}")
        for path, heading in LINK.findall(text):
            target = (harness.ROOT / name).parent / path if path else harness.ROOT / name
            if not target.exists():
                missing.append(f"{name}: link to {path}")
            elif heading and heading not in headings(target):
                missing.append(f"{name}: link to {path}#{heading}")
    assert not missing


def headings(page):
    """As GitHub names them in links."""
    return {re.sub(r"[^\w -]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
            for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("#")}


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
