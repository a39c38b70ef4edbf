"""How a client reaches its gateways, and when a call is tried again."""

from __future__ import annotations

import dataclasses
import pathlib
import random
import re
import threading
import time
from typing import Optional, Sequence, Union

import grpc

from blockserve import types

# A long Score with 20 best ids per token, or a long text's ids, pass gRPC's default of 4 MiB.
_MAX_MESSAGE_BYTES = 64 << 20
_MAX_BACKOFF_S = 2.0
# Where the caller gives no `retries`: how long a gateway that is lost is tried, and how often one
# that refuses or that has never answered.
_LOST_S = 30.0
_RETRIES = 5
# Ten years: above it there is no limit.
_LONGEST_TIMEOUT_S = 3e8
# Of a `retry-after`; gateways tell at most a minute.
_MAX_RETRY_AFTER_S = 1e6
# Of one attempt to connect: who takes the connection and then says nothing is frozen. But gRPC up to
# 1.76 at least looks only every 5 s at what becomes of an attempt while no call is under way, and has
# to look twice where a proxy waits for our first bytes.
_CONNECT_LIMIT_MS = 5_000 if [int(part) for part in grpc.__version__.split(".")[:2]] >= [1, 80] else 11_000

Addresses = Union[str, Sequence[str]]


def retry_after(error: grpc.RpcError) -> Optional[float]:
    """Seconds until the gateway wants to be asked again; None: it does not tell."""
    value = _told(error, "retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 <= seconds <= _MAX_RETRY_AFTER_S else None


def _told(error: grpc.RpcError, key: str) -> Optional[str]:
    """What the trailing metadata say first under the key."""
    return next((value for name, value in error.trailing_metadata() or () if name == key), None)


def _authorization(api_key: Optional[str]) -> tuple[tuple[str, str], ...]:
    key = (api_key or "").strip()  # as read from a file
    if not key:
        return ()
    if not re.fullmatch("[!-~]+", key):
        raise ValueError("api_key has whitespace, control or non-ASCII characters in it")
    return (("authorization", f"Bearer {key}"),)


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
    retries: Optional[int]  # None: _LOST_S and _RETRIES hold
    backoff: float
    metadata: tuple[tuple[str, str], ...]
    credentials: Optional[grpc.ChannelCredentials]
    options: tuple[tuple[str, object], ...]

    @classmethod
    def make(cls, address: Addresses, timeout: Optional[float], retries: Optional[int],
             backoff: float, api_key: Optional[str], tls: Optional[Tls],
             credentials: Optional[grpc.ChannelCredentials],
             options: Sequence[tuple[str, object]]) -> "Settings":
        addresses = (address,) if isinstance(address, str) else tuple(address)
        if not addresses:
            raise ValueError("address: there is none")
        if retries is not None and retries < 0:
            raise ValueError(f"retries is {retries}: it must be 0 or more")
        if tls is not None and credentials is not None:
            raise ValueError("tls and credentials exclude each other")
        channel_options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            # A gateway that vanishes without a word is noticed, however long nothing is sent to it;
            # retries are the client's own; and one that comes back is found soon.
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            # What gRPC 1.85 goes by for every ping, the keepalive's too: a minute by itself.
            ("grpc.http2.ping_timeout_ms", 5_000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.min_reconnect_backoff_ms", _CONNECT_LIMIT_MS),
        ]
        if tls is not None:
            credentials = tls.credentials()
            if tls.server_name is not None:
                channel_options.append(("grpc.ssl_target_name_override", tls.server_name))
        return cls(addresses, timeout, retries, backoff, _authorization(api_key), credentials,
                   (*channel_options, *options))

    def limit(self, timeout: Optional[float]) -> Optional[float]:
        timeout = self.timeout if timeout is None else timeout
        if timeout is not None and not isinstance(timeout, (int, float)):
            raise types.ArgumentError(f"timeout is {timeout!r}: it must be seconds")
        # gRPC takes what is beyond its clock for a time in the past.
        return None if timeout is not None and timeout > _LONGEST_TIMEOUT_S else timeout


class Current:
    """Which gateway calls go to. Thread-safe.

    answered: whether any of them ever has. An address where nobody was ever found is more likely
        wrong than lost.
    """

    def __init__(self, count: int):
        self._count = count
        self._index = random.randrange(count)  # not all clients to the first
        self._lock = threading.Lock()
        self.answered = False

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
        self._start_over()
        self.used = current.index
        self.taken_in = False  # the try under way has been answered something

    def begin(self) -> Optional[float]:
        """Before each try; returns the seconds that it may take."""
        self.used = self._current.index
        self.taken_in = False
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - time.monotonic())

    def take_in(self) -> None:
        """The try under way has been answered something, if only that it began."""
        self.taken_in = True
        self._current.answered = True

    def progress(self) -> None:
        """A gateway has given something."""
        self._current.answered = True
        self._start_over()

    def _start_over(self) -> None:
        self._failures = 0  # in a row
        self._refusals = 0  # of them
        self._reset = False  # one of them was a proxy's
        self._lost_since: Optional[float] = None  # None: a gateway answered the last try

    def pause_after(self, error: grpc.RpcError) -> Optional[float]:
        """Seconds after which to try again; None: that is of no use."""
        code, told = error.code(), retry_after(error)
        # CANCELLED: a gateway that stops cuts off who does not read what it is told. UNKNOWN: a
        # proxy's stream ended without a status.
        lost = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED,
                        grpc.StatusCode.UNKNOWN)
        if code == grpc.StatusCode.INTERNAL and _told(error, "blockserve-status") is None:
            # A proxy has reset the stream, since its gateway is gone. Once in a row: gateways of
            # older builds mark nothing, and a request that kills workers must not come again.
            lost, self._reset = not self._reset, True
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            # Taken in, it is not refused any more: its gateway is short of memory.
            lost = self.taken_in
            if told is None and not lost:
                return None  # larger than is ever allowed
        elif not lost:
            return None
        now = time.monotonic()
        lost = lost and told is None
        self._failures += 1
        if not lost:
            self._current.answered = True
            self._refusals += 1
            self._lost_since = None
        elif self._lost_since is None:
            self._lost_since = now
        retries = self._settings.retries
        others = len(self._settings.addresses) - 1
        if retries is not None:
            if self._failures > retries:
                return None
        elif (self._refusals if self._current.answered else self._failures) > _RETRIES + others:
            return None
        self._current.move_on(self.used)
        # The others are asked without delay, once each.
        if self._failures <= others:
            return 0.0
        # The exponent is bounded: 2 ** 1024 is no float.
        pause = min(_MAX_BACKOFF_S, self._settings.backoff * 2 ** min(self._failures - 1, 30))
        pause = max(pause * random.uniform(0.5, 1.0), told or 0.0)
        if self._deadline is not None and now + pause >= self._deadline:
            return None
        if retries is None and lost and now + pause >= self._lost_since + _LOST_S:
            return None
        return pause
