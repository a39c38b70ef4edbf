"""Tries again and resumes, against servers in this process that break off where they are told to."""

import asyncio
import concurrent.futures
import itertools
import time
import types

import blockserve
import grpc
import pytest
from blockserve import _connection
from blockserve.v1 import generation_pb2 as pb
from blockserve.v1 import generation_pb2_grpc

TOKENS = list(range(100, 112))
STARTED = pb.Started(request_id="r", model_id="m", block_numeric_id="b", token_numeric_id="t",
                     seed=5, alignment=pb.ALIGNMENT_END, prompt_tokens=3)


class Gateway(generation_pb2_grpc.GenerationServicer):
    """Writes TOKENS by three, or what is left of them, and breaks off after `gives` blocks; or
    refuses with a code, or a code and a retry-after."""

    def __init__(self, gives):
        self.gives = iter(gives)
        self.breaks_off_with = grpc.StatusCode.UNAVAILABLE
        self.behind_a_proxy = False  # which makes an INTERNAL of its own of what breaks
        self.requests = []
        self.metadata = []

    def _next(self, context):
        gives, told = next(self.gives), ()
        if isinstance(gives, tuple):
            gives, retry_after = gives
            told = (("retry-after", retry_after),)
        if isinstance(gives, grpc.StatusCode):
            self._end(context, gives, told)
        return gives

    def _end(self, context, code, told=()):
        if code == grpc.StatusCode.INTERNAL and not self.behind_a_proxy:
            told = (*told, ("blockserve-status", "INTERNAL"))
        context.set_trailing_metadata(told)
        context.abort(code, "not now")

    def Generate(self, request, context):
        self.requests.append(pb.GenerateRequest.FromString(request.SerializeToString()))
        self.metadata.append(dict(context.invocation_metadata()))
        gives = self._next(context)
        yield pb.GenerateResponse(started=STARTED)
        had = len(request.resume.choices[0].tokens) if request.HasField("resume") else 0
        for start in range(had, len(TOKENS), 3):
            if gives == 0:
                self._end(context, self.breaks_off_with)
            gives -= 1
            yield pb.GenerateResponse(output=pb.Output(
                position=3 + start, tokens=TOKENS[start:start + 3], text="abc"))
        yield pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_LENGTH))
        yield pb.GenerateResponse(usage=pb.Usage(prompt_tokens=3, completion_tokens=12))

    def Tokenize(self, request, context):
        self._next(context)
        return pb.TokenizeResponse(tokens=[1])


@pytest.fixture
def serve():
    servers = []

    def start(*gives):
        """Gives may be an iterator that several share."""
        gateway = Gateway(gives[0] if len(gives) == 1 and hasattr(gives[0], "__next__") else gives)
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=4))
        generation_pb2_grpc.add_GenerationServicer_to_server(gateway, server)
        gateway.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        servers.append(server)
        return gateway

    yield start
    for server in servers:
        server.stop(0)


def generate(kind, addresses, **options):
    """The completion and how often the stream went on, by either client."""
    options = {"timeout": 30, "backoff": 0.001, **options}
    if kind == "sync":
        with blockserve.Client(addresses, **options) as client:
            stream = client.stream([1, 2, 3], max_tokens=12)
            return list(stream), stream.resumes

    async def run():
        async with blockserve.AsyncClient(addresses, **options) as client:
            stream = client.stream([1, 2, 3], max_tokens=12)
            return [event async for event in stream], stream.resumes

    return asyncio.run(run())


def tokens_of(events):
    return list(itertools.chain.from_iterable(
        event.tokens for event in events if isinstance(event, blockserve.Output)))


kinds = pytest.mark.parametrize("kind", ["sync", "asyncio"])


@kinds
def test_a_broken_stream_goes_on_elsewhere_and_starts_once(serve, kind):
    gives = iter((2, 0, 1, 9))
    gateways = [serve(gives) for _ in range(3)]
    events, resumes = generate(kind, [gateway.address for gateway in gateways])
    # It begins anywhere, and goes round.
    begin = next(i for i in range(3) if len(gateways[i].requests) == 2)
    first, third, second = gateways[begin:] + gateways[:begin]
    assert tokens_of(events) == TOKENS
    assert [type(event) for event in events].count(blockserve.Started) == 1
    assert isinstance(events[-1], blockserve.Usage) and resumes == 3
    assert not first.requests[0].HasField("resume")
    for request, had in ((third.requests[0], 6), (second.requests[0], 6),
                         (first.requests[1], 9)):
        assert request.resume == pb.Resume(
            started=STARTED, choices=[pb.ResumedChoice(tokens=TOKENS[:had])])
        assert request.tokens.ids == [1, 2, 3] and request.stop.max_tokens == 12


