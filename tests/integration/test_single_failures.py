"""Failures that touch one request or one worker: logits that are not finite, a worker that is slow for a
moment, and a block replica that is told to go while nobody can take its sequences."""

import concurrent.futures
import shutil
import signal
import sys
import threading

import harness
import numpy
import pytest
from answers import ask, read_answer
from scraping import scrape
from steady_load import undisturbed_load

import blockserve

sys.path.append(str(harness.ROOT / "tools"))
import safetensors_io  # noqa: E402

MODEL = harness.GOLDEN / "concat_l4"
METRICS = "--metrics-listen=127.0.0.1:0"
# Tokens whose embedding is not finite, in one part of the model each.
NAN_IN_BLOCK, NAN_IN_TOKEN = 510, 511
REQUESTS = [{"prompt": [3 + index] * (5 + 7 * index), "max_tokens": 60, "ignore_eos": True, "seed": index,
             "temperature": 0.9, "logprobs": 0, "alignment": "none",
             "logit_bias": {NAN_IN_BLOCK: -100.0, NAN_IN_TOKEN: -100.0}} for index in range(6)]


@pytest.fixture
def damaged_model(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    path = folder / "model.safetensors"
    reader = safetensors_io.Reader(path)
    data = bytearray(path.read_bytes())
    for name, token in (("embedder.embeddings.weight", NAN_IN_BLOCK),
                        ("token_decoder.gpt_neox.embed_in.weight", NAN_IN_TOKEN)):
        begin, end = (reader.base + offset for offset in reader.entries[name]["data_offsets"])
        size = (end - begin) // reader.shape(name)[0]
        data[begin + token * size:begin + (token + 1) * size] = numpy.full(size // 4, numpy.nan, "<f4").tobytes()
    path.write_bytes(data)
    return folder


def test_what_is_not_finite_ends_its_request_alone(launcher, damaged_model):
    blocks = [launcher.block(damaged_model) for _ in range(2)]
    tokens = [launcher.token(damaged_model) for _ in range(2)]
    client = launcher.connected_client(launcher.gateway(damaged_model, blocks, tokens), 2, 2)
    expected = [ask(client, request) for request in REQUESTS]
    with undisturbed_load(client, REQUESTS, 4, expected) as load:
        load.wait_until_in_mid_stream()
        # With alignment none the first four tokens are a block of the prompt, and the fifth begins the next.
        for prompt, words in (([1, 2, 3, 4, NAN_IN_TOKEN], "logits .* not finite"),
                              ([1, 2, 3, NAN_IN_BLOCK, 4], "context that is not finite")):
            with pytest.raises(blockserve.Error, match=f"INTERNAL.*{words}"):
                ask(client, {"prompt": prompt, "max_tokens": 8, "alignment": "none"})
        load.wait_for_answers(8)
    model = client.model()
    assert (model.block_services, model.token_workers) == (2, 2)


def test_rows_of_a_worker_that_is_slow_for_a_moment_are_hedged(launcher):
    """The moment ends when a second worker has answered first, long before the worker is taken for lost."""
    def simulate(flag, *flags):
        return launcher.start("blockserve-simulate", [f"--model={MODEL}", *flags], flag)

    block = simulate("--block-listen", "--block-replicas=1")
    tokens = [simulate("--token-listen", "--token-workers=1", "--token-steps=5") for _ in range(4)]
    gateway = launcher.gateway(MODEL, [block], tokens, METRICS)
    client = launcher.connected_client(gateway, 1, 4)
    expected = [ask(client, request) for request in REQUESTS]

    def counted(what):
        return scrape(gateway).value(f"blockserve_gateway_{what}_total")

    with undisturbed_load(client, REQUESTS, 4, expected) as load:
        load.wait_for_outputs(200)  # what is usual must be known
        before = counted("hedges_won")
        slow = tokens[1].process
        slow.send_signal(signal.SIGSTOP)
        try:
            harness.wait_until(lambda: counted("hedges_won") > before, "a hedge was answered first")
        finally:
            slow.send_signal(signal.SIGCONT)
        load.wait_for_answers(8)
        assert counted("hedged_rows") >= counted("hedges_won")


class Stream:
    """One request that is read by a thread of its own."""

    def __init__(self, client, request):
        self._outputs = threading.Semaphore(0)
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self.answer = self._pool.submit(
            lambda: read_answer(client.stream(**request), lambda output: self._outputs.release()))

    def wait_for_outputs(self, count):
        for _ in range(count):
            assert self._outputs.acquire(timeout=harness.START_LIMIT_S)


LONG = {"prompt": [5] * 9, "max_tokens": 2000, "ignore_eos": True, "seed": 3, "temperature": 0.9, "logprobs": 0}


def test_the_only_block_replica_serves_what_it_has_and_leaves_when_it_is_empty(launcher):
    block, token = launcher.block(MODEL), launcher.token(MODEL)
    client = launcher.connected_client(launcher.gateway(MODEL, [block], [token]), 1, 1)
    expected = ask(client, LONG)
    stream = Stream(client, LONG)
    stream.wait_for_outputs(3)
    block.process.send_signal(signal.SIGTERM)
    assert stream.answer.result(harness.START_LIMIT_S) == expected
    assert block.process.wait(harness.STOP_LIMIT_S) == 0


def test_a_block_replica_leaves_after_30_s_whatever_it_has_and_the_next_one_goes_on(launcher):
    """Nobody can take its sequence, and nothing ends it: the token tier stands still."""
    block, token = launcher.block(MODEL), launcher.token(MODEL)
    # A worker that stands still is a lost connection after 15 s, and would end its rows 10 s later.
    gateway = launcher.gateway(MODEL, [block], [token], "--tier-wait=120s")
    client = launcher.connected_client(gateway, 1, 1)
    expected = ask(client, LONG)
    stream = Stream(client, LONG)
    stream.wait_for_outputs(3)
    token.process.send_signal(signal.SIGSTOP)
    try:
        block.process.send_signal(signal.SIGTERM)
        assert block.process.wait(harness.STOP_LIMIT_S) == 0
        launcher.start("blockserve-block", [f"--model={MODEL}", "--threads=1"],
                       port=int(block.address.rsplit(":")[-1])).wait_until_ready()
    finally:
        token.process.send_signal(signal.SIGCONT)
    assert stream.answer.result(harness.START_LIMIT_S) == expected
