"""Token workers added and taken away while simulated ones stand for hardware: their steps take a given time
asleep, so that what a tier of them can do does not depend on this machine."""

import time

import harness
from answers import ask
from steady_load import SteadyLoad

MODEL = harness.GOLDEN / "concat_l4"
# A worker writes at most 4 blocks in 60 ms; so many clients keep 3 of them busy.
STEPS = ["--token-steps=60", "--max-rows=4"]
CLIENTS = 24
OUTPUTS = 120  # that a rate is taken over


def test_more_token_workers_write_more_and_taking_them_away_costs_no_request(launcher, note):
    def simulate(flag, flags, port=None):
        return launcher.start("blockserve-simulate", [f"--model={MODEL}", *flags], flag, port)

    block = simulate("--block-listen", ["--block-replicas=1"])
    first = simulate("--token-listen", ["--token-workers=1", *STEPS])
    ports = [harness.free_port() for _ in range(2)]
    gateway = launcher.start("blockserve-gateway", [
        f"--model={MODEL}", f"--block-services={block.address}",
        "--token-services=" + ",".join([first.address, *(f"127.0.0.1:{port}" for port in ports)])])
    client = launcher.connected_client(gateway, 1, 1)
    # What a simulated worker writes is a hash of the row: the same on all of them.
    requests = [{"prompt": [index + 1] * 9, "max_tokens": 40, "ignore_eos": True, "seed": index,
                 "logprobs": 0} for index in range(CLIENTS)]
    expected = [ask(client, requests[0])]

    load = SteadyLoad(client, requests, CLIENTS)

    def rate(workers):
        """Blocks per second with so many workers there."""
        load.wait_for(lambda: client.model().token_workers == workers, f"{workers} token workers")
        load.wait_for_outputs(2 * CLIENTS)  # what was under way belongs to before
        begin = time.monotonic()
        load.wait_for_outputs(OUTPUTS)
        return OUTPUTS / (time.monotonic() - begin)

    try:
        alone = rate(1)
        more = [simulate("--token-listen", ["--token-workers=1", *STEPS], port) for port in ports]
        three = rate(3)
        load.wait_until_in_mid_stream()
        for worker in more:
            worker.stop()  # SIGTERM; it leaves with 0
        again = rate(1)
    finally:
        load.stop()
    assert load.failures == []
    for index, _, answer in load.answers:
        expected += [answer] if index == 0 else []
    assert len(expected) > 1 and all(answer == expected[0] for answer in expected)
    note("simulated token workers, 3 against 1: times the blocks per second", three / alone)
    assert three > 1.5 * alone and three > 1.5 * again