@kinds
def test_a_call_that_is_refused_for_want_of_room_is_made_again(serve, kind):
    gateway = serve((grpc.StatusCode.RESOURCE_EXHAUSTED, "0"), grpc.StatusCode.UNAVAILABLE, 9)
    events, resumes = generate(kind, gateway.address)
    assert tokens_of(events) == TOKENS and resumes == 0


@kinds
def test_tries_end(serve, kind):
    gateway = serve(*[grpc.StatusCode.UNAVAILABLE] * 9)
    with pytest.raises(blockserve.Error) as caught:
        generate(kind, gateway.address, retries=2)
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    assert len(gateway.requests) == 3


@kinds
def test_a_lost_gateway_is_tried_for_longer_than_one_that_refuses(serve, kind):
    lost = serve(1, *[grpc.StatusCode.UNAVAILABLE] * 8, 9)
    events, _ = generate(kind, lost.address)
    assert tokens_of(events) == TOKENS
    full = serve(*[(grpc.StatusCode.RESOURCE_EXHAUSTED, "0")] * 9)
    with pytest.raises(blockserve.Error) as caught:
        generate(kind, full.address)
    assert caught.value.retry_after == 0 and len(full.requests) == 6


@kinds
def test_what_is_larger_than_is_ever_allowed_is_not_tried_again(serve, kind):
    gateway = serve(grpc.StatusCode.RESOURCE_EXHAUSTED, 9)
    with pytest.raises(blockserve.Error) as caught:
        generate(kind, gateway.address)
    assert caught.value.retry_after is None and len(gateway.requests) == 1


@kinds
def test_a_stream_that_is_broken_off_for_want_of_memory_goes_on(serve, kind):
    """As gRPC's servers do when the memory of their connections is at its limit."""
    gateway = serve(0, 2, 9)
    gateway.breaks_off_with = grpc.StatusCode.RESOURCE_EXHAUSTED
    events, resumes = generate(kind, gateway.address)
    assert tokens_of(events) == TOKENS and resumes == 2
    # What it has received makes the request larger.
    small = serve(2, grpc.StatusCode.RESOURCE_EXHAUSTED, 9)
    small.breaks_off_with = grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(blockserve.Error):
        generate(kind, small.address)
    assert len(small.requests) == 2


class Failure(grpc.RpcError):
    def __init__(self, code, retry_after=None):
        self.code = lambda: code
        self.trailing_metadata = lambda: () if retry_after is None else (
            ("retry-after", retry_after),)


