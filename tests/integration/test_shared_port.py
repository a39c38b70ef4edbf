"""Gateways of one machine behind one port (`--share-port`): the system spreads connections over them, and where one
is lost the others have them all."""

import subprocess

import blockserve
import harness
import pytest
from http_tools import HttpServer
from scraping import scrape

CONNECTIONS = 40  # one of two gets none of them once in 10^12 runs
METRICS = "--metrics-listen=127.0.0.1:0"


@pytest.fixture(scope="module")
def shared(launcher, demo_model):
    """Two servers of the same ports, `blockserve serve` and a gateway on its tiers, and the port of HTTP."""
    port = harness.free_port()
    http = f"127.0.0.1:{port}"
    tiers = f"127.0.0.1:{harness.free_port()}"
    first = launcher.serve(demo_model, "--threads=1", "--share-port", f"--http-address={http}",
                           f"--tiers-address={tiers}", METRICS).wait_until_ready()
    second = launcher.start_at(first.address, "blockserve-gateway", [
        f"--model={demo_model}", f"--block-services={tiers}", f"--token-services={tiers}",
        "--share-port", f"--http-listen={http}", METRICS])
    harness.wait_until(lambda: "listening on" in second.log() and scrape(second).total(
        "blockserve_gateway_workers") == 2, "the second has its tiers")
    return first, second, HttpServer(first, port)


def over_grpc(address):
    with blockserve.Client(address, timeout=60) as client:
        return client.generate("The little dog", max_tokens=8, temperature=0).choices[0].text


def over_http(http):
    answer = http.complete(prompt="The little dog", max_tokens=8, temperature=0)
    return answer["choices"][0]["text"]


def served(server):
    return scrape(server).value("blockserve_gateway_requests_total", method="generate", outcome="ok")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_both_serve_and_answer_alike(shared, protocol):
    first, second, http = shared
    before = [served(server) for server in (first, second)]
    ask = {"grpc": lambda: over_grpc(first.address), "http": lambda: over_http(http)}[protocol]
    texts = {ask() for _ in range(CONNECTIONS)}
    assert len(texts) == 1
    share = [served(server) - old for server, old in zip((first, second), before)]
    assert sum(share) == CONNECTIONS and min(share) > 0, share


def test_who_does_not_share_is_told_that_the_port_is_in_use(shared, demo_model):
    first, _, http = shared
    for flag, address in (("--listen", first.address), ("--http-listen", f"127.0.0.1:{http.port}")):
        addresses = {"--listen": "127.0.0.1:0", "--http-listen": "127.0.0.1:0", flag: address}
        result = subprocess.run(
            [harness.program("blockserve-gateway"), f"--model={demo_model}",
             "--block-services=127.0.0.1:1", "--token-services=127.0.0.1:1",
             *(f"{name}={value}" for name, value in addresses.items())],
            text=True, capture_output=True, timeout=60)
        assert result.returncode == 2
        assert flag in result.stderr and "in use" in result.stderr, result.stderr


def test_where_one_is_lost_the_other_has_all(shared):
    first, second, http = shared
    second.kill()
    before = served(first)
    for _ in range(5):
        over_grpc(first.address)
        over_http(http)
    assert served(first) == before + 10
