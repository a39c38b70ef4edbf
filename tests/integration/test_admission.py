"""Overload, limits of keys, deadlines in the queue: what clients are told, and when."""

import asyncio
import json
import signal

import grpc
import harness
import pytest
from answers import ask
from blockserve.v1 import generation_pb2, generation_pb2_grpc
from scraping import scrape

MODEL = harness.GOLDEN / "concat_l4"
LISTEN = "--metrics-listen=127.0.0.1:0"
OK = grpc.StatusCode.OK
REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED


def request(seed, max_tokens=40, **fields):
    return generation_pb2.GenerateRequest(
        tokens=generation_pb2.TokenIds(ids=[seed % 50 + 1] * 20), seed=seed,
        stop=generation_pb2.StopConditions(max_tokens=max_tokens, ignore_eos=True), **fields)


async def outcome(stub, message, limit_s):
    """(code, seconds, tokens, trailing metadata) of one request; it must end within its limit."""
    begin = asyncio.get_running_loop().time()
    call = stub.Generate(message, timeout=limit_s)
    tokens = 0
    try:
        async for event in call:
            tokens += len(event.output.tokens)
    except grpc.aio.AioRpcError:
        pass
    code = await call.code()
    seconds = asyncio.get_running_loop().time() - begin
    return code, seconds, tokens, dict(await call.trailing_metadata())


def offer(address, messages, limit_s):
    async def run():
        channels = [grpc.aio.insecure_channel(address, [("grpc.enable_retries", 0),
                                                        ("grpc.use_local_subchannel_pool", 1)])
                    for _ in range(4)]
        stubs = [generation_pb2_grpc.GenerationStub(channel) for channel in channels]
        results = await asyncio.gather(*(outcome(stubs[index % 4], message, limit_s)
                                         for index, message in enumerate(messages)))
        for channel in channels:
            await channel.close()
        return results

    return asyncio.run(run())


def test_2000_requests_at_once_each_end_served_or_refused_in_time(launcher, note):
    """Far more than ten times what can be done in their time."""
    server = launcher.serve(MODEL, "--threads=1", "--max-queued-requests=128",
                            "--max-starting-requests=16", "--nolog-requests",
                            LISTEN).wait_until_ready()
    client = launcher.client(server)
    ask(client, {"prompt": [1] * 20, "max_tokens": 40, "ignore_eos": True, "seed": 0})
    before = scrape(server)
    limit_s = 60
    results = offer(server.address, [request(seed) for seed in range(2000)], limit_s)
    assert len(results) == 2000
    assert {code for code, *_ in results} <= {OK, REFUSED}
    served = [result for result in results if result[0] == OK]
    refused = [result for result in results if result[0] == REFUSED]
    assert served and refused
    for _, seconds, tokens, _ in served:
        assert tokens == 40
        assert seconds < limit_s
    for _, seconds, _, metadata in refused:
        assert 1 <= int(metadata["retry-after"]) <= 60
        assert seconds < limit_s
    after = scrape(server)
    grown = after.value("process_resident_memory_bytes") - \
        before.value("process_resident_memory_bytes")
    note("overload: memory grown, MiB", grown / 2**20)
    assert grown < 200 * 2**20
    assert after.value("blockserve_gateway_requests_total", method="generate", outcome="ok") - \
        before.value("blockserve_gateway_requests_total", method="generate", outcome="ok") == len(served)
    # Nothing is left over, and it serves on.
    harness.wait_until(lambda: scrape(server).value("blockserve_gateway_streams") == 0, "all over")
    assert scrape(server).value("blockserve_block_sequences") == 0
    ask(client, {"prompt": [1] * 20, "max_tokens": 40, "ignore_eos": True, "seed": 0})


def test_deadlines_hold_while_queued(launcher):
    """One at a time gets to its first block, and the worker does not answer: those behind it are
    refused before their time is over."""
    block = launcher.block(MODEL, "--arithmetic=f32", "--max-sequences=1")
    token = launcher.token(MODEL, "--arithmetic=f32")
    gateway = launcher.gateway(MODEL, [block], [token], "--max-starting-requests=1")
    client = launcher.connected_client(gateway, 1, 1)
    with client.stream([1] * 20, max_tokens=7000, ignore_eos=True) as holds:
        next(iter(holds))
        token.process.send_signal(signal.SIGSTOP)
        try:
            results = offer(gateway.address, [request(seed) for seed in range(3)], limit_s=3)
        finally:
            token.process.send_signal(signal.SIGCONT)
    codes = [code for code, *_ in results]
    # The first has left the queue, and waits for KV.
    assert codes.count(REFUSED) >= 2
    assert set(codes) <= {REFUSED, grpc.StatusCode.DEADLINE_EXCEEDED, OK}


@pytest.fixture(scope="module")
def limits(tmp_path_factory):
    path = tmp_path_factory.mktemp("limits") / "limits.json"

    def write(content):
        path.write_text(json.dumps(content), encoding="utf-8")
        return f"--limits-file={path}"

    return write


def test_limits_of_a_key_are_told_with_a_time_to_come_again(launcher, limits):
    server = launcher.serve(MODEL, limits({"keys": {"": {"requests_per_second": 0.01, "burst": 3}}}))
    server.wait_until_ready()
    results = offer(server.address, [request(seed, max_tokens=4) for seed in range(8)], limit_s=60)
    assert [code for code, *_ in results].count(OK) == 3
    for code, _, _, metadata in results:
        if code == REFUSED:
            assert int(metadata["retry-after"]) == 60  # the longest that is told
            assert int(metadata["grpc-retry-pushback-ms"]) > 1000


def test_tokens_in_flight_of_a_key_are_limited(launcher, limits):
    server = launcher.serve(MODEL, limits({"default": {"max_tokens": 100}})).wait_until_ready()
    (code, *_), = offer(server.address, [request(1, max_tokens=81)], limit_s=60)
    assert code == grpc.StatusCode.INVALID_ARGUMENT, "it would be refused for ever"
    (code, _, tokens, _), = offer(server.address, [request(1, max_tokens=80)], limit_s=60)
    assert (code, tokens) == (OK, 80)


def test_a_wrong_limits_file_is_named(launcher, limits):
    server = launcher.start("blockserve", ["serve", f"--model={MODEL}",
                                           limits({"keys": {"a": {"max_request": 1}}})],
                            "--grpc-address")
    assert server.process.wait(harness.START_LIMIT_S) == 2
    server._expect_exit_0 = False
    assert "--limits-file" in server.log()
    assert "keys.a.max_request is not known" in server.log()


def test_a_client_that_does_not_read_its_stream_is_cut_off(launcher):
    server = launcher.serve(MODEL, "--slow-reader-timeout=300ms", LISTEN).wait_until_ready()
    message = request(1, max_tokens=4000, n=8, logprobs=20)
    with grpc.insecure_channel(server.address) as channel:
        call = generation_pb2_grpc.GenerationStub(channel).Generate(message, timeout=120)
        assert next(iter(call)).HasField("started")
        name = {"method": "generate", "outcome": "aborted"}
        harness.wait_until(lambda: scrape(server).value("blockserve_gateway_requests_total", **name) == 1,
                           "it is cut off")
        harness.wait_until(lambda: scrape(server).value("blockserve_block_sequences") == 0,
                           "nothing is held for it")
        with pytest.raises(grpc.RpcError) as caught:
            tokens = sum(len(event.output.tokens) for event in call)
            assert tokens < 8 * 4000
        assert caught.value.code() == grpc.StatusCode.ABORTED
