"""Tiers that cannot work together, or are not there."""

import functools
import time

import blockserve
import grpc
import harness
import pytest

F32 = "--arithmetic=f32"


def refusal(client, **parameters):
    with pytest.raises(blockserve.Error) as caught:
        client.generate([1, 2, 3], max_tokens=4, **parameters)
    return caught.value


def test_tiers_of_another_model_are_refused(launcher):
    """The gateway serves one model; the token worker has been started with another."""
    ours, other = harness.GOLDEN / "concat_l4", harness.GOLDEN / "sum_embedder"
    gateway = launcher.gateway(ours, [launcher.block(ours, F32)], [launcher.token(other, F32)],
                               "--tier-wait=1s")
    client = launcher.connected_client(gateway, 1, 0)
    error = refusal(client)
    assert error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)
    assert "token" in error.message
    gateway.wait_for_log("config")
    assert client.model().token_workers == 0
    # A right worker beside the wrong one, on a gateway of its own: the wrong one gets no work.
    gateway = launcher.gateway(ours, [launcher.block(ours, F32)],
                               [launcher.token(other, F32), launcher.token(ours, F32)])
    client = launcher.connected_client(gateway, 1, 1)
    assert len(client.generate([1, 2, 3], max_tokens=9, ignore_eos=True).choices[0].tokens) == 9


def test_a_tier_that_is_not_there_makes_requests_unavailable_and_its_coming_heals(launcher):
    model = harness.GOLDEN / "concat_l4"
    port = harness.free_port()
    absent = type("Absent", (), {"address": f"127.0.0.1:{port}"})()
    gateway = launcher.gateway(model, [launcher.block(model, F32)], [absent], "--tier-wait=1s")
    client = launcher.connected_client(gateway, 1, 0)
    error = refusal(client)
    assert error.code == grpc.StatusCode.UNAVAILABLE and "token" in error.message
    launcher.token(model, F32, port=port)
    harness.wait_until(lambda: client.model().token_workers == 1, "the worker is found")
    assert len(client.generate([1, 2], max_tokens=4, ignore_eos=True).choices[0].tokens) == 4


def test_a_deadline_covers_the_wait_for_a_tier(launcher):
    model = harness.GOLDEN / "concat_l4"
    absent = type("Absent", (), {"address": f"127.0.0.1:{harness.free_port()}"})()
    gateway = launcher.gateway(model, [absent], [launcher.token(model, F32)])
    client = launcher.connected_client(gateway, 0, 1)
    begin = time.monotonic()
    error = refusal(client, timeout=1.5)
    assert error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert time.monotonic() - begin < 60  # the tier wait alone would be 10 s; nothing hangs


def test_the_log_says_why_a_worker_is_not_connected(launcher):
    """Two addresses that were mixed up, and one where nobody listens."""
    model = harness.GOLDEN / "concat_l4"
    block, token = launcher.block(model, F32), launcher.token(model, F32)
    absent = type("Absent", (), {"address": f"127.0.0.1:{harness.free_port()}"})()
    for server in (block, token):
        server.wait_until_ready()
    gateway = launcher.gateway(model, [token, absent], [block])
    for says in (f"what listens at {token.address} is no block service",
                 f"what listens at {block.address} is no token worker",
                 f"block service at {absent.address} cannot be reached: "):
        gateway.wait_for_log(says)
    gateway.wait_for_log("Connection refused")


def test_programs_of_one_machine_meet_at_unix_sockets(launcher, tmp_path_factory):
    """Also at one that a process left behind when it was killed."""
    model, folder = harness.GOLDEN / "concat_l4", tmp_path_factory.mktemp("s")
    at = {tier: f"unix:{folder}/{tier}" for tier in ("block", "token", "gateway")}

    def start(tier, *flags):
        return launcher.start_at(at[tier], f"blockserve-{tier}", [f"--model={model}", *flags])

    start("block", F32)
    worker = start("token", F32)
    gateway = start("gateway", f"--block-services={at['block']}", f"--token-services={at['token']}")
    client = launcher.connected_client(gateway, 1, 1)
    ask = functools.partial(client.generate, [1, 2, 3], max_tokens=9, ignore_eos=True, seed=5)
    answer = ask().choices[0].tokens
    assert len(answer) == 9
    worker.kill()
    start("token", F32)
    harness.wait_until(lambda: client.model().token_workers == 1, "the new worker is connected")
    assert ask().choices[0].tokens == answer
