"""blockserve evaluate on the demo model: what it tells, and the picture that it draws."""

import json
import math
import os
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

from harness import DEMO_MODEL, ROOT, program

TEXT = ("Once upon a time there was a little fox who lived at the edge of a dark forest. Every "
        "morning the fox went to the river to drink, and every evening it came home. ") * 6


def evaluate(*arguments):
    return subprocess.run([program("blockserve"), "evaluate", *arguments], cwd=ROOT, text=True,
                          capture_output=True, timeout=120)


@pytest.fixture(name="text")
def text_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def test_positions_and_contexts_add_up_to_the_whole_and_windows_count_each_token_once(text):
    flags = [f"--model={DEMO_MODEL}", f"--text={text}", "--threads=1", "--format=json"]
    whole, short = (json.loads(evaluate(*flags, *more).stdout)
                    for more in ([], ["--window=64", "--stride=32"]))
    assert whole["tokens"] == short["tokens"] > 100
    for report in (whole, short):
        assert report["model"] == "demo-block" and report["arithmetic"] in ("f32", "bf16")
        assert len(report["by_position_in_block"]) == report["block_length"]
        for parts in (report["by_position_in_block"], report["by_context_length"]):
            assert sum(part["tokens"] for part in parts) == report["tokens"]
            loss = sum(part["tokens"] * part["loss"] for part in parts)
            assert loss == pytest.approx(report["loss"] * report["tokens"])
        assert report["perplexity"] == pytest.approx(math.exp(report["loss"]))
    # The text repeats itself: who sees more of it knows more of what comes.
    assert whole["loss"] < short["loss"]


@pytest.mark.parametrize("alignment, unscored_of_a_window", [("start", 1), ("none", 4)])
def test_bytes_are_those_of_the_tokens_that_have_a_score(text, alignment, unscored_of_a_window):
    """Windows that do not overlap have tokens without one, each of them."""
    report = json.loads(evaluate(f"--model={DEMO_MODEL}", f"--text={text}", "--threads=1",
                                 "--window=8", "--stride=8", f"--alignment={alignment}",
                                 "--format=json").stdout)
    ran = subprocess.run([program("blockserve"), "tokenize", f"--model={DEMO_MODEL}",
                          f"--file={text}"], cwd=ROOT, text=True, capture_output=True, check=True)
    tokens = ran.stdout.strip().split(",")
    scored = [token for i, token in enumerate(tokens) if i % 8 >= unscored_of_a_window]
    assert report["tokens"] == len(scored)
    ran = subprocess.run([program("blockserve"), "detokenize", f"--model={DEMO_MODEL}",
                          f"--tokens={','.join(scored)}"], cwd=ROOT, text=True,
                         capture_output=True, check=True)
    assert report["bytes"] == len(ran.stdout.encode()) - len("\n")
    bits = report["loss"] * report["tokens"] / math.log(2)
    assert report["bits_per_byte"] == pytest.approx(bits / report["bytes"])


def test_the_name_of_a_file_may_be_no_utf8(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    with open(name, "w", encoding="utf-8") as file:
        file.write("The little dog went home.")
    report = json.loads(evaluate(f"--model={DEMO_MODEL}", b"--text=" + name,
                                 "--format=json").stdout)
    assert report["text"].endswith("/caf\ufffd")


def test_a_text_without_a_score_has_no_perplexity(tmp_path):
    (tmp_path / "short.txt").write_text("a b")
    result = evaluate(f"--model={DEMO_MODEL}", f"--text={tmp_path / 'short.txt'}",
                      "--alignment=none")
    assert result.returncode == 2 and "too short" in result.stderr and not result.stdout


def test_a_text_that_no_message_holds_is_told_by_its_size(tmp_path):
    (tmp_path / "long.txt").write_bytes(b"word " * (17 << 20 >> 2))
    result = evaluate(f"--model={DEMO_MODEL}", f"--text={tmp_path / 'long.txt'}")
    assert result.returncode == 2 and "long.txt has 22282240 bytes" in result.stderr, result.stderr


def test_plot_is_one_svg_that_also_shows_an_earlier_run(text, tmp_path):
    flags = [f"--model={DEMO_MODEL}", f"--text={text}", "--threads=1"]
    earlier, plot = tmp_path / "earlier.json", tmp_path / "plot.svg"
    earlier.write_text(evaluate(*flags, "--alignment=end", "--format=json").stdout)
    result = evaluate(*flags, f"--plot={plot}", f"--compare={earlier}")
    assert result.returncode == 0, result.stderr
    assert "bits per byte" in result.stdout and "position in block" in result.stdout
    drawn = ElementTree.parse(plot)
    lines = [node for node in drawn.iter() if node.tag.endswith("polyline")]
    assert len(lines) == 2


def test_a_plot_that_cannot_be_written_leaves_the_result(text, tmp_path):
    plot = tmp_path / "no_folder/plot.svg"
    result = evaluate(f"--model={DEMO_MODEL}", f"--text={text}", f"--plot={plot}")
    assert result.returncode == 2 and f"--plot {plot} cannot be written" in result.stderr
    assert "position in block" in result.stdout


def test_a_model_without_a_tokenizer_is_told(text):
    result = evaluate("--model=tests/golden/concat_l4", f"--text={text}")
    assert result.returncode == 2 and result.stderr == "blockserve evaluate: --text: this model has no tokenizer\n"


@pytest.mark.parametrize("flags, words", [
    (["--stride=200", "--window=100"], ["--stride", "--window"]),
    (["--compare=x.json"], ["--compare", "--plot"]),
    (["--plot=x.svg", "--compare=/no/such/file"], ["/no/such/file"]),
    (["--plot=x.svg", "--compare=models/demo-block/config.json"], ["config.json", "perplexity"]),
])
def test_bad_usage_is_one_line(text, flags, words):
    result = evaluate(f"--model={DEMO_MODEL}", f"--text={text}", *flags)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    for word in words:
        assert word in result.stderr
