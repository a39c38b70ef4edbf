"""Block replicas that misbehave while real gateways use them: wrong bits, a request that kills them, an engine
that hangs."""

import concurrent.futures

import harness
import pytest
from answers import ask
from scraping import scrape
from steady_load import SteadyLoad

import blockserve

MODEL = harness.GOLDEN / "concat_l4"
MARKED = 511  # a prompt with this token makes replicas misbehave
METRICS = "--metrics-listen=127.0.0.1:0"
REQUESTS = [{"prompt": [3 + index] * (5 + 7 * index), "max_tokens": 100, "ignore_eos": True, "seed": index,
             "temperature": 0.9, "logit_bias": {MARKED: -100.0}, "logprobs": 0} for index in range(6)]


@pytest.fixture
def deployment(tmp_path):
    launcher = harness.Launcher(tmp_path)

    def make(replica_flags, *gateway_flags):
        blocks = [launcher.block(MODEL, f"--name=block-{index}", METRICS, "--allow-fault-injection", *flags)
                  for index, flags in enumerate(replica_flags)]
        token = launcher.token(MODEL)
        gateway = launcher.gateway(MODEL, blocks, [token], METRICS, *gateway_flags)
        return blocks, gateway, launcher.connected_client(gateway, len(blocks), 1)

    yield make
    launcher.close()


def test_a_replica_of_wrong_bits_is_found_and_named_and_no_client_sees_one(deployment):
    _, _, client = deployment([[]])
    expected = [ask(client, request) for request in REQUESTS]
    _, gateway, client = deployment([[], ["--inject-wrong-bits=0.2"], []],
                                    "--audit-context-fraction=1", "--audit-hold")
    load = SteadyLoad(client, REQUESTS, 4)
    try:
        harness.wait_until(lambda: "'block-1'" in gateway.log() and "answered wrong bits" in gateway.log(),
                           "the log names the replica")
        load.wait_for_answers(8)
    finally:
        load.stop()
    assert load.failures == []
    for index, _, answer in load.answers:
        assert answer == expected[index], REQUESTS[index]
    assert scrape(gateway).value("blockserve_gateway_workers_condemned_total") == 1
    assert client.model().block_services == 2


def test_a_request_that_kills_replicas_ends_alone(deployment):
    blocks, _, client = deployment([[f"--inject-crash-token={MARKED}"]] * 5)
    expected = [ask(client, request) for request in REQUESTS]
    load = SteadyLoad(client, REQUESTS, 4)
    try:
        load.wait_until_in_mid_stream()
        with pytest.raises(blockserve.Error, match="INTERNAL.*died under this request"):
            ask(client, {"prompt": [1, 2, 3, MARKED, 4, 5, 6, 7], "max_tokens": 8})
        load.wait_for_answers(8)
    finally:
        load.stop()
    assert load.failures == []
    for index, _, answer in load.answers:
        assert answer == expected[index], REQUESTS[index]
    assert sum(replica.is_alive() for replica in blocks) == 1
    for replica in blocks:
        if not replica.is_alive():
            replica.kill()  # not to be asked how it ended


def test_a_replica_whose_engine_hangs_is_done_without(deployment):
    """It can be reached all the time: its connection answers."""
    blocks, gateway, client = deployment([[f"--inject-hang-token={MARKED}"], []])
    expected = [ask(client, request) for request in REQUESTS]
    load = SteadyLoad(client, REQUESTS, 4)
    try:
        load.wait_until_in_mid_stream()
        # Enough at once that both replicas are asked. Each begins with another token: equal beginnings would
        # all go to the replica that has the first one's pages.
        marked = [{"prompt": [first, 2, 3, MARKED, 4, 5, 6, 7], "max_tokens": 100, "ignore_eos": True, "seed": 1}
                  for first in range(1, 33)]
        with concurrent.futures.ThreadPoolExecutor(len(marked)) as pool:
            list(pool.map(lambda request: ask(client, request), marked))
        assert "'block-0' has said nothing for" in gateway.log()
        load.wait_for_answers(8)
    finally:
        load.stop()
        blocks[0].kill()
    assert load.failures == []
    for index, _, answer in load.answers:
        assert answer == expected[index], REQUESTS[index]
