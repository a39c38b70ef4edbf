#!/usr/bin/env python3
"""Fails when a folder includes, or links, what it may not: the arrows between the folders.

Sources: every quoted or angled include of .h, .cc, .cu, .cuh and .inc files that begins with one of our
folders. CMake: every blockserve_* target named in a folder's CMakeLists.txt (tests may link more than
the library they test, but no folder outside the arrows either).
"""

import pathlib
import re
import sys
from typing import Iterator

ANYTHING = None
# folder -> the folders it may use beside itself.
MAY_USE = {
    "common": set(),
    "kernels": {"common"},
    "model": {"kernels", "common"},
    "rpc": {"proto", "common"},
    "block_service": {"model", "rpc", "proto", "common"},
    "token_service": {"model", "rpc", "proto", "common"},
    "gateway": {"model", "rpc", "proto", "common"},
    "client": {"proto", "rpc", "common"},
    "app": ANYTHING,
    "bench": ANYTHING,
    "tests": ANYTHING,
}
# Nobody uses these but themselves.
TOPS = {"app", "bench", "tests"}
# Of a folder that may be used, only these headers and targets.
ONLY_HEADERS = {
    ("gateway", "model"): {
        "model/config.h", "model/alignment.h", "model/tokenizer.h", "model/fingerprint.h"},
}
ONLY_TARGETS = {
    ("gateway", "model"): {
        "blockserve_model_config", "blockserve_tokenizer", "blockserve_fingerprint"},
}
SOURCES = {".h", ".cc", ".cu", ".cuh", ".inc"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
DEFINES = re.compile(r"\b(?:blockserve_library|blockserve_program|add_library|add_executable)\s*\(\s*"
                     r"(blockserve_\w+)")
TARGET = re.compile(r"\b(blockserve_\w+)")
# Functions of cmake/, not targets.
FUNCTIONS = {"blockserve_library", "blockserve_program", "blockserve_test", "blockserve_fuzzer",
             "blockserve_add_to_label_targets"}


def used_folder(root: pathlib.Path, path: str) -> str:
    """The folder of ours that an include names; empty for others' headers."""
    if path.startswith("blockserve/v1/"):
        return "proto"
    first = path.split("/", 1)[0]
    return first if "/" in path and (first in MAY_USE or first == "proto") else ""


def judge(folder: str, used: str) -> str:
    if used == folder:
        return ""
    if used in TOPS:
        return f"nothing may use {used}/"
    allowed = MAY_USE[folder]
    if allowed is not ANYTHING and used not in allowed:
        return f"{folder}/ may use {', '.join(sorted(allowed)) or 'nothing of ours'}, not {used}/"
    return ""


def check_sources(root: pathlib.Path, folder: str) -> Iterator[str]:
    for path in sorted((root / folder).rglob("*")):
        if path.suffix not in SOURCES or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            quote, header = match.groups()
            where = f"{path.relative_to(root)}:{number}: {header}"
            if quote == '"' and "/" not in header:
                yield f"{where}: includes are rooted at the repository"
                continue
            used = used_folder(root, header)
            if not used:
                continue
            problem = judge(folder, used)
            only = ONLY_HEADERS.get((folder, used))
            if not problem and only is not None and header not in only:
                problem = f"of {used}/, {folder}/ may use only {', '.join(sorted(only))}"
            if problem:
                yield f"{where}: {problem}"


def without_comments(text: str) -> str:
    return "\n".join(line.split("#", 1)[0] for line in text.splitlines())


def check_links(root: pathlib.Path) -> Iterator[str]:
    texts = {}
    for folder in [*MAY_USE, "proto"]:
        for path in sorted((root / folder).rglob("CMakeLists.txt")):
            texts[path] = (folder, without_comments(path.read_text(encoding="utf-8")))
    owner = {}
    for folder, text in texts.values():
        for target in DEFINES.findall(text):
            owner[target] = folder
    for path, (folder, text) in texts.items():
        if folder == "proto":
            continue
        for number, line in enumerate(text.splitlines(), 1):
            for target in TARGET.findall(line):
                used = owner.get(target)
                if target in FUNCTIONS or used is None:
                    continue
                problem = judge(folder, used)
                only = ONLY_TARGETS.get((folder, used))
                if not problem and only is not None and target not in only:
                    problem = f"of {used}/, {folder}/ may link only {', '.join(sorted(only))}"
                if problem:
                    yield f"{path.relative_to(root)}:{number}: {target}: {problem}"


def check(root: pathlib.Path) -> list[str]:
    problems = []
    for folder in MAY_USE:
        problems.extend(check_sources(root, folder))
    problems.extend(check_links(root))
    return problems


def main() -> int:
    root = pathlib.Path(__file__).resolve().parents[2]
    problems = check(root)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} includes or links against the arrows")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