def simulated(monkeypatch, failures, timeout=None, addresses="x:1", answered=True, taken_in=False, **options):
    """The pauses of a call that fails so, in a time of its own."""
    now = [0.0]
    monkeypatch.setattr(_connection, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    options = {"retries": None, "backoff": 0.1, "api_key": None, "tls": None, "credentials": None,
               "options": (), **options}
    settings = _connection.Settings.make(addresses, timeout, **options)
    current = _connection.Current(len(settings.addresses))
    current.answered = answered
    attempts = _connection.Attempts(settings, current, timeout)
    pauses = []
    for failure in failures:
        attempts.begin()
        if taken_in and not pauses:
            attempts.take_in()
        pause = attempts.pause_after(failure)
        if pause is None:
            break
        pauses.append(pause)
        now[0] += pause
    return pauses


LOST = Failure(grpc.StatusCode.UNAVAILABLE)
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("addresses", ["x:1", ["x:1", "y:1", "z:1"]], ids=["one", "three"])
def test_a_loss_is_waited_out_for_half_a_minute_or_until_the_deadline(monkeypatch, addresses):
    pauses = simulated(monkeypatch, [LOST] * 99, addresses=addresses)
    assert 28 <= sum(pauses) < 30 and max(pauses) <= 2
    assert 8 <= sum(simulated(monkeypatch, [LOST] * 99, 10, addresses)) < 10
    assert simulated(monkeypatch, [LOST] * 99, addresses=addresses, retries=0) == []
    assert len(simulated(monkeypatch, [LOST] * 3000, addresses=addresses, retries=2000)) == 2000


def test_addresses_where_nobody_ever_answered_are_given_up_soon(monkeypatch):
    for addresses, tries in (("x:1", 5), ([f"x{i}:1" for i in range(9)], 13)):
        pauses = simulated(monkeypatch, [LOST] * 99, addresses=addresses, answered=False)
        assert len(pauses) == tries and sum(pauses) < 10
    # Whoever has begun has answered, though no token came.
    assert 28 <= sum(simulated(monkeypatch, [LOST] * 99, answered=False, taken_in=True)) < 30
    # A refusal is an answer.
    pauses = simulated(monkeypatch, [Failure(FULL, "0"), *[LOST] * 99], answered=False)
    assert 28 <= sum(pauses[1:]) < 30


@pytest.mark.parametrize("asynchronous", [False, True])
def test_any_answer_makes_a_gateway_one_to_wait_for(serve, asynchronous):
    unavailable = [grpc.StatusCode.UNAVAILABLE] * 8
    gateway = serve(0, *unavailable, 0, *unavailable)

    async def tokenize():
        async with blockserve.AsyncClient(gateway.address, backoff=0.001) as client:
            return [await client.tokenize("x") for _ in range(2)]

    def tokenize_sync():
        with blockserve.Client(gateway.address, backoff=0.001) as client:
            return [client.tokenize("x") for _ in range(2)]

    assert (asyncio.run(tokenize()) if asynchronous else tokenize_sync()) == [[1], [1]]
    with pytest.raises(blockserve.Error), blockserve.Client(gateway.address,
                                                            backoff=0.001) as client:
        client.tokenize("x")
    assert len(list(gateway.gives)) == 2


def test_clients_are_spread_over_the_gateways():
    begins = {_connection.Current(2).index for _ in range(64)}
    assert begins == {0, 1}


@kinds
@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
def test_a_gateway_that_refuses_is_not_waited_for_while_there_are_others(serve, kind, code):
    gives = iter(((code, "86400"), (code, "86400"), 9))
    gateways = [serve(gives) for _ in range(3)]
    events, _ = generate(kind, [gateway.address for gateway in gateways])
    assert tokens_of(events) == TOKENS
    assert [len(gateway.requests) for gateway in gateways] == [1, 1, 1]


def test_a_wait_that_a_gateway_asked_for_is_no_part_of_a_loss(monkeypatch):
    refusals = [Failure(FULL, "25"), LOST] * 5
    pauses = simulated(monkeypatch, [*refusals, *[LOST] * 100])
    assert pauses[:10:2] == [25.0] * 5 and 28 <= sum(pauses[9:]) < 30
    assert len(simulated(monkeypatch, [*refusals, Failure(FULL, "25")])) == 10


@pytest.mark.parametrize("told, waits", [("7", 7.0), ("0", None), ("", None), ("soon", None),
                                         ("-1", None), ("nan", None), ("1e300", None)])
def test_a_retry_after_that_is_none_is_passed_over(monkeypatch, told, waits):
    (pause,) = simulated(monkeypatch, [Failure(grpc.StatusCode.UNAVAILABLE, told)])
    assert pause == waits if waits else 0.05 <= pause <= 0.1


@kinds
@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
def test_the_time_that_the_gateway_tells_is_waited_for(serve, kind, code):
    gateway = serve((code, "1"), 9)
    began = time.monotonic()
    events, _ = generate(kind, gateway.address)
    assert tokens_of(events) == TOKENS and time.monotonic() - began >= 1


@kinds
@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
def test_a_time_to_come_again_beyond_the_deadline_ends_the_call(serve, kind, code):
    gateway = serve((code, "60"), 9)
    began = time.monotonic()
    with pytest.raises(blockserve.Error) as caught:
        generate(kind, gateway.address, timeout=30)
    assert time.monotonic() - began < 30
    assert caught.value.code == code and caught.value.retry_after == 60.0
    assert len(gateway.requests) == 1


def test_other_calls_wait_as_told(serve):
    gateway = serve((FULL, "1"), 0, (FULL, "1"), 0, (FULL, "60"), (FULL, "60"))

    async def tokenize(timeout):
        async with blockserve.AsyncClient(gateway.address, timeout=timeout) as client:
            return await client.tokenize("x")

    with blockserve.Client(gateway.address, timeout=30) as client:
        for call in (lambda: client.tokenize("x"), lambda: asyncio.run(tokenize(30))):
            began = time.monotonic()
            assert call() == [1] and time.monotonic() - began >= 1
        for call in (lambda: client.tokenize("x"), lambda: asyncio.run(tokenize(30))):
            with pytest.raises(blockserve.Error) as caught:
                call()
            assert caught.value.code == FULL and caught.value.retry_after == 60.0


def test_cancelling_ends_a_pause_under_asyncio(serve):
    gateway = serve((FULL, "60"), 9)

    async def run():
        async with blockserve.AsyncClient(gateway.address) as client:
            stream = client.stream([1])
            asyncio.get_running_loop().call_later(0.2, stream.cancel)
            return [event async for event in stream]

    began = time.monotonic()
    with pytest.raises((blockserve.Error, asyncio.CancelledError)) as caught:
        asyncio.run(run())
    assert time.monotonic() - began < 30 and len(gateway.requests) <= 1
    assert getattr(caught.value, "code", grpc.StatusCode.CANCELLED) == grpc.StatusCode.CANCELLED


def test_a_stream_cancelled_between_two_tries_ends_cancelled(serve):
    gateway = serve((FULL, "60"), 9)
    with blockserve.Client(gateway.address) as client, concurrent.futures.ThreadPoolExecutor() as pool:
        stream = client.stream([1])
        events = pool.submit(list, stream)
        while not gateway.requests:
            time.sleep(0)
        stream.cancel()
        with pytest.raises(blockserve.Error) as caught:
            events.result(timeout=30)
    assert caught.value.code == grpc.StatusCode.CANCELLED


@kinds
def test_progress_gives_new_tries(serve, kind):
    gateway = serve(1, 1, 1, 1)
    events, resumes = generate(kind, gateway.address, retries=1)
    assert tokens_of(events) == TOKENS and resumes == 3


@kinds
@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL,
                                  grpc.StatusCode.FAILED_PRECONDITION])
