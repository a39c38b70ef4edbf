"""Structured logs and spans, through all three tiers."""

import fcntl
import json
import os
import re
import socket
import subprocess

import blockserve
import grpc
import harness
import http_tools
import pytest
from blockserve.v1 import (
    block_decoder_pb2,
    block_decoder_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    tier_pb2,
    token_decoder_pb2,
    token_decoder_pb2_grpc,
)

MODEL = harness.GOLDEN / "concat_l4"
JSON = "--log-format=json"
TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def lines(server):
    """Every line of a program's log is one JSON object, but the one of serve for people."""
    return [json.loads(line) for line in server.log().splitlines()
            if not line.startswith("blockserve serves ")]


def events(server, message):
    return [line for line in lines(server) if line["message"] == message]


@pytest.fixture(scope="module")
def tiers(launcher):
    block = launcher.block(MODEL, "--arithmetic=f32", JSON)
    token = launcher.token(MODEL, "--arithmetic=f32", JSON)
    gateway = launcher.gateway(MODEL, [block], [token], JSON, "--trace-sample-ratio=1e-9",
                               f"--http-listen=127.0.0.1:{(port := harness.free_port())}")
    gateway.http = http_tools.HttpServer(gateway, port)
    return block, token, gateway, launcher.connected_client(gateway, 1, 1)


def test_the_last_line_tells_that_a_program_has_drained_and_stopped(launcher):
    """Whether one was cut off by its supervisor's patience or left by itself."""
    block, token = launcher.block(MODEL, JSON), launcher.token(MODEL, JSON)
    programs = [launcher.gateway(MODEL, [block], [token], JSON), launcher.serve(MODEL, JSON), token, block]
    for server in programs:
        server.wait_until_ready()
        server.stop()
        assert lines(server)[-1]["message"] == "stopped", server.log()


@pytest.mark.parametrize("program", [["blockserve-token"], ["blockserve-block"], ["blockserve", "serve"]])
def test_why_a_program_cannot_begin_is_an_object_too(program):
    """Or whoever gathers lines as objects loses the one that matters."""
    done = subprocess.run([harness.program(program[0]), *program[1:], "--model=/nowhere", JSON], text=True,
                          capture_output=True, timeout=60, check=False)
    last = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == 2 and last["level"] == "error" and "/nowhere" in last["message"], last
    assert last["program"] == " ".join(program)


def test_each_request_leaves_one_line_that_tells_what_became_of_it(tiers):
    *_, gateway, client = tiers
    client.generate([7] * 11, max_tokens=6, ignore_eos=True, request_id="the-first")
    with pytest.raises(blockserve.Error):
        client.generate([7] * 11, max_tokens=7000, n=8, ignore_eos=True, request_id="too-slow",
                        timeout=0.1)
    harness.wait_until(lambda: len(events(gateway, "request finished")) >= 2, "both lines")
    by_id = {line["request_id"]: line for line in events(gateway, "request finished")}
    first = by_id["the-first"]
    assert first["outcome"] == "OK" and first["method"] == "generate"
    assert (first["prompt_tokens"], first["completion_tokens"]) == (11, 6)
    assert 0 <= first["queue_ms"] <= first["first_token_ms"] <= first["total_ms"]
    assert {"time", "level", "program", "pid"} <= set(first)
    assert first["program"] == "blockserve-gateway"
    assert by_id["too-slow"]["outcome"] in ("DEADLINE_EXCEEDED", "CANCELLED")
    assert all("prompt" not in line for line in lines(gateway))


