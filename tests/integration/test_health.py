"""The port of an orchestrator's probes: what startup, readiness and liveness say of a real process that
serves, is overloaded, drains, or hangs."""

import ctypes
import os
import pathlib
import signal
import threading

import blockserve
import grpc
import harness
import pytest
from grpc_health.v1 import health_pb2

MODEL = harness.GOLDEN / "concat_l4"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ALL = ("startup", "readiness", "liveness", "")


def with_health(start, *arguments):
    """The server that `start` starts, and where its health is."""
    address = f"127.0.0.1:{harness.free_port()}"
    return start(*arguments, f"--health-listen={address}"), address


@pytest.fixture(scope="module")
def tiers(launcher):
    """Name -> (server, its health port), of three processes and of one that is all three."""
    block = with_health(launcher.block, MODEL)
    token = with_health(launcher.token, MODEL)
    gateway = with_health(launcher.gateway, MODEL, [block[0]], [token[0]])
    serve = with_health(launcher.serve, MODEL)
    return {"block": block, "token": token, "gateway": gateway, "serve": serve}


@pytest.mark.parametrize("tier", ["block", "token", "gateway", "serve"])
def test_every_program_answers_the_three_probes(tiers, tier):
    server, health = tiers[tier]
    server.wait_until_ready()
    harness.wait_until(lambda: harness.health(health, "readiness") == SERVING, f"{tier} is ready")
    assert [harness.health(health, service) for service in ALL] == [SERVING] * 4
    with pytest.raises(grpc.RpcError) as unknown:
        harness.health(health, "no-such-service")
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("tier", ["block", "token", "gateway", "serve"])
def test_the_port_serves_health_alone(tiers, tier):
    """It is plaintext and for anyone in the cluster: no reflection, no requests, no debugging."""
    server, health = tiers[tier]
    server.wait_until_ready()
    with grpc.insecure_channel(health) as channel:
        for method in ("/blockserve.v1.Generation/GetModel",
                       "/grpc.channelz.v1.Channelz/GetServers",
                       "/blockserve.v1.BlockDecoder/Run", "/blockserve.v1.TokenDecoder/Run"):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(method)(b"", timeout=60)
            assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED, method


def test_overload_is_neither_unready_nor_dead(launcher):
    """More work than one block replica may hold: requests wait or are refused, probes stay as they are."""
    block, block_health = with_health(launcher.block, MODEL, "--max-sequences=1")
    token, token_health = with_health(launcher.token, MODEL, "--max-queued-rows=1")
    gateway, health = with_health(launcher.gateway, MODEL, [block], [token],
                                  "--max-queued-requests=4", "--max-starting-requests=1")
    client = launcher.connected_client(gateway, 1, 1)
    outcomes = []

    def ask():
        try:
            client.generate([1, 2, 3], max_tokens=64, ignore_eos=True)
            outcomes.append("ok")
        except Exception as error:  # refused, which is what overload is
            outcomes.append(error.code)

    def look():
        return [harness.health(where, service) for where in (health, block_health, token_health)
                for service in ALL]

    *_, seen = harness.in_parallel([ask] * 24 + [look])
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in outcomes, outcomes
    assert seen == [SERVING] * 12


PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17


class FrozenThread:
    """Stops one thread of a process, as a deadlock or a hung device would, and lets it go on."""

    def __init__(self, server, name):
        tasks = pathlib.Path(f"/proc/{server.process.pid}/task")
        self._thread = next((int(task.name) for task in tasks.iterdir()
                             if (task / "comm").read_text().strip() == name), None)
        assert self._thread is not None, f"no thread is called {name}"
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _ptrace(self, request):
        if self._libc.ptrace(request, self._thread, None, None) != 0:
            error = ctypes.get_errno()
            pytest.skip(f"threads cannot be stopped here: {os.strerror(error)}")

    def __enter__(self):
        self._ptrace(PTRACE_SEIZE)
        self._ptrace(PTRACE_INTERRUPT)
        os.waitpid(self._thread, 0x40000000)  # __WALL
        return self

    def __exit__(self, *_):
        self._ptrace(PTRACE_DETACH)


def test_a_gateway_that_drains_is_live_and_not_ready(launcher, tiers):
    server, health = with_health(launcher.gateway, MODEL, [tiers["block"][0]], [tiers["token"][0]])
    client = launcher.connected_client(server, 1, 1)
    # While its row is held, the request is what the gateway waits for.
    with FrozenThread(tiers["token"][0], "token-engine"):
        events = iter(client.stream([1, 2, 3], max_tokens=40, ignore_eos=True))
        assert isinstance(next(events), blockserve.Started)
        server.process.send_signal(signal.SIGTERM)
        harness.wait_until(lambda: harness.health(health, "readiness") == NOT_SERVING, "it is not ready")
        assert [harness.health(health, service) for service in ("startup", "liveness", "")] == [
            SERVING, SERVING, NOT_SERVING]
    tokens = [token for event in events if isinstance(event, blockserve.Output)
              for token in event.tokens]
    assert len(tokens) == 40
    assert server.process.wait(harness.STOP_LIMIT_S) == 0
    server.stop()  # the launcher need not


@pytest.mark.parametrize("tier, thread", [("block", "block-engine"), ("token", "token-engine"),
                                          ("gateway", "gateway-loop")])
def test_a_hung_engine_ends_liveness_and_nothing_else_does(launcher, tier, thread):
    servers, health = {}, {}
    bound = "--stall-bound=200ms"
    servers["block"], health["block"] = with_health(launcher.block, MODEL, bound)
    servers["token"], health["token"] = with_health(launcher.token, MODEL, bound)
    servers["gateway"], health["gateway"] = with_health(
        launcher.gateway, MODEL, [servers["block"]], [servers["token"]], bound)
    client = launcher.connected_client(servers["gateway"], 1, 1)
    answers = []
    request = threading.Thread(target=lambda: answers.append(
        client.generate([1, 2, 3], max_tokens=8, ignore_eos=True)))
    with FrozenThread(servers[tier], thread):
        request.start()
        harness.wait_until(lambda: harness.health(health[tier], "liveness") == NOT_SERVING,
                           f"{tier} is not live")
        assert harness.health(health[tier], "startup") == SERVING
        others = [name for name in health if name != tier]
        assert [harness.health(health[name], "liveness") for name in others] == [SERVING] * 2
    # It goes on where it was, and the request with it.
    request.join()
    assert len(answers[0].choices[0].tokens) == 8
    harness.wait_until(lambda: harness.health(health[tier], "liveness") == SERVING, f"{tier} is live again")
    servers[tier].wait_for_log("not live")