def test_what_is_final_is_not_tried_again(serve, kind, code):
    gateway = serve((code, "1"))
    with pytest.raises(blockserve.Error) as caught:
        generate(kind, gateway.address)
    assert caught.value.code == code and len(gateway.requests) == 1


@kinds
@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
def test_a_stream_that_a_proxy_breaks_off_goes_on(serve, kind, code):
    """nginx and others reset it, or end it without a status, when the gateway behind them dies."""
    gateway = serve(2, 1, 9)
    gateway.behind_a_proxy, gateway.breaks_off_with = True, code
    events, resumes = generate(kind, gateway.address)
    assert tokens_of(events) == TOKENS and resumes == 2


@kinds
@pytest.mark.parametrize("behind_a_proxy, calls", [(True, 2), (False, 1)])
def test_a_request_that_may_kill_workers_does_not_come_again(serve, kind, behind_a_proxy, calls):
    """Not even where nobody has marked the error as a gateway's: once, unless there is progress."""
    gateway = serve(2, 0, 0, 9)
    gateway.behind_a_proxy, gateway.breaks_off_with = behind_a_proxy, grpc.StatusCode.INTERNAL
    with pytest.raises(blockserve.Error) as caught:
        generate(kind, gateway.address)
    assert caught.value.code == grpc.StatusCode.INTERNAL and len(gateway.requests) == calls


@kinds
def test_the_key_goes_with_every_try(serve, kind):
    gateway = serve(1, 9)
    generate(kind, gateway.address, api_key=" bsk_1\n")
    assert [call["authorization"] for call in gateway.metadata] == ["Bearer bsk_1"] * 2


@kinds
def test_the_deadline_holds_over_all_tries(serve, kind):
    gateway = serve(*[grpc.StatusCode.UNAVAILABLE] * 50)
    with pytest.raises(blockserve.Error):
        generate(kind, gateway.address, timeout=0.5, retries=1000, backoff=0.2)


def test_other_calls_are_made_again_too(serve):
    gateway = serve(grpc.StatusCode.UNAVAILABLE, 0)
    with blockserve.Client(gateway.address, backoff=0.001) as client:
        assert client.tokenize("x") == [1]


def test_a_cancelled_stream_is_not_resumed(serve):
    gateway = serve(3)
    with blockserve.Client(gateway.address) as client:
        stream = client.stream([1])
        with pytest.raises(blockserve.Error) as caught:
            for event in stream:
                if isinstance(event, blockserve.Output):
                    stream.cancel()
    assert caught.value.code == grpc.StatusCode.CANCELLED
    assert len(gateway.requests) == 1


@kinds
@pytest.mark.parametrize("call", [lambda client: client.generate([1]),
                                  lambda client: client.tokenize("a")])
def test_a_client_that_is_closed_waits_for_no_gateway(serve, kind, call):
    """Each is told to come again in an hour."""
    gateway = serve((grpc.StatusCode.UNAVAILABLE, "3600"))

    async def until_it_waits(client):
        while not client._pausing:
            await asyncio.sleep(0)

    async def run():
        async with blockserve.AsyncClient(gateway.address) as client:
            under_way = asyncio.ensure_future(call(client))
            await asyncio.wait_for(until_it_waits(client), 30)
            await client.close()
            await asyncio.wait_for(under_way, 30)

    with pytest.raises(blockserve.ClosedError):
        if kind == "asyncio":
            asyncio.run(run())
        else:
            with concurrent.futures.ThreadPoolExecutor() as pool, \
                    blockserve.Client(gateway.address) as client:
                under_way = pool.submit(call, client)
                client.close()
                under_way.result(30)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="retries is -1"):
        blockserve.Client("x:1", retries=-1)
    for key in ("bsk 1", "bsk\n1", "bsk\x01", "bsk_\u00e9"):
        for make in (blockserve.Client, blockserve.AsyncClient):
            with pytest.raises(ValueError, match="api_key has"):
                make("x:1", api_key=key)
    with pytest.raises(ValueError, match="there is none"):
        blockserve.Client([])
    with pytest.raises(ValueError, match="go together"):
        blockserve.Client("x:1", tls=blockserve.Tls(key=__file__))