def test_nobody_waits_for_a_log_that_nobody_reads(tiers, launcher, tmp_path):
    """A gateway whose standard error is a pipe that is full: requests are answered, and it leaves."""
    block, token, *_ = tiers
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    ours = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    assert fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, 4096) == 4096
    gateway = launcher.start_at(
        f"127.0.0.1:{harness.free_port()}", "blockserve-gateway",
        [f"--model={MODEL}", f"--block-services={block.address}",
         f"--token-services={token.address}", JSON],
        wrapper=["sh", "-c", f'exec "$0" "$@" 2>{pipe}'])
    client = launcher.connected_client(gateway, 1, 1)
    for i in range(40):
        client.generate([7] * 11, max_tokens=1, request_id=f"{i:0100}", timeout=60)
    gateway.stop()
    log = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert f"{0:0100}" in log and f"{39:0100}" not in log, "the pipe was not full"


def test_a_refused_request_leaves_a_line_too(tiers):
    *_, gateway, client = tiers
    for request in (lambda: client.generate([7], temperature=-1, request_id="bad-generate"),
                    lambda: client.score([7], top_logprobs=99, request_id="bad-score")):
        with pytest.raises(blockserve.Error):
            request()
    status, *_ = gateway.http.request("POST", "/v1/completions", {"prompt": [7], "n": 0},
                                      {"X-Request-Id": "bad-http"})
    assert status == 400
    gateway.wait_for_log("bad-http")
    by_id = {line["request_id"]: line for line in events(gateway, "request refused")}
    assert {request_id: (line["method"], line["error"].split(":")[0])
            for request_id, line in by_id.items()} == {
        "bad-generate": ("generate", "sampling.temperature"),
        "bad-score": ("score", "top_logprobs"), "bad-http": ("generate", "n")}
    assert all(line["outcome"] == "INVALID_ARGUMENT" for line in by_id.values())


def test_a_list_of_prompts_that_fails_is_not_told_as_its_clients_leaving(launcher, tmp_path):
    limits = tmp_path / "limits.json"
    limits.write_text(json.dumps({"keys": {"": {"max_requests": 3}}}), encoding="utf-8")
    server = http_tools.serve(launcher, MODEL, JSON, f"--limits-file={limits}")
    # Beside a stream that runs there is room for two of three.
    with server.connect() as running:
        running.sendall(http_tools.post("/v1/completions", {
            "prompt": [3] * 9, "max_tokens": 4000, "ignore_eos": True, "stream": True}))
        assert running.recv(1000)
        status, error = server.refusal(prompt=[[1], [2], [3]], max_tokens=4000, ignore_eos=True)
        assert status == 429 and "requests are in flight" in error["message"]
        harness.wait_until(lambda: len(events(server.server, "request finished")) >= 3, "lines")
        outcomes = [line["outcome"] for line in events(server.server, "request finished")]
        assert outcomes == ["RESOURCE_EXHAUSTED"] * 3


def test_lines_of_the_grpc_library_have_the_same_form(launcher, tmp_path):
    pki = tmp_path / "pki"
    subprocess.run([harness.ROOT / "scripts/make_certificates", pki, "token"], check=True,
                   capture_output=True)
    token = launcher.token(MODEL, JSON, f"--tls-cert={pki}/token.crt", f"--tls-key={pki}/token.key")
    token.wait_for_log("listening on")
    host, port = token.address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"no handshake of TLS\r\n" * 10)
        while connection.recv(1000):
            pass
    harness.wait_until(lambda: any("grpc" in line for line in lines(token)), "gRPC's line")
    line = next(line for line in lines(token) if "grpc" in line)
    assert line["level"] == "warning" and "andshake" in line["message"]


def test_prompts_are_logged_only_where_that_is_asked_for(launcher):
    server = launcher.serve(MODEL, JSON, "--log-prompts").wait_until_ready()
    launcher.client(server).generate([7, 8, 9], max_tokens=3, ignore_eos=True, request_id="r")
    server.wait_for_log("request finished")
    line, = [json.loads(text) for text in server.log().splitlines()
             if text.startswith("{") and "request finished" in text]
    assert line["prompt"] == "7,8,9"


