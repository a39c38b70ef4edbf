"""The documents name files and flags that exist."""

import functools
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
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
# Of cmake, podman, kubectl, curl, protoc, GoogleTest, ctest, lm_eval, ghz and other load tools.
FLAGS_OF_OTHERS = {"--backend", "--base-url", "--build-arg", "--cacert", "--call", "--from-file", "--go-grpc_opt",
                   "--go-grpc_out", "--go_opt", "--go_out", "--grpc-java_out", "--grpc_out", "--gtest_filter",
                   "--insecure", "--install", "--java_out", "--model_args", "--namespace", "--plugin", "--prefix",
                   "--preset", "--previous", "--ruby_out", "--sdist", "--tag", "--tasks", "--test-dir", "--url",
                   "--use-server-token-count"}
SERVERS_AND_TOOLS = ["blockserve-gateway", "blockserve-block", "blockserve-token", "blockserve-bench",
                     "blockserve-load", "blockserve-simulate", "blockserve-random-model"]
SUBCOMMANDS = ["serve", "generate", "score", "evaluate", "tokenize", "detokenize", "inspect", "keys"]
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


def test_what_a_log_is_said_to_tell_is_told():
    """In the tables of what to look at: what is quoted after "log" in a cell."""
    cells = re.findall(r"\|([^|\n]*\blog\b[^|\n]*)(?=\|)", (harness.ROOT / "docs/operations.md").read_text("utf-8"))
    quoted = {quote for cell in cells for quote in re.findall("`([^`]+)`", re.split(r"\blog\b", cell, 1)[1])}
    assert len(quoted) >= 5
    sources = "".join(path.read_text("utf-8") for folder in ("common", "gateway", "model", "rpc")
                      for path in (harness.ROOT / folder).rglob("*.cc") if not path.name.endswith("_test.cc"))
    assert not {quote for quote in quoted if quote not in sources}


def test_keys_that_documents_have_made_are_neither_committed_nor_copied_into_images():
    folders = {folder for _, text in texts() for folder in re.findall(r"scripts/make_certificates (\w+)/", text)}
    assert folders
    for name, form in ((".gitignore", "/{}/"), (".dockerignore", "{}")):
        lines = (harness.ROOT / name).read_text(encoding="utf-8").splitlines()
        assert {form.format(folder) for folder in folders} <= set(lines), name


@functools.cache
def flags_of(*command):
    shown = subprocess.run([harness.program(command[0]), *command[1:], "--helpfull"], text=True,
                           capture_output=True, check=True).stdout
    return set(FLAG.findall(shown))


def test_commands_have_flags_that_exist():
    commands = [(name, *command) for name, text in texts() for command in COMMAND.findall(text)]
    assert len(commands) >= 20 and len({name for name, *_ in commands}) >= 5
    for name, program, arguments in commands:
        words = arguments.replace("\\\n", " ").split()
        subcommand = [words[0]] if words and not words[0].startswith("-") else []
        unknown = set(FLAG.findall(arguments)) - flags_of(program, *subcommand)
        assert not unknown, f"{name}: {program} {subcommand} has no {unknown}"


def test_flags_that_are_named_exist():
    known = set().union(*(flags_of(program) for program in SERVERS_AND_TOOLS),
                        *(flags_of("blockserve", command) for command in SUBCOMMANDS))
    known |= {"--no" + flag[2:] for flag in known} | {"--helpfull"}
    for pattern in ("scripts/*", "tools/**/*.py", "bench/*.py", "tests/faults/run.py"):
        for path in harness.ROOT.glob(pattern):
            known |= set(FLAG.findall(path.read_text(encoding="utf-8")))
    missing = {(name, flag) for name, text in texts() for flag in FLAG.findall(text)
               if flag not in known | FLAGS_OF_OTHERS}
    assert not missing
