"""A small deployment of real programs, each in a network namespace of its own where the machine allows,
so that its cables can be cut."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from typing import Callable, Optional, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("BLOCKSERVE_BIN_DIR", ROOT / "build" / "bin"))
START_LIMIT_S = 120
STOP_LIMIT_S = 60
LOG_DISK_BYTES = 64 << 20  # a gateway writes a line for each request


def wait_until(holds: Callable[[], bool], what: str, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    pause = threading.Event()
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s:.0f} s: {what}")
        pause.wait(0.05)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def make_key(name: str, file: pathlib.Path, *flags: str) -> str:
    """Adds an API key to the file of those that gateways let in."""
    return subprocess.run([PROGRAMS / "blockserve", "keys", f"--name={name}", f"--file={file}", *flags],
                          check=True, capture_output=True, text=True).stdout.strip()


class Network:
    """A bridge in a namespace of its own, with this process on it; every program gets a namespace and
    a cable to the bridge. Where that is not allowed, everybody is on loopback, and cables cannot be
    cut."""

    # 198.18.0.0/15 is for tests of networks; nobody routes it.
    def __init__(self) -> None:
        self._tag = f"{os.getpid() % 100000:x}"
        self._names: list[str] = []
        self._next_host = 10
        self._taken: set[int] = set()
        self.why_not = self._try()
        self.separate = self.why_not is None

    def _try(self) -> Optional[str]:
        if os.geteuid() != 0:
            return "namespaces need root"
        for tool in ("ip", "nft"):
            if shutil.which(tool) is None:
                return f"{tool} is not installed (packages iproute2, nftables)"
        net = os.getpid() % 250
        self._prefix = f"198.18.{net}."
        try:
            hub = self._namespace("hub")
            _run("ip", "-n", hub, "link", "add", "br0", "type", "bridge")
            _run("ip", "-n", hub, "link", "set", "br0", "up")
            self._host_link = f"bs{self._tag}h"
            _run("ip", "link", "add", self._host_link, "type", "veth", "peer", "name", "host",
                 "netns", hub)
            _run("ip", "-n", hub, "link", "set", "host", "master", "br0", "up")
            _run("ip", "addr", "add", f"{self._prefix}1/24", "dev", self._host_link)
            _run("ip", "link", "set", self._host_link, "up")
            # Cutting a cable is the point of it all.
            self.attach("probe")
            self.cut("probe", "both")
            self.mend("probe")
        except OSError as error:
            self.close()
            return str(error)
        return None

    def _namespace(self, name: str) -> str:
        full = f"bs{self._tag}-{name}"
        _run("ip", "netns", "add", full)
        self._names.append(full)
        _run("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def name_of(self, name: str) -> str:
        return f"bs{self._tag}-{name}"

    def attach(self, name: str) -> str:
        """A place for a program; returns its address."""
        if not getattr(self, "separate", True):
            return "127.0.0.1"
        host = self._next_host
        self._next_host += 1
        space = self._namespace(name)
        hub = self.name_of("hub")
        _run("ip", "-n", hub, "link", "add", f"p{host}", "type", "veth", "peer", "name", "eth0",
             "netns", space)
        _run("ip", "-n", hub, "link", "set", f"p{host}", "master", "br0", "up")
        _run("ip", "-n", space, "addr", "add", f"{self._prefix}{host}/24", "dev", "eth0")
        _run("ip", "-n", space, "link", "set", "eth0", "up")
        return f"{self._prefix}{host}"

    def inside(self, name: str) -> list[str]:
        """Put before a command, runs it there (and becomes it: its process id is the command's)."""
        return ["ip", "netns", "exec", self.name_of(name)] if self.separate else []

    def port(self) -> int:
        if self.separate:
            return 7070
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            if port not in self._taken:
                self._taken.add(port)
                return port

    def cut(self, name: str, direction: str) -> None:
        """Drops every packet: "in", "out" or "both", as the program sees it."""
        rules = ["add table inet cut"]
        for hook, when in (("input", ("in", "both")), ("output", ("out", "both"))):
            if direction in when:
                rules.append(f"add chain inet cut {hook} "
                             f"{{ type filter hook {hook} priority 0; policy drop; }}")
        _run("ip", "netns", "exec", self.name_of(name), "nft", "; ".join(rules))

    def mend(self, name: str) -> None:
        _run("ip", "netns", "exec", self.name_of(name), "nft", "delete table inet cut")

    def close(self) -> None:
        for name in reversed(self._names):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        self._names.clear()


class LogDisk:
    """A small file system that logs go to, and that can be filled."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={LOG_DISK_BYTES}", "tmpfs",
                               str(folder)], capture_output=True, text=True)
        self.why_not = None if done.returncode == 0 else done.stderr.strip() or "no mount"

    def fill(self) -> None:
        with open(self.folder / "filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"\0" * 65536)
            except OSError:
                pass

    def empty(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        if self.why_not is None:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True)


class Program:
    """A program that is started, killed, frozen and started again at one address."""

    def __init__(self, network: Network, name: str, tier: str, flags: Sequence[str],
                 logs: pathlib.Path):
        """`tier`: gateway, block or token."""
        self.name = name
        self.tier = tier
        self.host = network.attach(name)
        self.port = network.port()
        self.metrics_port = self.port + 1 if network.separate else network.port()
        self.address = f"{self.host}:{self.port}"
        self._network = network
        self.flags = [*flags, f"--metrics-listen={self.host}:{self.metrics_port}"]
        self.log_path = logs / f"{name}.log"
        self.process: Optional[subprocess.Popen] = None
        self.starts = 0
        self.bad_exits: list[str] = []

    def add_http(self) -> None:
        """A gateway's."""
        port = self.port + 2 if self._network.separate else self._network.port()
        self.http_address = f"{self.host}:{port}"
        self.flags.append(f"--http-listen={self.http_address}")

    def start(self, *more: str) -> None:
        assert self.process is None
        command = [*self._network.inside(self.name), str(PROGRAMS / f"blockserve-{self.tier}"),
                   f"--listen={self.address}", *self.flags, *more]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=subprocess.STDOUT)
        self.starts += 1

    def is_serving(self) -> bool:
        with grpc.insecure_channel(self.address, [("grpc.enable_retries", 0)]) as channel:
            try:
                reply = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.RpcError:
                return False
        return reply.status == health_pb2.HealthCheckResponse.SERVING

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log()}")
            return self.is_serving()

        wait_until(ready, f"{self.name} is ready", START_LIMIT_S)

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def has_ended(self, within_s: float) -> bool:
        if self.process is None:
            return False
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def send(self, number: int) -> None:
        if self.is_alive():
            self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def reap(self) -> None:
        """It has died by itself."""
        if self.process is not None:
            self.process.wait()
            self.process = None

    def terminate(self, limit_s: float = STOP_LIMIT_S) -> None:
        """SIGTERM: it has to leave by itself, with exit status 0."""
        if self.process is None:
            return
        self.send(signal.SIGTERM)
        try:
            status = self.process.wait(limit_s)
            if status != 0:
                self.bad_exits.append(f"{self.name} left with {status} after SIGTERM")
            self.process = None
        except subprocess.TimeoutExpired:
            self.bad_exits.append(f"{self.name} did not leave within {limit_s:.0f} s after SIGTERM")
            self.kill()

    def metrics(self) -> dict[str, float]:
        """Sums over labels, but with those of `state` kept: name or name{state}."""
        with urllib.request.urlopen(f"http://{self.host}:{self.metrics_port}/metrics",
                                    timeout=5) as answer:
            text = answer.read().decode()
        found: dict[str, float] = {}
        for line in text.splitlines():
            match = re.match(r"([a-z_]+)(\{[^}]*\})? (\S+)$", line)
            if not match:
                continue
            state = re.search(r'state="(\w+)"', match.group(2) or "")
            key = match.group(1) + (f"{{{state.group(1)}}}" if state else "")
            found[key] = found.get(key, 0.0) + float(match.group(3))
        return found


class DelayProxy:
    """Stands before a program and lets everything through, at once or late, or breaks connections."""

    def __init__(self, network: Network, name: str, target: str, folder: pathlib.Path):
        self.host = network.attach(name)
        self.port = network.port()
        self.address = f"{self.host}:{self.port}"
        self._control = folder / f"{name}.delay_ms"
        self._say("0")
        self.process = subprocess.Popen(
            [*network.inside(name), sys.executable, str(pathlib.Path(__file__).with_name("proxy.py")),
             self.address, target, str(self._control)], stdin=subprocess.DEVNULL)

    def delay(self, milliseconds: int) -> None:
        self._say(str(milliseconds))

    def reset(self) -> None:
        """Every connection of the moment, at both of its ends."""
        self.process.send_signal(signal.SIGUSR1)

    def _say(self, text: str) -> None:
        new = self._control.with_suffix(".new")
        new.write_text(text)
        new.replace(self._control)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
