"""Gateways of other processes on the tiers of `blockserve serve --tiers-address`."""

import json
import signal
import types

import blockserve
import harness
import pytest


@pytest.fixture
def tiers():
    """Where the tiers listen, as if it were a server of either."""
    return types.SimpleNamespace(address=f"127.0.0.1:{harness.free_port()}")


def test_another_gateway_gives_the_golden_tokens(launcher, tiers):
    model = harness.GOLDEN / "concat_l4"
    one = launcher.serve(model, "--arithmetic=f32", "--threads=1", f"--tiers-address={tiers.address}")
    one.wait_until_ready()
    clients = [launcher.client(one)]
    for _ in range(2):
        gateway = launcher.gateway(model, [tiers], [tiers])
        clients.append(launcher.connected_client(gateway, 1, 1))
    cases = json.loads((model / "expected.json").read_text())["cases"]

    def answer(client):
        return [client.generate(case["prompt"], max_tokens=64, temperature=0, ignore_eos=True,
                                alignment="end").choices[0].tokens for case in cases]

    for tokens in harness.in_parallel([lambda c=client: answer(c) for client in clients]):
        assert tokens == [case["greedy"] for case in cases]


def test_a_process_that_leaves_ends_the_streams_of_other_gateways_first(launcher, tiers, demo_model):
    one = launcher.serve(demo_model, "--threads=1", f"--tiers-address={tiers.address}")
    one.wait_until_ready()
    client = launcher.connected_client(launcher.gateway(demo_model, [tiers], [tiers]), 1, 1)
    asked = {"max_tokens": 1000, "n": 8, "seed": 3, "ignore_eos": True}

    def tokens_of(events):
        tokens = [[] for _ in range(8)]
        for event in events:
            if isinstance(event, blockserve.Output):
                tokens[event.choice] += event.tokens
        return tokens

    expected = tokens_of(client.stream("Once upon a time", **asked))
    assert all(len(tokens) == 1000 for tokens in expected)
    # What is not read is not generated: the stream runs until the end of the test.
    events = iter(client.stream("Once upon a time", **asked))
    first = [next(events) for _ in range(10)]
    one.process.send_signal(signal.SIGTERM)
    harness.wait_until(lambda: not one.is_serving(), "it takes no new calls")
    assert one.is_alive()
    assert tokens_of([*first, *events]) == expected
    assert one.process.wait(harness.STOP_LIMIT_S) == 0
