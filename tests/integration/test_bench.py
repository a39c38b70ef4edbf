"""blockserve-bench on small models: what it tells, not how fast it is."""

import json
import subprocess

import pytest

from harness import ROOT, program


def bench(*arguments):
    return subprocess.run([program("blockserve-bench"), *arguments], cwd=ROOT, text=True,
                          capture_output=True, timeout=120)


@pytest.mark.parametrize("model", ["concat_l4", "vanilla"])
def test_tells_rates_shares_parts_machine_commit_and_command(model):
    flags = [f"--model=tests/golden/{model}", "--prompt=21", "--generate=9", "--sequences=3",
             "--threads=2", "--repeat=3", "--format=json"]
    result = bench(*flags)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    for key in ("output_tokens_per_s", "prefill_tokens_per_s", "decode_tokens_per_s",
                "share_of_peak", "share_of_bandwidth", "peak_memory_bytes"):
        assert report[key] > 0, key
    assert report["machine"]["fma_f32"]["all_cores_gops"] > 0
    assert report["machine"]["read_gb_per_s"] > 0
    assert report["commit"] and report["command"] == " ".join(["blockserve-bench", *flags])
    assert report["check"]["batch_equals_alone"] is True
    assert report["decode"]["tokens"] == 27 and report["prefill"]["tokens"] == 63
    assert len(report["output_tokens_per_s_of_runs"]) == 3
    parts = {part["part"] for part in report["decode"]["parts"]}
    assert {"block step", "head", "sampling"} <= parts
    assert ("later steps" in parts) == (model != "vanilla")
    # Each run of the same work gives the same output, in any order of execution.
    again = json.loads(bench(*flags, "--token-rows=2", "--prefill-chunk=5").stdout)
    assert again["check"] == report["check"]


def test_table_names_every_part():
    result = bench("--model=tests/golden/concat_l4", "--generate=8", "--sequences=2",
                   "--threads=1")
    assert result.returncode == 0, result.stderr
    for word in ("block step", "expansion", "first step", "later steps", "head", "sampling",
                 "FLOP = ", "p99", "commit"):
        assert word in result.stdout


@pytest.mark.parametrize("mode", [["--nocheck", "--warmup=0"], ["--tiers", "--layouts=one"]])
def test_warns_beyond_the_positions_of_the_model(mode):
    """In blocks, of which the last is never embedded: 8196 tokens are 2048."""
    def told(prompt):
        result = bench("--model=tests/golden/concat_l4", f"--prompt={prompt}", "--generate=4",
                       "--sequences=1", "--threads=1", *mode)
        assert result.returncode == 0 and result.stdout, result.stderr
        return result.stderr

    assert told(8192) == ""
    assert told(8193).startswith("blockserve-bench: warning: --prompt and --generate take 2049 positions; "
                                 "the model's max_position_embeddings is 2048")


def test_one_process_and_three_give_the_same_tokens():
    result = bench("--model=tests/golden/concat_l4", "--prompt=21", "--generate=9",
                   "--sequences=3", "--threads=1", "--tiers", "--format=json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["same_tokens"] is True
    for kind, processes in (("one_process", ["blockserve", "client"]),
                            ("three_processes", ["blockserve-block", "blockserve-token",
                                                 "blockserve-gateway", "client"])):
        assert report[kind]["output_tokens_per_s"] > 0
        assert list(report[kind]["cpu_seconds"]) == processes
    assert report["three_of_one"] == pytest.approx(
        report["three_processes"]["output_tokens_per_s"] /
        report["one_process"]["output_tokens_per_s"])


def test_one_process_alone():
    result = bench("--model=tests/golden/concat_l4", "--prompt=21", "--generate=9", "--sequences=3", "--threads=1",
                   "--tiers", "--layouts=one", "--format=json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["output_tokens_per_s"] == report["one_process"]["output_tokens_per_s"] > 0
    assert not {"three_processes", "three_of_one", "same_tokens"} & set(report)
    refused = bench("--model=tests/golden/concat_l4", "--layouts=one")
    assert refused.returncode == 2 and "--layouts" in refused.stderr


def test_more_gateways_groups_and_larger_events_give_the_same_tokens():
    result = bench("--model=tests/golden/concat_l4", "--prompt=21", "--generate=20", "--sequences=4", "--threads=1",
                   "--tiers", "--gateways=2", "--groups=2", "--stream-interval=8", "--format=json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["same_tokens"] is True
    assert (report["gateways"], report["stream_interval"]) == (2, 8)
    refused = bench("--model=tests/golden/concat_l4", "--stream-interval=8")
    assert refused.returncode == 2 and "--stream-interval" in refused.stderr
