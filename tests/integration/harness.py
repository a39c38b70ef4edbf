"""Starts blockserve's programs as real processes on loopback and waits until they are ready."""

from __future__ import annotations

import itertools
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
from typing import Callable, Optional, Sequence

import blockserve
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("BLOCKSERVE_BIN_DIR", ROOT / "build" / "bin"))
GOLDEN = ROOT / "tests" / "golden"
DEMO_MODEL = ROOT / "models" / "demo-block"
# Generous: a machine may be busy with other things. Nothing waits for it to pass.
START_LIMIT_S = 120
STOP_LIMIT_S = 60

_taken_ports: set[int] = set()
_names = itertools.count()
# Every program started, so that a failed test can show what they said.
started: list["Server"] = []


def free_port() -> int:
    """A port that nobody listens on, and that this run has not handed out before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in _taken_ports:
            _taken_ports.add(port)
            return port


def wait_until(holds: Callable[[], bool], what: str, limit_s: float = START_LIMIT_S) -> None:
    """Asks until `holds`; fails naming `what` when the time is over."""
    deadline = time.monotonic() + limit_s
    pause = threading.Event()
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s} s: {what}")
        pause.wait(0.02)


def health(address: str, service: str = "", credentials: Optional[grpc.ChannelCredentials] = None,
           timeout: float = 60) -> int:
    """What a process says of itself when it is asked once."""
    options = [("grpc.enable_retries", 0)]
    with (grpc.insecure_channel(address, options) if credentials is None
          else grpc.secure_channel(address, credentials, options)) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout).status


def is_healthy(address: str, service: str = "") -> bool:
    """False also where nobody answers."""
    try:
        return health(address, service, timeout=2) == health_pb2.HealthCheckResponse.SERVING
    except grpc.RpcError:
        return False


def program(name: str) -> str:
    """A built program, or, where `name` is an absolute path, that one."""
    path = PROGRAMS / name
    assert path.exists(), f"{path} is not built: run scripts/test, or set BLOCKSERVE_BIN_DIR"
    return str(path)


class Server:
    """One running program. Its output goes to a file that `log` reads."""

    def __init__(self, name: str, arguments: Sequence[str], address: str, folder: pathlib.Path,
                 wrapper: Sequence[str] = ()):
        """`wrapper`: a command that ends by becoming the one that follows it."""
        self.name = name
        self.address = address
        self.log_path = folder / f"{next(_names):03d}-{pathlib.Path(name).name}.log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [*wrapper, program(name), *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT)
        self._expect_exit_0 = True
        started.append(self)

    def log(self) -> str:
        """So far: a thread of its own writes it, so that what an answer told of may come after the answer."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait_for_log(self, text: str, times: int = 1) -> str:
        """The log, once `text` stands in it so often."""
        wait_until(lambda: self.log().count(text) >= times, f"{self.name} says {text!r}")
        return self.log()

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def is_serving(self) -> bool:
        assert self.is_alive(), f"{self.name} ended with {self.process.returncode}:\n{self.log()}"
        return is_healthy(self.address)

    def wait_until_ready(self) -> "Server":
        wait_until(self.is_serving, f"{self.name} is ready")
        return self

    def kill(self) -> None:
        """kill -9."""
        self._expect_exit_0 = False
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM; the program has to leave with exit status 0."""
        if not self._expect_exit_0:
            return
        if self.is_alive():
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end after SIGTERM:\n{self.log()}") from None
        self._expect_exit_0 = False
        assert status == 0, f"{self.name} ended with {status}:\n{self.log()}"


class Launcher:
    """Starts programs and, at the end, stops them and checks that each leaves with 0."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._servers: list[Server] = []
        self._clients: list[blockserve.Client] = []

    def start(self, name: str, arguments: Sequence[str], address_flag: str = "--listen",
              port: Optional[int] = None) -> Server:
        address = f"127.0.0.1:{port or free_port()}"
        first, *rest = ([*arguments] or [""])
        # `blockserve serve`: the subcommand comes first.
        head = [] if not first or first.startswith("-") else [first]
        tail = rest if head else [*arguments]
        server = Server(name, [*head, f"{address_flag}={address}", *tail], address, self._folder)
        self._servers.append(server)
        return server

    def start_at(self, address: str, name: str, arguments: Sequence[str],
                 wrapper: Sequence[str] = ()) -> Server:
        server = Server(name, [f"--listen={address}", *arguments], address, self._folder, wrapper)
        self._servers.append(server)
        return server

    def serve(self, model: pathlib.Path, *flags: str) -> Server:
        return self.start("blockserve", ["serve", f"--model={model}", *flags], "--grpc-address")

    def block(self, model: pathlib.Path, *flags: str) -> Server:
        return self.start("blockserve-block", [f"--model={model}", "--threads=1", *flags])

    def token(self, model: pathlib.Path, *flags: str, port: Optional[int] = None) -> Server:
        return self.start("blockserve-token", [f"--model={model}", "--threads=1", *flags],
                          port=port)

    def gateway(self, model: pathlib.Path, blocks: Sequence[Server], tokens: Sequence[Server],
                *flags: str) -> Server:
        return self.start("blockserve-gateway", [
            f"--model={model}",
            "--block-services=" + ",".join(server.address for server in blocks),
            "--token-services=" + ",".join(server.address for server in tokens), *flags])

    def client(self, server: Server, **options) -> blockserve.Client:
        # Each call once, unless asked otherwise: tests are told what the server says.
        client = blockserve.Client(server.address, timeout=120, **{"retries": 0, **options})
        self._clients.append(client)
        return client

    def connected_client(self, gateway: Server, blocks: int, tokens: int) -> blockserve.Client:
        """A client of a gateway to which so many services of each tier are connected."""
        client = self.client(gateway.wait_until_ready())

        def connected() -> bool:
            model = client.model()
            return (model.block_services, model.token_workers) == (blocks, tokens)

        wait_until(connected, f"{blocks} block services and {tokens} token workers are connected")
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()
        problems = []
        # Gateways were started last and go first: a service whose gateway is there drains longer.
        for server in reversed(self._servers):
            try:
                server.stop()
            except AssertionError as error:
                problems.append(str(error))
        assert not problems, "\n".join(problems)


def in_parallel(calls: Sequence[Callable[[], object]]) -> list:
    """Runs every call in a thread of its own; their results in order, or the first failure."""
    results: list = [None] * len(calls)
    failures: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except BaseException as error:  # told to the caller below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results
