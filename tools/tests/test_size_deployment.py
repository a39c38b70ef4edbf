"""The calculator, against numbers worked out by hand."""

import json

import pytest
import size_deployment

# L = 4, 12 layers, width 768, bf16: 2 * 12 * 768 * 2 = 36,864 bytes a block, 589,824 a page of 16.
CONFIG = {"block_length": 4, "block_decoder": {
    "num_hidden_layers": 12, "hidden_size": 768, "max_position_embeddings": 512}}
RATES = ["--prefill-tokens-per-s=10000", "--block-tokens-per-s=4000", "--token-tokens-per-s=1000",
         "--arithmetic=bf16"]
LOAD = ["--requests-per-s=10", "--prompt=512", "--output=256"]


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def run(capsys, model, *arguments):
    status = size_deployment.main([f"--model={model}", "--format=json", *arguments])
    output = capsys.readouterr()
    return status, json.loads(output.out) if status == 0 else output.err


def test_every_tier_is_sized_by_its_own_work(capsys, model):
    status, result = run(capsys, model, *LOAD, *RATES, "--busy=0.8", "--spare=1",
                         "--gateway-cpu-s-per-million-tokens=25")
    assert status == 0
    # 2,560 tokens/s out of 1,000 each: 2.56 busy, 3.2 at 80 %.
    assert result["load"]["output_tokens_per_s"] == 2560
    assert result["token"] == {"workers": 4 + 1, "busy_workers": pytest.approx(2.56)}
    # 2,560 / 4,000 for decoding and 5,120 / 10,000 for prompts.
    assert result["block"]["busy_replicas"] == pytest.approx(0.64 + 0.512)
    assert result["block"]["replicas_by_time"] == 2
    assert result["gateway"]["busy_cores"] == pytest.approx(0.064)
    assert result["gateway"]["replicas"] == 1 + 1


def test_kv_memory_can_be_what_decides(capsys, model):
    arguments = [*LOAD, *RATES, "--inter-token-ms=50", "--kv-full=0.5", "--spare=0"]
    _, result = run(capsys, model, *arguments, "--kv-memory-mib=4096")
    # 512 / 10,000 + 256 * 50 ms = 12.8512 s; ten a second.
    assert result["load"]["live_requests"] == pytest.approx(128.512)
    block = result["block"]
    assert block["kv_bytes_per_token"] == 9216
    assert block["kv_page_bytes"] == 589_824
    # 512 + 256 tokens are 192 blocks are 12 pages; 4 GiB have 7,281 pages.
    assert block["kv_pages_of_a_request"] == 12
    assert block["kv_pages_of_a_replica"] == 7281
    assert block["kv_bytes"] == pytest.approx(128.512 * 12 * 589_824)
    assert block["replicas_by_memory"] == 1
    _, small = run(capsys, model, *arguments, "--kv-memory-mib=256")
    # 455 pages, of which 227.5: 1,542.1 / 227.5 = 6.8.
    assert small["block"]["replicas_by_memory"] == small["block"]["replicas"] == 7


def test_a_plain_model_is_a_block_of_one_token(capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(
        {"model_type": "gpt_neox", "num_hidden_layers": 6, "hidden_size": 512,
         "max_position_embeddings": 2048}))
    _, result = run(capsys, tmp_path, *LOAD, *RATES)
    assert result["block"]["kv_bytes_per_token"] == 2 * 6 * 512 * 2


def test_rates_of_a_bench(capsys, model, tmp_path):
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({
        "arithmetic": "f32", "prefill_tokens_per_s": 10_000,
        "decode": {"parts": [
            {"part": "block step", "us_per_token": 250}, {"part": "expansion", "us_per_token": 100},
            {"part": "first step", "us_per_token": 300}, {"part": "later steps", "us_per_token": 400},
            {"part": "head", "us_per_token": 150}, {"part": "sampling", "us_per_token": 50},
            {"part": "between steps", "us_per_token": 7}]}}))
    status, measured = run(capsys, model, *LOAD, f"--bench={bench}")
    assert status == 0
    _, given = run(capsys, model, *LOAD, *RATES[:3], "--arithmetic=f32")
    assert measured["token"] == given["token"] and measured["block"] == given["block"]


@pytest.mark.parametrize("arguments, words", [
    ([*LOAD], "--bench"),
    ([*LOAD, *RATES[:3]], "--arithmetic"),
    ([*LOAD, *RATES, "--bench=/no/such"], "either"),
    ([*LOAD, "--bench=/no/such/file"], "/no/such/file"),
    (["--requests-per-s=1", "--prompt=2040", "--output=64", *RATES], "512"),
])
def test_what_is_wrong_is_said_in_one_line(capsys, model, arguments, words):
    status, message = run(capsys, model, *arguments)
    assert status == 2
    assert words in message and message.count("\n") == 1


def test_the_text_names_the_flags(capsys, model):
    assert size_deployment.main([f"--model={model}", *LOAD, *RATES]) == 0
    text = capsys.readouterr().out
    assert "token workers     5 " in text
    assert "--kv-memory-mib=4096 --max-sequences=256" in text
