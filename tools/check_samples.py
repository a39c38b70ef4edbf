#!/usr/bin/env python3
"""Prints the share of words of sample texts that occur in a corpus.

Samples: JSON as `blockserve generate --format json` prints it (an object with `choices`), such objects
one a line, a list of texts, or {"samples": [texts]}. A word is a run of letters with inner
apostrophes or hyphens, compared without case. The first and the last word of a sample may be cut by the
prompt or the token limit, so they are left out unless --all.
"""

import argparse
import json
import pathlib
import re
import sys

WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")


def words(text):
    return [w.lower() for w in WORD.findall(text)]


def texts_of(value):
    """Every sample text of one JSON value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in texts_of(item)]
    if isinstance(value, dict):
        for key in ("choices", "samples"):
            if key in value:
                return texts_of(value[key])
        if isinstance(value.get("text"), str):
            return [value["text"]]
    raise ValueError(
        "samples: no text found; expected `choices`, `samples`, `text` or a list of texts"
    )


def read_samples(path):
    content = sys.stdin.read() if path == "-" else pathlib.Path(path).read_text(encoding="utf-8")
    try:
        return texts_of(json.loads(content))
    except json.JSONDecodeError:
        return [
            t for line in content.splitlines() if line.strip() for t in texts_of(json.loads(line))
        ]


def check(samples, known, whole=False):
    """(words counted, those not known, in order) over the samples."""
    counted, unknown = 0, []
    for text in samples:
        found = words(text)
        if not whole:
            found = found[1:-1]
        counted += len(found)
        unknown += [w for w in found if w not in known]
    return counted, unknown


def main(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--corpus", required=True, help="text that the model was trained on")
    p.add_argument(
        "--samples", required=True, nargs="+", help="JSON files, or - for standard input"
    )
    p.add_argument("--least", type=float, help="exit 1 below this share, e.g. 0.97")
    p.add_argument(
        "--all", action="store_true", help="count the first and last word of each sample too"
    )
    args = p.parse_args(argv)
    try:
        samples = [text for path in args.samples for text in read_samples(path)]
        corpus = pathlib.Path(args.corpus).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"check_samples: {error}", file=sys.stderr)
        return 2
    counted, unknown = check(samples, set(words(corpus)), args.all)
    if not counted:
        print("check_samples: no words in the samples", file=sys.stderr)
        return 2
    share = 1 - len(unknown) / counted
    result = {
        "samples": len(samples),
        "words": counted,
        "in_corpus": round(share, 4),
        "unknown": unknown,
    }
    print(json.dumps(result, ensure_ascii=False))
    return 1 if args.least is not None and share < args.least else 0


if __name__ == "__main__":
    sys.exit(main())
