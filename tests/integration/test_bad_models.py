"""A model folder with something wrong: one line that names the file, field or tensor; exit 2."""

import shutil
import socket
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
# What each tier reads, and so can find wrong. The compute tiers hash the tokenizer without reading it.
READ_BY = {
    "config cut short": ["blockserve-block", "blockserve-token", "blockserve-gateway"],
    "weights cut short": ["blockserve-block", "blockserve-token"],
    "tensors that overlap": ["blockserve-block", "blockserve-token"],
    "tensor of another shape": ["blockserve-block"],
    "tokenizer cut short": ["blockserve-gateway"],
    "token decoder of too few positions": ["blockserve-gateway"],
}


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


@pytest.mark.parametrize(
    "name, fault", [(name, fault) for fault, names in READ_BY.items() for name in names])
def test_the_tiers_name_what_is_wrong(name, fault, tmp_path):
    folder = broken_models.make(fault, tmp_path)
    assert_one_error(run(name, *PROGRAMS[name], f"--model={folder}"),
                     broken_models.BROKEN[fault][2])


@pytest.mark.parametrize("name, part, words", [
    ("blockserve-block", "block_decoder", "the block decoder's context rows of a probe are not finite"),
    ("blockserve-token", "token_decoder", "the token decoder's logits of a probe are not finite"),
    ("blockserve", "token_decoder", "the token decoder's logits of a probe are not finite")])
def test_a_model_that_computes_nothing_finite_is_not_served(name, part, words, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(harness.GOLDEN / "concat_l4", folder)
    header, data = broken_models.read_safetensors(folder / "model.safetensors")
    begin, end = header[f"{part}.gpt_neox.final_layer_norm.bias"]["data_offsets"]
    infinite = b"\0\0\x80\x7f" * ((end - begin) // 4)
    broken_models.write_safetensors(folder / "model.safetensors", header, data[:begin] + infinite + data[end:])
    result = run(name, *PROGRAMS[name], f"--model={folder}")
    assert result.returncode == 2 and words in result.stderr.splitlines()[-1], result.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_model_folder_that_is_not_there(name):
    assert_one_error(run(name, *PROGRAMS[name], "--model=/no/such/folder"), ["/no/such/folder"])


@pytest.mark.parametrize("name, flags, words", [
    ("blockserve", ["serve", "--api-keys={bad}"], ["--api-keys {bad}: line 1"]),
    ("blockserve", ["serve", "--limits-file={bad}"], ["--limits-file {bad}"]),
    ("blockserve", ["serve", "--tls-cert={bad}", "--tls-key={bad}"], ["--tls-cert {bad}"]),
    ("blockserve", ["serve", "--http-address={taken}"], ["--http-address {taken}", "in use"]),
    ("blockserve", ["serve", "--http-address={free}", "--grpc-address={free}"],
     ["--http-address {free}", "in use"]),
    ("blockserve", ["serve", "--metrics-listen={free}", "--grpc-address={free}"],
     ["--grpc-address {free}", "in use"]),
    ("blockserve-block", ["--metrics-listen={taken}"], ["--metrics-listen {taken}", "in use"]),
    ("blockserve-token", ["--metrics-listen={free}", "--listen={free}"],
     ["--metrics-listen {free}", "in use"])])
def test_flags_are_checked_before_the_model_is_loaded(name, flags, words, tmp_path):
    """That takes minutes where models are large. Of this one it would say that the weights are cut short."""
    folder = broken_models.make("weights cut short", tmp_path)
    bad = tmp_path / "bad"
    bad.write_text("nonsense\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        values = {"bad": bad, "taken": f"127.0.0.1:{taken.getsockname()[1]}",
                  "free": f"127.0.0.1:{harness.free_port()}"}
        result = run(name, *(flag.format(**values) for flag in flags), f"--model={folder}")
    assert result.returncode == 2, (result.returncode, result.stderr)
    for word in words:
        assert word.format(**values) in result.stderr.splitlines()[-1], result.stderr


SERVE = ["serve", "--http-address=127.0.0.1:0"]


@pytest.mark.parametrize("command, name, content", [
    (command, "tokenizer.json", content) for command in (SERVE, PROGRAMS["blockserve"])
    for content in ("{", '{"model": {"type": "Unigram", "vocab": []}}', None)
] + [(SERVE, "chat_format.json", '{"roles": {}}')])
def test_the_smaller_files_are_read_before_the_weights(command, name, content, tmp_path):
    """As flags are checked before. Without content it is a folder."""
    folder = broken_models.make("weights cut short", tmp_path)
    if content is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_text(content)
    assert_one_error(run("blockserve", *command, f"--model={folder}"), [name])
