"""A gateway is lost, and its streams go on through another one with exactly the rest."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import threading
import types

import blockserve
import grpc
import harness
import http_tools
import pytest
from answers import ask, read_answer
from blockserve import _wire
from blockserve.v1 import generation_pb2 as pb
from blockserve.v1 import generation_pb2_grpc
from test_failover import assert_undisturbed, requests_of_every_kind, run_disturbed

STREAMS = 16


@pytest.fixture(scope="module")
def tiers(demo_model, launcher):
    """Two gateways before one block service and two token workers; `spare` is left alone."""
    block = launcher.block(demo_model)
    tokens = [launcher.token(demo_model) for _ in range(2)]

    def gateway(*flags):
        server = launcher.gateway(demo_model, [block], tokens, *flags)
        launcher.connected_client(server, 1, 2)
        return server

    return types.SimpleNamespace(gateway=gateway, spare=gateway())


@pytest.fixture(scope="module")
def stub(tiers):
    with grpc.insecure_channel(tiers.spare.address) as channel:
        yield generation_pb2_grpc.GenerationStub(channel)


def sdk(*servers, client=blockserve.Client, **options):
    """A client that begins at the first, which is else left to chance."""
    made = client([server.address for server in servers], timeout=120, **options)
    made._current._index = 0
    return made


def test_kill_9_of_a_gateway_under_16_streams(tiers, launcher):
    requests = requests_of_every_kind(launcher.client(tiers.spare))[:STREAMS]
    with sdk(tiers.spare) as client:
        expected = [ask(client, request) for request in requests]
    doomed = tiers.gateway()
    with sdk(doomed, tiers.spare) as client:
        answers, _ = run_disturbed(types.SimpleNamespace(client=client), requests, doomed.kill)
    assert_undisturbed(answers, requests, expected)


def test_kill_9_of_a_gateway_under_asyncio(tiers, launcher):
    requests = [{"prompt": "One day, a dog", "max_tokens": 200, "ignore_eos": True, "seed": seed,
                 "logprobs": 1} for seed in range(8)]
    with sdk(tiers.spare) as client:
        expected = [client.generate(**request) for request in requests]
    doomed = tiers.gateway()

    async def run():
        under_way = asyncio.Barrier(len(requests)) if hasattr(asyncio, "Barrier") else None
        started = []

        async def one(client, request):
            builder = _wire.CompletionBuilder()
            stream = client.stream(**request)
            async for event in stream:
                builder.add(event)
                if isinstance(event, blockserve.Output) and request["seed"] not in started:
                    started.append(request["seed"])
                    if under_way is not None:
                        await under_way.wait()
                    if doomed.is_alive():
                        doomed.kill()
            return builder.build(), stream.resumes

        async with sdk(doomed, tiers.spare, client=blockserve.AsyncClient) as client:
            return await asyncio.gather(*(one(client, request) for request in requests))

    results = asyncio.run(run())
    assert sum(resumes for _, resumes in results) > 0
    for (completion, _), undisturbed in zip(results, expected):
        assert completion.choices == undisturbed.choices
        assert completion.started.seed == undisturbed.started.seed
        assert completion.usage.completion_tokens == undisturbed.usage.completion_tokens


def test_a_gateway_that_is_frozen_is_left_long_before_the_deadline(tiers):
    """Its kernel goes on acknowledging what it is sent: only an answer of the process itself tells. gRPC's own limit
    for that is a minute, whatever the keepalive."""
    request = {"prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True, "seed": 5}
    with sdk(tiers.spare) as client:
        expected = ask(client, request)
    doomed = tiers.gateway()
    with sdk(doomed, tiers.spare) as client:
        seen = []

        def freeze(output):
            seen.append(output.position)
            if len(seen) == 10:
                doomed.process.send_signal(signal.SIGSTOP)

        stream = client.stream(**request, timeout=45)
        assert read_answer(stream, freeze) == expected
    assert stream.resumes == 1
    doomed.kill()


def test_a_stop_string_that_belongs_to_the_text_comes_once_wherever_the_stream_broke(tiers, stub):
    request = pb.GenerateRequest(text="Once upon a time", stop=pb.StopConditions(max_tokens=60))
    request.sampling.temperature = 0
    with sdk(tiers.spare) as client:
        text = client.generate(request.text, max_tokens=60, temperature=0).choices[0].text
    stop = text[40:80]  # of several blocks
    request.stop.strings.append(stop)
    request.stop.include_string = True
    started, *outputs, finished, _ = stub.Generate(request, timeout=60)
    received = [event.output.text for event in outputs]
    whole = text[:text.index(stop) + len(stop)]
    assert "".join(received) + finished.finished.text == whole and finished.finished.stop_string == stop
    assert len(outputs) > 4 and received[-2:] == ["", ""], "it was held back over blocks"
    for cut in range(len(outputs) + 1):
        resumed = pb.GenerateRequest()
        resumed.CopyFrom(request)
        resumed.resume.started.CopyFrom(started.started)
        had = resumed.resume.choices.add()
        for event in outputs[:cut]:
            had.tokens.extend(event.output.tokens)
        _, *rest, end, _ = stub.Generate(resumed, timeout=60)
        assert [event.output.text for event in rest] == received[cut:]
        assert end.finished.text == finished.finished.text, cut


def test_a_gateway_that_drains_hands_its_streams_over(tiers):
    request = {"prompt": "In the forest", "max_tokens": 240, "ignore_eos": True, "seed": 3, "n": 2}
    with sdk(tiers.spare) as client:
        expected = ask(client, request)
    leaving = tiers.gateway("--drain-time=0s")
    stopped = []

    def stop(output):
        if not stopped:
            stopped.append(leaving)
            leaving.stop()

    with sdk(leaving, tiers.spare) as client:
        stream = client.stream(**request)
        assert read_answer(stream, stop) == expected
        assert stopped and stream.resumes == 1


def test_at_the_end_of_the_drain_time_streams_are_told_so_after_all_of_their_tokens(tiers):
    """UNAVAILABLE over gRPC, an event over HTTP; what was received is the beginning of the answer."""
    port = harness.free_port()
    leaving = tiers.gateway("--drain-time=0s", f"--http-listen=127.0.0.1:{port}")
    http = http_tools.HttpServer(leaving, port)
    fields = {"max_tokens": 900, "ignore_eos": True, "seed": 3, "temperature": 1}
    with sdk(tiers.spare) as client:
        expected = client.generate("In the forest", **fields).choices[0]
    request = pb.GenerateRequest(text="In the forest", seed=3,
                                 stop=pb.StopConditions(max_tokens=900, ignore_eos=True))
    request.sampling.temperature = 1
    with grpc.insecure_channel(leaving.address) as channel, http.connect() as connection:
        connection.settimeout(60)
        connection.sendall(http_tools.post("/v1/completions",
                                           {"prompt": "In the forest", "stream": True, **fields}))
        began = connection.recv(2000)
        call = generation_pb2_grpc.GenerationStub(channel).Generate(request, timeout=120)
        tokens, told = [], False
        with pytest.raises(grpc.RpcError) as caught:
            for event in call:
                tokens += event.output.tokens
                if not tokens:
                    continue
                if not told:
                    told = True
                    leaving.process.send_signal(signal.SIGTERM)
        text = (began + http_tools.read_to_end(connection)).decode()
    # A second signal would end it at once.
    leaving.process.wait(harness.STOP_LIMIT_S)
    leaving.stop()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, caught.value.details()
    assert 0 < len(tokens) < 900 and tokens == list(expected.tokens[:len(tokens)])
    *events, last = re.findall(r"data: (\{.*\})", text)
    assert "the gateway is stopping" in json.loads(last)["error"]["message"]
    written = "".join(json.loads(event)["choices"][0]["text"] for event in events)
    assert written and expected.text.startswith(written)
    assert text.endswith("0\r\n\r\n") and "[DONE]" not in text, "the stream ends in order"


def test_over_http_a_stream_goes_on_through_another_gateway(tiers):
    """With Last-Event-ID alone, after kill -9; nobody gave a seed."""
    port, spare_port = harness.free_port(), harness.free_port()
    doomed = http_tools.HttpServer(tiers.gateway(f"--http-listen=127.0.0.1:{port}"), port)
    other = http_tools.HttpServer(tiers.gateway(f"--http-listen=127.0.0.1:{spare_port}"), spare_port)
    fields = {"prompt": "Once upon a time", "max_tokens": 600, "ignore_eos": True, "stream": True, "n": 2,
              "stream_options": {"include_event_id": True}}
    text = ""
    with doomed.connect() as connection:
        connection.settimeout(60)
        connection.sendall(http_tools.post("/v1/completions", fields))
        while text.count("\nid: ") < 40:
            text += connection.recv(4096).decode()
        doomed.server.kill()
        text += http_tools.read_to_end(connection).decode()
    # Whole events alone; a chunk holds whole ones.
    received = [(event_id, json.loads(data)) for event_id, data in
                re.findall(r"id: (\S+)\ndata: (\{.*\})\n\n", text)]
    assert 40 <= len(received) < 1200
    status, _, rest = other.request("POST", "/v1/completions", fields,
                                    {"Last-Event-ID": received[-1][0]})
    assert status == 200, rest
    events = received + list(http_tools.parse_events(rest))
    assert len(events) == 1200
    seed = int(received[0][0].split(":")[1], 16)
    whole = other.complete(**{**fields, "stream": False, "stream_options": None, "seed": seed})
    for choice in whole["choices"]:
        written = [data["choices"][0] for _, data in events
                   if data["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in written) == choice["text"]
        assert written[-1]["finish_reason"] == choice["finish_reason"] == "length"


def test_with_one_address_the_stream_waits_for_its_gateway(tiers, demo_model, launcher):
    request = {"prompt": "Tom and Sue", "max_tokens": 240, "ignore_eos": True, "seed": 4}
    with sdk(tiers.spare) as client:
        expected = ask(client, request)
    doomed = tiers.gateway()
    replaced = []

    def replace(output):
        if not replaced:
            doomed.kill()
            block, tokens = (next(flag.split("=")[1] for flag in doomed.process.args
                                  if flag.startswith(f"--{tier}-services=")).split(",")
                             for tier in ("block", "token"))
            replaced.append(launcher.start("blockserve-gateway", [
                f"--model={demo_model}", "--block-services=" + ",".join(block),
                "--token-services=" + ",".join(tokens)], port=int(doomed.address.split(":")[1])))

    with sdk(doomed) as client:
        assert read_answer(client.stream(**request), replace) == expected


class Balancer:
    """Passes connections on to a gateway, and says nothing before it has been spoken to, as Envoy does; drops the
    first ones, as one that is away does."""

    def __init__(self, gateway, port, drops=0):
        self._gateway = gateway.address.split(":")
        self.drops = drops
        self._sockets = [socket.create_server(("127.0.0.1", port))]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._sockets[0].accept()
                if self.drops:
                    client.close()
                    self.drops -= 1
                    continue
                threading.Thread(target=self._begin, args=(client,), daemon=True).start()

    def _begin(self, client):
        self._sockets.append(client)
        first = client.recv(4096)
        gateway = socket.create_connection(self._gateway)
        self._sockets.append(gateway)
        gateway.sendall(first)
        threading.Thread(target=self._pass_on, args=(gateway, client), daemon=True).start()
        self._pass_on(client, gateway)

    def _pass_on(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def close(self):
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


# More than a few quick tries.
DROPS = 5


def test_the_command_line_waits_for_a_load_balancer_that_is_started_again(tiers):
    """Which is away for longer than a few quick tries take."""
    with sdk(tiers.spare) as client:
        expected = client.generate("Tom and Sue", max_tokens=4000, ignore_eos=True, seed=4)
    port = harness.free_port()
    balancer = Balancer(tiers.spare, port)
    with subprocess.Popen([
            harness.program("blockserve"), "generate", f"--server=127.0.0.1:{port}", "--prompt=Tom and Sue",
            "--max-tokens=4000", "--ignore-eos", "--temperature=1", "--seed=4"], stdout=subprocess.PIPE,
            text=True) as generate:
        text = generate.stdout.read(1)
        balancer.close()
        balancer = Balancer(tiers.spare, port, DROPS)
        harness.wait_until(lambda: not balancer.drops, "the balancer is back")
        assert generate.poll() is None, "it has not gone on yet"
        text += generate.stdout.read()
    balancer.close()
    assert generate.returncode == 0 and text == expected.choices[0].text + "\n"


def test_a_client_waits_for_a_load_balancer_that_is_started_again(tiers):
    """Whatever the gRPC: up to 1.76 at least it hardly goes on with a connection while no call is under way."""
    request = {"prompt": "Tom and Sue", "max_tokens": 4000, "ignore_eos": True, "seed": 4}
    with sdk(tiers.spare) as client:
        expected = ask(client, request)
    port = harness.free_port()
    balancers = [Balancer(tiers.spare, port)]

    def break_off(output):
        if len(balancers) == 1:
            balancers[0].close()
            balancers.append(Balancer(tiers.spare, port, DROPS))

    with blockserve.Client(f"127.0.0.1:{port}", timeout=120) as client:
        assert read_answer(client.stream(**request), break_off) == expected
    assert not balancers[1].drops
    balancers[1].close()


def read(stub, request):
    return list(stub.Generate(request, timeout=120))


def joined(responses, choice):
    """Tokens, log-probabilities and text of a choice, and its end."""
    tokens, logprobs, text, end = [], [], "", None
    for response in responses:
        if response.HasField("output") and response.output.choice == choice:
            tokens += response.output.tokens
            logprobs += response.output.logprobs
            text += response.output.text
        elif response.HasField("finished") and response.finished.choice == choice:
            end = response.finished
            text += end.text
    return tokens, logprobs, text, end


@pytest.mark.parametrize("alignment", ["end", "start"])
def test_every_cut_of_a_stream_with_penalties_and_logprobs(stub, alignment):
    """Through the real arithmetic: the log-probabilities of a cut block are the same bits."""
    request = _wire.generate_request(
        "The little girl", max_tokens=21, seed=11, alignment=alignment, n=2, logprobs=2,
        temperature=0.9, repetition_penalty=1.2, frequency_penalty=0.3, ignore_eos=True)
    whole = read(stub, request)
    tokens = [joined(whole, choice)[0] for choice in range(2)]
    for cut in range(22):
        resumed = pb.GenerateRequest()
        resumed.CopyFrom(request)
        resumed.resume.started.CopyFrom(whole[0].started)
        cuts = (cut, 21 - cut)
        for choice in range(2):
            resumed.resume.choices.add(tokens=tokens[choice][:cuts[choice]])
        rest = read(stub, resumed)
        assert rest[0].started.seed == 11
        for choice in range(2):
            got, want = joined(rest, choice), joined(whole, choice)
            assert got[0] == want[0][cuts[choice]:], (cut, choice)
            assert got[1] == want[1][cuts[choice]:], (cut, choice)
            assert want[2].endswith(got[2]) and got[3].reason == want[3].reason
        assert rest[-1].usage.completion_tokens == 42


def test_ids_that_nobody_serves_are_a_failed_precondition(tiers):
    strict = tiers.gateway("--tier-wait=0s")
    with grpc.insecure_channel(strict.address) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)
        request = _wire.generate_request("The sun was", max_tokens=9, seed=1)
        request.resume.started.CopyFrom(read(stub, request)[0].started)
        request.resume.choices.add()
        assert len(read(stub, request)) > 2
        request.resume.started.token_numeric_id = "f32-of-another-machine"
        with pytest.raises(grpc.RpcError) as caught:
            read(stub, request)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "f32-of-another-machine" in caught.value.details()


def test_a_resume_that_does_not_fit_names_its_field(stub):
    request = _wire.generate_request("The sun was", max_tokens=4, seed=1)
    request.resume.started.CopyFrom(read(stub, request)[0].started)
    request.resume.choices.add(tokens=[1, 2, 3, 4, 5])
    with pytest.raises(grpc.RpcError) as caught:
        read(stub, request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("resume.choices[0].tokens: ")
