"""A model folder with something wrong: one line that names the file, field or tensor; exit 2."""

import subprocess

import broken_models
import harness
import pytest

PROGRAMS = {
    "blockserve": ["generate", "--prompt-tokens=1,2,3", "--max-tokens=4"],
    "blockserve-block": ["--listen=127.0.0.1:0"],
    "blockserve-token": ["--listen=127.0.0.1:0"],
    "blockserve-gateway": ["--listen=127.0.0.1:0", "--block-services=127.0.0.1:1",
                           "--token-services=127.0.0.1:1"],
}
# What a tier does not read it cannot find wrong.
GATEWAY_READS = ("config", "heads", "block length", "summation", "cross", "projection", "special",
                 "tokenizer")


def run(name, *arguments):
    return subprocess.run([harness.program(name), *arguments], cwd=harness.ROOT, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=60)


def assert_one_error(result, words):
    assert result.returncode == 2, (result.returncode, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line]
    assert lines, "no error was printed"
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"
    assert result.stdout == ""


@pytest.mark.parametrize("fault", broken_models.BROKEN)
def test_the_command_line_names_what_is_wrong(fault, tmp_path):
    folder = broken_models.make(fault, tmp_path)
    name = "blockserve"
    result = run(name, *PROGRAMS[name], f"--model={folder}")
    assert_one_error(result, broken_models.BROKEN[fault][2])


@pytest.mark.parametrize("fault", ["config cut short", "weights cut short", "tensors that overlap",
                                   "tensor of another shape", "tokenizer cut short"])
@pytest.mark.parametrize("name", ["blockserve-block", "blockserve-token", "blockserve-gateway"])
def test_the_tiers_name_what_is_wrong(name, fault, tmp_path):
    if name == "blockserve-gateway" and not fault.startswith(GATEWAY_READS):
        pytest.skip("a gateway reads no weights")
    if name != "blockserve-gateway" and fault.startswith("tokenizer"):
        pytest.skip("a compute tier hashes the tokenizer and does not read it")
    if name == "blockserve-token" and "shape" in fault:
        pytest.skip("a token worker does not load the block decoder's tensors")
    folder = broken_models.make(fault, tmp_path)
    assert_one_error(run(name, *PROGRAMS[name], f"--model={folder}"),
                     broken_models.BROKEN[fault][2])


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_model_folder_that_is_not_there(name):
    assert_one_error(run(name, *PROGRAMS[name], "--model=/no/such/folder"), ["/no/such/folder"])
