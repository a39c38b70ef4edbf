"""How a client reaches its gateways, and when a call is tried again."""

from __future__ import annotations

import dataclasses
import pathlib
import random
import threading
import time
from typing import Optional, Sequence, Union

import grpc

# A long Score with 20 best ids per token, or a long text's ids, pass gRPC's default of 4 MiB.
_MAX_MESSAGE_BYTES = 64 << 20
_MAX_BACKOFF_S = 2.0

Addresses = Union[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Tls:
    """PEM files of an encrypted connection.

    ca: of the CA whose servers are trusted; None: the CAs that gRPC trusts by itself.
    certificate, key: shown to servers that ask for them.
    server_name: in the servers' certificates; None: the host of the address.
    """

    ca: Optional[Union[str, pathlib.Path]] = None
    certificate: Optional[Union[str, pathlib.Path]] = None
    key: Optional[Union[str, pathlib.Path]] = None
    server_name: Optional[str] = None

    def credentials(self) -> grpc.ChannelCredentials:
        def read(path: Optional[Union[str, pathlib.Path]]) -> Optional[bytes]:
            return None if path is None else pathlib.Path(path).read_bytes()

        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")
        return grpc.ssl_channel_credentials(read(self.ca), read(self.key), read(self.certificate))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What both clients are made from."""

    addresses: tuple[str, ...]
    timeout: Optional[float]
    retries: int
    backoff: float
    metadata: tuple[tuple[str, str], ...]
    credentials: Optional[grpc.ChannelCredentials]
    options: tuple[tuple[str, object], ...]

    @classmethod
    def make(cls, address: Addresses, timeout: Optional[float], retries: int, backoff: float,
             api_key: Optional[str], tls: Optional[Tls],
             credentials: Optional[grpc.ChannelCredentials],
             options: Sequence[tuple[str, object]]) -> "Settings":
        addresses = (address,) if isinstance(address, str) else tuple(address)
        if not addresses:
            raise ValueError("address: there is none")
        if retries < 0:
            raise ValueError(f"retries is {retries}: it must be 0 or more")
        if tls is not None and credentials is not None:
            raise ValueError("tls and credentials exclude each other")
        channel_options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            # A gateway that vanishes without a word is noticed; retries are the client's own; and
            # one that comes back is found soon.
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ]
        if tls is not None:
            credentials = tls.credentials()
            if tls.server_name is not None:
                channel_options.append(("grpc.ssl_target_name_override", tls.server_name))
        key = (api_key or "").strip()  # as read from a file
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        return cls(addresses, timeout, retries, backoff, metadata, credentials,
                   (*channel_options, *options))

    def limit(self, timeout: Optional[float]) -> Optional[float]:
        return self.timeout if timeout is None else timeout


class Current:
    """Which gateway calls go to. Thread-safe."""

    def __init__(self, count: int):
        self._count = count
        self._index = 0
        self._lock = threading.Lock()

    @property
    def index(self) -> int:
        return self._index

    def move_on(self, failed: int) -> None:
        with self._lock:
            if self._index == failed:
                self._index = (failed + 1) % self._count


class Attempts:
    """One call, which may be made several times."""

    def __init__(self, settings: Settings, current: Current, timeout: Optional[float]):
        self._settings = settings
        self._current = current
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._failures = 0  # in a row
        self.used = current.index

    def begin(self) -> Optional[float]:
        """Before each try; returns the seconds that it may take."""
        self.used = self._current.index
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - time.monotonic())

    def progress(self) -> None:
        self._failures = 0

    def pause_after(self, code: grpc.StatusCode) -> Optional[float]:
        """Seconds after which to try again; None: that is of no use."""
        # CANCELLED: a gateway that stops cuts off who does not read what it is told.
        lost = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        if not lost and code != grpc.StatusCode.RESOURCE_EXHAUSTED:
            return None
        if self._failures >= self._settings.retries:
            return None
        self._failures += 1
        self._current.move_on(self.used)
        # The others are asked without delay, once each.
        if lost and self._failures < len(self._settings.addresses):
            return 0.0
        pause = min(_MAX_BACKOFF_S, self._settings.backoff * 2 ** (self._failures - 1))
        pause *= random.uniform(0.5, 1.0)
        if self._deadline is not None and time.monotonic() + pause >= self._deadline:
            return None
        return pause