def generate(gateway, request_id, traceparent):
    with grpc.insecure_channel(gateway.address) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)
        message = generation_pb2.GenerateRequest(
            request_id=request_id, tokens=generation_pb2.TokenIds(ids=[3] * 9),
            stop=generation_pb2.StopConditions(max_tokens=8, ignore_eos=True), seed=1)
        return list(stub.Generate(message, timeout=60, metadata=[("traceparent", traceparent)]))


def complete(gateway, request_id, traceparent):
    """The same over HTTP."""
    status, _, answer = gateway.http.request(
        "POST", "/v1/completions", {"prompt": [3] * 9, "max_tokens": 8, "ignore_eos": True, "seed": 1},
        {"X-Request-Id": request_id, "traceparent": traceparent})
    assert status == 200, answer


@pytest.mark.parametrize("send", [generate, complete])
def test_a_callers_trace_goes_through_all_tiers(tiers, send):
    block, token, gateway, _ = tiers
    request_id = f"traced-{send.__name__}"
    send(gateway, request_id, f"00-{TRACE}-{SPAN}-01")

    def spans(server):
        return [line for line in events(server, "span") if line["request_id"] == request_id]

    harness.wait_until(lambda: len(spans(gateway)) == 1, "the gateway's span")
    root, = spans(gateway)
    assert (root["span"], root["trace_id"], root["parent_span_id"]) == ("gateway.request", TRACE, SPAN)
    harness.wait_until(lambda: {span["span"] for span in spans(block)} ==
                       {"block.open", "block.append"} and spans(token), "the tiers' spans")
    inner = spans(block) + spans(token)
    assert {span["span"] for span in inner} == {"block.open", "block.append", "token.row"}
    for span in inner:
        assert (span["trace_id"], span["parent_span_id"]) == (TRACE, root["span_id"])
        assert 0 <= span["duration_ms"] <= root["duration_ms"] + 1
        assert span["outcome"] == "OK"
    ids = [span["span_id"] for span in inner + [root]]
    assert len(set(ids)) == len(ids)


def test_what_the_caller_does_not_sample_and_what_is_malformed_leave_no_spans(tiers):
    block, token, gateway, _ = tiers
    generate(gateway, "unsampled", f"00-{TRACE}-{SPAN}-00")
    generate(gateway, "malformed", "00-nothing-of-the-kind-01")
    harness.wait_until(lambda: {"unsampled", "malformed"} <=
                       {line["request_id"] for line in events(gateway, "request finished")}, "lines")
    for server in (block, token, gateway):
        assert not {"unsampled", "malformed"} & \
            {line["request_id"] for line in events(server, "span")}


@pytest.mark.parametrize("tier", ["block", "token"])
def test_a_stranger_writes_no_lines_of_his_own(launcher, tier):
    """What a tier says of a gateway that does not fit names what it has: one line, no control characters."""
    server = getattr(launcher, tier)(MODEL).wait_until_ready()
    forged = "x\n2030-01-01T00:00:00.000Z info forged\x1b[2J"
    hello = tier_pb2.GatewayHello(protocol_version=1, gateway_incarnation=1, config_hash=forged)
    stub, batch = {
        "block": (block_decoder_pb2_grpc.BlockDecoderStub, block_decoder_pb2.BlockRequestBatch),
        "token": (token_decoder_pb2_grpc.TokenDecoderStub, token_decoder_pb2.TokenRequestBatch),
    }[tier]
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(stub(channel).Run(iter([batch(hello=hello)]), timeout=60))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    server.wait_for_log("forged")
    for line in server.log().splitlines():
        assert re.match(rf"\d{{4}}-\S+ \w+ blockserve-{tier}\[\d+\] ", line), line
        assert line.isprintable(), repr(line)


def test_unknown_formats_are_bad_usage(launcher):
    server = launcher.start("blockserve-token", [f"--model={MODEL}", "--log-format=xml"])
    assert server.process.wait(harness.START_LIMIT_S) == 2
    server._expect_exit_0 = False
    assert '--log-format is "xml"; use text or json' in server.log()
