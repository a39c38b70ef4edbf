"""Tries again and resumes, against servers in this process that break off where they are told to."""

import asyncio
import concurrent.futures
import itertools

import blockserve
import grpc
import pytest
from blockserve.v1 import generation_pb2 as pb
from blockserve.v1 import generation_pb2_grpc

TOKENS = list(range(100, 112))
STARTED = pb.Started(request_id="r", model_id="m", block_numeric_id="b", token_numeric_id="t",
                     seed=5, alignment=pb.ALIGNMENT_END, prompt_tokens=3)


class Gateway(generation_pb2_grpc.GenerationServicer):
    """Writes TOKENS by three, or what is left of them, and breaks off after `gives` blocks."""

    def __init__(self, gives):
        self.gives = iter(gives)
        self.requests = []
        self.metadata = []

    def Generate(self, request, context):
        self.requests.append(pb.GenerateRequest.FromString(request.SerializeToString()))
        self.metadata.append(dict(context.invocation_metadata()))
        gives = next(self.gives)
        if isinstance(gives, grpc.StatusCode):
            context.abort(gives, "not now")
        yield pb.GenerateResponse(started=STARTED)
        had = len(request.resume.choices[0].tokens) if request.HasField("resume") else 0
        for start in range(had, len(TOKENS), 3):
            if gives == 0:
                context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
            gives -= 1
            yield pb.GenerateResponse(output=pb.Output(
                position=3 + start, tokens=TOKENS[start:start + 3], text="abc"))
        yield pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_LENGTH))
        yield pb.GenerateResponse(usage=pb.Usage(prompt_tokens=3, completion_tokens=12))

    def Tokenize(self, request, context):
        gives = next(self.gives)
        if isinstance(gives, grpc.StatusCode):
            context.abort(gives, "not now")
        return pb.TokenizeResponse(tokens=[1])


@pytest.fixture
def serve():
    servers = []

    def start(*gives):
        gateway = Gateway(gives)
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
    first, second = serve(2, 9), serve(1)
    third = serve(0)
    events, resumes = generate(kind, [first.address, third.address, second.address])
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
    gateway = serve(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, 9)
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
def test_progress_gives_new_tries(serve, kind):
    gateway = serve(1, 1, 1, 1)
    events, resumes = generate(kind, gateway.address, retries=1)
    assert tokens_of(events) == TOKENS and resumes == 3


@kinds
@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL,
                                  grpc.StatusCode.FAILED_PRECONDITION])
def test_what_is_final_is_not_tried_again(serve, kind, code):
    gateway = serve(code)
    with pytest.raises(blockserve.Error) as caught:
        generate(kind, gateway.address)
    assert caught.value.code == code and len(gateway.requests) == 1


@kinds
def test_the_key_goes_with_every_try(serve, kind):
    gateway = serve(1, 9)
    generate(kind, gateway.address, api_key="bsk_1\n")
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


def test_settings_are_checked():
    with pytest.raises(ValueError, match="retries is -1"):
        blockserve.Client("x:1", retries=-1)
    with pytest.raises(ValueError, match="there is none"):
        blockserve.Client([])
    with pytest.raises(ValueError, match="go together"):
        blockserve.Client("x:1", tls=blockserve.Tls(key=__file__))
