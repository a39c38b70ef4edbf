"""Connections that a gateway asks its clients to make anew, so that they spread over the gateways."""

import http.client
import time

import blockserve
import grpc
import harness
import http_tools
import pytest
from blockserve.v1 import generation_pb2, generation_pb2_grpc

MODEL = harness.GOLDEN / "concat_l4"
STEPS = ["--token-steps=60"]  # ms of a simulated worker


@pytest.fixture(scope="module")
def gateway(launcher):
    def simulate(flag, *flags):
        return launcher.start("blockserve-simulate", [f"--model={MODEL}", *flags], flag)

    block = simulate("--block-listen", "--block-replicas=1")
    token = simulate("--token-listen", "--token-workers=1", *STEPS)
    return http_tools.gateway(launcher, MODEL, [block], [token], "--max-connection-age=1s")


def test_an_old_grpc_connection_takes_no_new_call_and_ends_none(gateway):
    states = []
    with grpc.insecure_channel(gateway.server.address,
                               [("grpc.enable_retries", 0)]) as channel:
        channel.subscribe(states.append, try_to_connect=True)
        harness.wait_until(lambda: grpc.ChannelConnectivity.READY in states, "the connection")
        # 40 blocks of 60 ms: more than twice the age.
        request = generation_pb2.GenerateRequest(
            tokens=generation_pb2.TokenIds(ids=[3] * 9),
            stop=generation_pb2.StopConditions(max_tokens=160, ignore_eos=True), seed=1)
        events = list(generation_pb2_grpc.GenerationStub(channel).Generate(request, timeout=60))
        assert events[-1].usage.completion_tokens == 160
        after = states[states.index(grpc.ChannelConnectivity.READY) + 1:]
        assert grpc.ChannelConnectivity.IDLE in after, states
        generation_pb2_grpc.GenerationStub(channel).GetModel(generation_pb2.GetModelRequest(),
                                                             timeout=60)


def test_an_old_http_connection_is_closed_after_an_answer(gateway):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)

    def close_wanted():
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        return response.headers.get("Connection") == "close"

    assert not close_wanted()
    time.sleep(1.2)  # its age is at most a tenth above
    assert close_wanted()
    assert not close_wanted()  # a new one


def test_the_sdk_does_not_notice(gateway):
    with blockserve.Client(gateway.server.address, retries=0) as client:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert client.generate([5] * 5, max_tokens=4, ignore_eos=True).usage.completion_tokens == 4
