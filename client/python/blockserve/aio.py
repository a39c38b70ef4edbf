"""The same client for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, AsyncIterator, Optional, Sequence

import grpc
import grpc.aio

from blockserve import _connection, _wire, types
from blockserve._connection import Addresses, Tls
from blockserve._wire import Prompt
from blockserve.v1 import generation_pb2 as pb
from blockserve.v1 import generation_pb2_grpc

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AsyncStream:
    """As blockserve.Stream: iterate over it, once, with `async for`. Also an asynchronous context
    manager. Cancelling the task that iterates cancels the generation."""

    def __init__(self, client: "AsyncClient", request: pb.GenerateRequest,
                 timeout: Optional[float]):
        self._client = client
        self._request_id = request.request_id
        self._received = _wire.Received(request)
        self._attempts = _connection.Attempts(client._settings, client._current, timeout)
        self._cancelled = asyncio.Event()
        self.started: Optional[types.Started] = None
        self.resumes = 0
        self._call = self._begin()

    async def __aenter__(self) -> "AsyncStream":
        return self

    async def __aexit__(self, *unused: object) -> None:
        self.cancel()

    async def __aiter__(self) -> AsyncIterator[types.Event]:
        try:
            while True:
                try:
                    async for response in self._call:
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
                except asyncio.CancelledError:
                    self._client._check_interrupted()
                    raise
                except grpc.RpcError as error:
                    self._client._check_open()
                    request_id = self.started.request_id if self.started else self._request_id
                    cancelled = self._cancelled.is_set()
                    pause = None if cancelled else self._attempts.pause_after(error)
                    if cancelled or (pause is not None and await self._is_cancelled_within(pause)):
                        raise _wire.cancelled(request_id, self.started) from None
                    if pause is None:
                        raise _wire.make_error(error, request_id, self.started) from None
                self.resumes += self._received.started
                self._call = self._begin()
        finally:
            self._call.cancel()  # nothing, where it is over

    def cancel(self) -> None:
        """The server stops working on the generation; iterating ends with Error CANCELLED or
        asyncio.CancelledError."""
        self._cancelled.set()
        self._call.cancel()

    async def _is_cancelled_within(self, seconds: float) -> bool:
        await self._client._pause(seconds, self._cancelled)
        return self._cancelled.is_set()

    def _begin(self):
        self._client._check_open()
        seconds = self._attempts.begin()
        return self._client._stubs[self._attempts.used].Generate(
            self._received.next_request(), timeout=seconds,
            metadata=self._client._settings.metadata)


class AsyncClient:
    """As blockserve.Client, whose docstring tells the parameters; for one event loop."""

    def __init__(self, address: Addresses, *, timeout: Optional[float] = None,
                 retries: Optional[int] = None, backoff: float = 0.1,
                 api_key: Optional[str] = None, tls: Optional[Tls] = None,
                 credentials: Optional[grpc.ChannelCredentials] = None,
                 options: Sequence[tuple[str, object]] = ()):
        self._settings = settings = _connection.Settings.make(
            address, timeout, retries, backoff, api_key, tls, credentials, options)
        self._current = _connection.Current(len(settings.addresses))
        self._channels = [
            grpc.aio.insecure_channel(one, settings.options) if settings.credentials is None
            else grpc.aio.secure_channel(one, settings.credentials, settings.options)
            for one in settings.addresses]
        self._stubs = [generation_pb2_grpc.GenerationStub(channel) for channel in self._channels]
        self._closed = False
        self._pausing: set[asyncio.Event] = set()  # what ends the pauses before tries

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *unused: object) -> None:
        await self.close()

    async def close(self) -> None:
        """What is under way ends with ClosedError."""
        self._closed = True
        for woken in self._pausing:
            woken.set()
        for channel in self._channels:
            await channel.close()

    def stream(self, prompt: Prompt, *, timeout: Optional[float] = None,
               **parameters: Unpack[types.GenerateParameters]) -> AsyncStream:
        """Starts a generation after `prompt`, a text or token ids."""
        self._check_open()
        request = _wire.generate_request(prompt, **parameters)
        return AsyncStream(self, request, self._settings.limit(timeout))

    async def generate(self, prompt: Prompt, *, timeout: Optional[float] = None,
                       **parameters: Unpack[types.GenerateParameters]) -> types.Completion:
        """As `stream`, but returns the whole answer."""
        builder = _wire.CompletionBuilder()
        async for event in self.stream(prompt, timeout=timeout, **parameters):
            builder.add(event)
        return builder.build()

    async def score(self, continuation: Prompt, *, context: Optional[Prompt] = None,
                    alignment: Optional[str] = None, top_logprobs: int = 0,
                    priority: Optional[str] = None, cache_salt: Optional[str] = None,
                    model: str = "", request_id: str = "",
                    timeout: Optional[float] = None) -> types.Score:
        """Log-probabilities of `continuation` after `context`, or of a text by itself."""
        request = _wire.score_request(
            continuation, context=context, alignment=alignment, top_logprobs=top_logprobs,
            priority=priority, cache_salt=cache_salt, model=model, request_id=request_id)
        return _wire.read_score(await self._call("Score", request, timeout, request_id))

    async def tokenize(self, text: str, *, model: str = "",
                       timeout: Optional[float] = None) -> list[int]:
        request = _wire.tokenize_request(text, model)
        return list((await self._call("Tokenize", request, timeout)).tokens)

    async def detokenize(self, tokens: Sequence[int], *, skip_special_tokens: bool = False,
                         model: str = "", timeout: Optional[float] = None) -> str:
        request = _wire.detokenize_request(tokens, skip_special_tokens, model)
        return (await self._call("Detokenize", request, timeout)).text

    async def model(self, *, model: str = "", timeout: Optional[float] = None) -> types.Model:
        """What is served."""
        return _wire.read_model(await self._call("GetModel", _wire.model_request(model), timeout))

    def _check_open(self) -> None:
        if self._closed:
            raise types.ClosedError() from None

    async def _pause(self, seconds: float, woken: asyncio.Event) -> None:
        """No longer than until `woken` is set; ClosedError where the client is closed meanwhile."""
        self._pausing.add(woken)
        try:
            await asyncio.wait_for(woken.wait(), seconds)
        except asyncio.TimeoutError:
            pass
        finally:
            self._pausing.discard(woken)
        self._check_open()

    def _check_interrupted(self) -> None:
        """After asyncio.CancelledError, by which a call is told too that its channel was closed:
        nobody has cancelled the task then. Python 3.9 and 3.10 cannot tell the two apart."""
        cancelling = getattr(asyncio.current_task(), "cancelling", lambda: 0)
        if not cancelling():
            self._check_open()

    async def _call(self, method: str, request, timeout: Optional[float], request_id: str = ""):
        attempts = _connection.Attempts(self._settings, self._current, self._settings.limit(timeout))
        while True:
            self._check_open()
            seconds = attempts.begin()
            try:
                response = await getattr(self._stubs[attempts.used], method)(
                    request, timeout=seconds, metadata=self._settings.metadata)
                attempts.progress()
                return response
            except asyncio.CancelledError:
                self._check_interrupted()
                raise
            except grpc.RpcError as error:
                self._check_open()
                pause = attempts.pause_after(error)
                if pause is None:
                    raise _wire.make_error(error, request_id) from None
            await self._pause(pause, asyncio.Event())
