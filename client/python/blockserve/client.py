"""Synchronous client of blockserve's gateways."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Iterator, Optional, Sequence

import grpc

from blockserve import _connection, _wire, types
from blockserve._connection import Addresses, Tls
from blockserve._wire import Prompt
from blockserve.v1 import generation_pb2 as pb
from blockserve.v1 import generation_pb2_grpc

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Stream:
    """The events of one generation, in their order; iterate over it, once. Also a context manager,
    which cancels what is left of the generation when the block is left.

    When its gateway is lost it goes on through another, and gives the events of an undisturbed
    stream; `resumes` counts how often.
    """

    def __init__(self, client: "Client", request: pb.GenerateRequest, timeout: Optional[float]):
        self._client = client
        self._request_id = request.request_id
        self._received = _wire.Received(request)
        self._attempts = _connection.Attempts(client._settings, client._current, timeout)
        self._cancelled = False
        self._lock = threading.Lock()
        self.started: Optional[types.Started] = None
        self.resumes = 0
        self._call = self._begin()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *unused: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[types.Event]:
        while True:
            try:
                for response in self._call:
                    self._attempts.take_in()
                    if not self._received.take(response):
                        continue
                    event = _wire.read_event(response)
                    if isinstance(event, types.Started):
                        self.started = event
                    elif event is not None:
                        self._attempts.progress()
                    if event is not None:
                        yield event
                return
            except grpc.RpcError as error:
                self._client._check_open()
                request_id = self.started.request_id if self.started else self._request_id
                pause = None if self._cancelled else self._attempts.pause_after(error)
                if self._cancelled or (pause is not None and self._is_cancelled_within(pause)):
                    raise _wire.cancelled(request_id, self.started) from None
                if pause is None:
                    raise _wire.make_error(error, request_id, self.started) from None
            self.resumes += self._received.started
            self._call = self._begin()

    def cancel(self) -> None:
        """The server stops working on the generation; iterating ends with Error CANCELLED."""
        with self._lock:
            self._cancelled = True
            self._call.cancel()
        self._client._wake()

    def _is_cancelled_within(self, seconds: float) -> bool:
        """Or ClosedError."""
        with self._client._changed:
            self._client._changed.wait_for(
                lambda: self._cancelled or self._client._closed, seconds)
        self._client._check_open()
        return self._cancelled

    def _begin(self) -> grpc.Call:
        with self._lock, self._client._until_closed():
            seconds = self._attempts.begin()
            call = self._client._stubs[self._attempts.used].Generate(
                self._received.next_request(), timeout=seconds,
                metadata=self._client._settings.metadata)
            if self._cancelled:
                call.cancel()
            return call


class Client:
    """Speaks to the gateways of one deployment. Safe to use from many threads.

    address: host:port of a gateway, or several of one deployment. Calls go to one of them, drawn for
        each client, and on to the next when it cannot be reached or refuses.
    timeout: seconds that a call may take, tries again included, where it does not say otherwise; None
        leaves it to the server (10 minutes).
    retries: how often in a row, without a new token, a call that a gateway cannot take is tried again
        and a stream that breaks is resumed. 0: never. None: while a gateway that has answered before
        is lost, for 30 s; where it refuses, or none has ever answered, 5 times. backoff: seconds
        before the first, doubling up to 2, or the gateway's retry-after if that is longer; an error
        is raised at once where the timeout would pass first.
    api_key: sent with every call, without the whitespace around it; without tls everybody on the way
        can read it. None or blank: none is sent.
    tls: encrypted, with these files. Or gRPC's own credentials and channel options.
    """

    def __init__(self, address: Addresses, *, timeout: Optional[float] = None,
                 retries: Optional[int] = None, backoff: float = 0.1,
                 api_key: Optional[str] = None, tls: Optional[Tls] = None,
                 credentials: Optional[grpc.ChannelCredentials] = None,
                 options: Sequence[tuple[str, object]] = ()):
        self._settings = settings = _connection.Settings.make(
            address, timeout, retries, backoff, api_key, tls, credentials, options)
        self._current = _connection.Current(len(settings.addresses))
        self._channels = [
            grpc.insecure_channel(one, settings.options) if settings.credentials is None
            else grpc.secure_channel(one, settings.credentials, settings.options)
            for one in settings.addresses]
        self._stubs = [generation_pb2_grpc.GenerationStub(channel) for channel in self._channels]
        self._closed = False
        self._changed = threading.Condition()  # told when _closed, or a stream's _cancelled, is set

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """What is under way ends with ClosedError."""
        self._closed = True
        self._wake()
        for channel in self._channels:
            channel.close()

    def stream(self, prompt: Prompt, *, timeout: Optional[float] = None,
               **parameters: Unpack[types.GenerateParameters]) -> Stream:
        """Starts a generation after `prompt`, a text or token ids."""
        self._check_open()
        request = _wire.generate_request(prompt, **parameters)
        return Stream(self, request, self._settings.limit(timeout))

    def generate(self, prompt: Prompt, *, timeout: Optional[float] = None,
                 **parameters: Unpack[types.GenerateParameters]) -> types.Completion:
        """As `stream`, but returns the whole answer."""
        builder = _wire.CompletionBuilder()
        # The traceback of a KeyboardInterrupt may keep the stream for long.
        with self.stream(prompt, timeout=timeout, **parameters) as stream:
            for event in stream:
                builder.add(event)
        return builder.build()

    def score(self, continuation: Prompt, *, context: Optional[Prompt] = None,
              alignment: Optional[str] = None, top_logprobs: int = 0,
              priority: Optional[str] = None, cache_salt: Optional[str] = None,
              model: str = "", request_id: str = "",
              timeout: Optional[float] = None) -> types.Score:
        """Log-probabilities of `continuation` after `context`, or of a text by itself."""
        request = _wire.score_request(
            continuation, context=context, alignment=alignment, top_logprobs=top_logprobs,
            priority=priority, cache_salt=cache_salt, model=model, request_id=request_id)
        return _wire.read_score(self._call("Score", request, timeout, request_id))

    def tokenize(self, text: str, *, model: str = "",
                 timeout: Optional[float] = None) -> list[int]:
        request = _wire.tokenize_request(text, model)
        return list((self._call("Tokenize", request, timeout)).tokens)

    def detokenize(self, tokens: Sequence[int], *, skip_special_tokens: bool = False,
                   model: str = "", timeout: Optional[float] = None) -> str:
        request = _wire.detokenize_request(tokens, skip_special_tokens, model)
        return (self._call("Detokenize", request, timeout)).text

    def model(self, *, model: str = "", timeout: Optional[float] = None) -> types.Model:
        """What is served."""
        return _wire.read_model(self._call("GetModel", _wire.model_request(model), timeout))

    def _check_open(self) -> None:
        if self._closed:
            raise types.ClosedError() from None

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    @contextlib.contextmanager
    def _until_closed(self) -> Iterator[None]:
        """A channel that another thread closes just now says so by a ValueError."""
        self._check_open()
        try:
            yield
        except ValueError:
            self._check_open()
            raise

    def _call(self, method: str, request, timeout: Optional[float], request_id: str = ""):
        attempts = _connection.Attempts(self._settings, self._current, self._settings.limit(timeout))
        while True:
            seconds = attempts.begin()
            try:
                with self._until_closed():
                    response = getattr(self._stubs[attempts.used], method)(
                        request, timeout=seconds, metadata=self._settings.metadata)
                attempts.progress()
                return response
            except grpc.RpcError as error:
                self._check_open()
                pause = attempts.pause_after(error)
                if pause is None:
                    raise _wire.make_error(error, request_id) from None
            with self._changed:
                self._changed.wait_for(lambda: self._closed, pause)
