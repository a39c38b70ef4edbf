"""The client against a server in this process that records requests and answers from a script."""

import asyncio
import concurrent.futures
import sys
import threading

import blockserve
import grpc
import pytest
from blockserve import _wire
from blockserve.v1 import generation_pb2 as pb
from blockserve.v1 import generation_pb2_grpc


class ScriptedServer(generation_pb2_grpc.GenerationServicer):
    def __init__(self):
        self.requests = []
        self.remaining_s = []
        self.events = []
        self.fails_with = None

    def _record(self, request, context):
        self.requests.append(request)
        self.remaining_s.append(context.time_remaining())

    def Generate(self, request, context):
        self._record(request, context)
        yield from self.events
        if self.fails_with is not None:
            context.abort(*self.fails_with)

    def Score(self, request, context):
        self._record(request, context)
        if self.fails_with is not None:
            context.abort(*self.fails_with)
        return pb.ScoreResponse(
            request_id="s", model_id="m", tokens=[5, 6],
            logprobs=[pb.TokenLogprobs(),
                      pb.TokenLogprobs(logprob=-0.5, top=[pb.TopLogprob(token=6, logprob=-0.5)])],
            usage=pb.Usage(prompt_tokens=2))

    def Tokenize(self, request, context):
        return pb.TokenizeResponse(tokens=[ord(c) for c in request.text])

    def Detokenize(self, request, context):
        return pb.DetokenizeResponse(text="".join(map(chr, request.tokens)))

    def GetModel(self, request, context):
        return pb.GetModelResponse(model_id="m", name="demo", kind="block_transformer",
                                   block_length=4, vocab_size=512, has_tokenizer=True,
                                   default_alignment=pb.ALIGNMENT_END, token_workers=2)


@pytest.fixture
def served():
    scripted = ScriptedServer()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=4))
    generation_pb2_grpc.add_GenerationServicer_to_server(scripted, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    # Each call once: tries again are the subject of test_resume.py.
    with blockserve.Client(f"127.0.0.1:{port}", timeout=30, retries=0) as client:
        yield client, scripted
    server.stop(0)


def started(seed=7):
    return pb.GenerateResponse(started=pb.Started(request_id="r", model_id="m", seed=seed,
                                                  alignment=pb.ALIGNMENT_START, prompt_tokens=3))


def output(choice, position, tokens, text, logprobs=()):
    return pb.GenerateResponse(output=pb.Output(choice=choice, position=position, tokens=tokens,
                                                text=text, logprobs=logprobs, worker="w"))


def test_parameters_left_out_are_absent_from_the_request(served):
    client, scripted = served
    scripted.events = [started()]
    client.generate([1, 2, 3])
    assert scripted.requests == [
        pb.GenerateRequest(tokens=pb.TokenIds(ids=[1, 2, 3]), sampling=pb.SamplingParameters(),
                           stop=pb.StopConditions())]
    request = scripted.requests[0]
    assert not request.sampling.HasField("temperature") and not request.HasField("seed")
    assert not request.stop.HasField("max_tokens") and not request.HasField("logprobs")
    assert not request.HasField("cache_salt")


def test_every_parameter_reaches_its_field_zeros_included(served):
    client, scripted = served
    scripted.events = [started()]
    client.generate(
        "text", max_tokens=9, temperature=0.0, top_k=0, top_p=0.5, min_p=0.25,
        repetition_penalty=1.5, presence_penalty=0.0, frequency_penalty=-1.0, logit_bias={4: -2.0},
        stop=["x", "y"], include_stop_string=True, stop_token_ids=[8], min_tokens=2, ignore_eos=True,
        n=3, seed=0, alignment="none", logprobs=0, priority="batch", cache_salt="ours", stream_interval=16, model="m",
        request_id="id")
    request = scripted.requests[0]
    assert request == pb.GenerateRequest(
        request_id="id", model="m", text="text", n=3, seed=0, logprobs=0,
        alignment=pb.ALIGNMENT_NONE, priority=pb.PRIORITY_BATCH, cache_salt="ours", stream_interval=16,
        sampling=pb.SamplingParameters(
            temperature=0.0, top_k=0, top_p=0.5, min_p=0.25, repetition_penalty=1.5,
            presence_penalty=0.0, frequency_penalty=-1.0,
            logit_bias=[pb.LogitBias(token=4, bias=-2.0)]),
        stop=pb.StopConditions(max_tokens=9, min_tokens=2, strings=["x", "y"], token_ids=[8],
                               ignore_eos=True, include_string=True))
    assert request.sampling.HasField("temperature") and request.HasField("seed")


def test_one_stop_string_is_one(served):
    client, scripted = served
    scripted.events = [started()]
    client.generate("a", stop="dog")
    list(client.stream("a", stop="dog"))

    async def run():
        async with blockserve.AsyncClient(client._settings.addresses, retries=0) as other:
            await other.generate("a", stop="dog")

    asyncio.run(run())
    assert [list(request.stop.strings) for request in scripted.requests] == [["dog"]] * 3


def test_an_empty_list_of_ids_is_a_prompt_of_ids_and_an_empty_text_is_a_text(served):
    client, scripted = served
    scripted.events = [started()]
    client.generate([])
    client.generate("")
    assert [request.WhichOneof("prompt") for request in scripted.requests] == ["tokens", "text"]


def test_choices_that_come_interleaved_are_put_together(served):
    client, scripted = served
    scripted.events = [
        started(),
        output(1, 3, [10, 11], "ab", [pb.TokenLogprobs(logprob=-1.0), pb.TokenLogprobs(logprob=-2.0)]),
        output(0, 3, [20], "c", [pb.TokenLogprobs(logprob=-0.25)]),
        pb.GenerateResponse(finished=pb.Finished(choice=0, reason=pb.FINISH_REASON_STOP,
                                                 stop_token=20)),
        output(1, 5, [12], "", [pb.TokenLogprobs(
            logprob=-3.0, top=[pb.TopLogprob(token=4, logprob=-0.125)])]),
        pb.GenerateResponse(finished=pb.Finished(choice=1, reason=pb.FINISH_REASON_LENGTH,
                                                 text="held")),
        pb.GenerateResponse(usage=pb.Usage(prompt_tokens=3, completion_tokens=4,
                                           cached_prompt_tokens=1)),
    ]
    result = client.generate([1, 2, 3], n=2, logprobs=1)
    assert result.started.alignment == "start" and result.started.seed == 7
    first, second = result.choices
    assert (first.tokens, first.text, first.finish_reason, first.stop_token) == ([20], "c", "stop", 20)
    assert (second.tokens, second.text, second.finish_reason) == ([10, 11, 12], "abheld", "length")
    assert second.stop_token is None and second.stop_string is None
    assert second.logprobs == [-1.0, -2.0, -3.0]
    assert second.top_logprobs == [[], [], [blockserve.TopLogprob(4, -0.125)]]
    assert result.usage == blockserve.Usage(3, 4, 1)


def test_a_stream_that_breaks_gives_its_events_and_then_the_error(served):
    client, scripted = served
    scripted.events = [started(seed=99), output(0, 3, [1], "a")]
    scripted.fails_with = (grpc.StatusCode.UNAVAILABLE, "token tier is gone")
    received = []
    with pytest.raises(blockserve.Error) as caught:
        for event in client.stream([1]):
            received.append(event)
    assert [type(event) for event in received] == [blockserve.Started, blockserve.Output]
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    assert caught.value.message == "token tier is gone"
    assert caught.value.request_id == "r" and caught.value.started.seed == 99


def test_the_deadline_of_the_call_wins_over_the_clients(served):
    client, scripted = served
    scripted.events = [started()]
    client.generate([1])
    client.generate([1], timeout=5)
    # gRPC rounds deadlines up.
    assert 6 < scripted.remaining_s[0] < 31
    assert scripted.remaining_s[1] < 6


def test_scores_keep_tokens_without_a_score(served):
    client, scripted = served
    score = client.score([5, 6], context="before", top_logprobs=1, alignment="start")
    assert score.tokens == [5, 6] and score.logprobs == [None, -0.5]
    assert score.top_logprobs == [[], [blockserve.TopLogprob(6, -0.5)]]
    assert scripted.requests[0] == pb.ScoreRequest(
        context_text="before", continuation_tokens=pb.TokenIds(ids=[5, 6]), top_logprobs=1,
        alignment=pb.ALIGNMENT_START)
    client.score("text")
    assert scripted.requests[1].WhichOneof("context") is None


def test_a_refused_score_names_the_request(served):
    client, scripted = served
    scripted.fails_with = (grpc.StatusCode.INVALID_ARGUMENT, "continuation_tokens is empty")
    with pytest.raises(blockserve.Error, match="continuation_tokens is empty") as caught:
        client.score([], request_id="mine")
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.request_id == "mine"


def test_tokenizer_and_model_calls(served):
    client, _ = served
    assert client.tokenize("ab") == [97, 98]
    assert client.detokenize([97, 98]) == "ab"
    model = client.model()
    assert (model.name, model.block_length, model.default_alignment) == ("demo", 4, "end")
    assert model.token_workers == 2


def test_an_unknown_parameter_is_refused_by_name_before_anything_is_sent(served):
    client, scripted = served
    for call in (client.generate, client.stream):
        with pytest.raises(TypeError, match="max_token, warmth"):
            call("a", max_token=1, warmth=2, seed=1)
    assert scripted.requests == []


@pytest.mark.parametrize("arguments, name", [
    ({"prompt": b"abc"}, "prompt"), ({"prompt": None}, "prompt"), ({"prompt": 7}, "prompt"),
    ({"prompt": ["a"]}, "prompt"), ({"prompt": [2**40]}, "prompt"), ({"prompt": "\ud800"}, "prompt"),
    ({"temperature": "hot"}, "temperature"), ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 2**40}, "max_tokens"), ({"seed": -1}, "seed"), ({"n": "2"}, "n"),
    ({"stop": [7]}, "stop"), ({"stop": b"x"}, "stop"), ({"stop_token_ids": "12"}, "stop_token_ids"),
    ({"stop_token_ids": 7}, "stop_token_ids"), ({"logit_bias": [1]}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"), ({"priority": 3}, "priority"),
    ({"alignment": ["end"]}, "alignment"), ({"model": 7}, "model"), ({"timeout": "1"}, "timeout"),
])
def test_an_argument_that_cannot_be_sent_is_named(served, arguments, name):
    client, scripted = served
    with pytest.raises(blockserve.ArgumentError, match=f"INVALID_ARGUMENT: {name}\\b") as caught:
        client.generate(**{"prompt": "a", **arguments})
    assert isinstance(caught.value, blockserve.Error)
    assert scripted.requests == []


def test_the_other_calls_name_their_arguments(served):
    client, scripted = served
    for call, name in ((lambda: client.tokenize(b"a"), "text"), (lambda: client.tokenize(7), "text"),
                       (lambda: client.detokenize("abc"), "tokens"),
                       (lambda: client.detokenize(b"abc"), "tokens"),
                       (lambda: client.score(b"a"), "continuation"),
                       (lambda: client.score("a", context=7), "context"),
                       (lambda: client.score("a", top_logprobs="2"), "top_logprobs"),
                       (lambda: client.model(model=7), "model")):
        with pytest.raises(blockserve.ArgumentError, match=name):
            call()
    assert scripted.requests == []


def test_a_closed_client_says_so(served):
    client, scripted = served
    client.close()
    for call in (lambda: client.generate("a"), lambda: client.stream("a"), client.model,
                 lambda: client.tokenize("a")):
        with pytest.raises(blockserve.ClosedError, match="closed"):
            call()

    async def closed():
        other = blockserve.AsyncClient("x:1")
        await other.close()
        with pytest.raises(blockserve.ClosedError):
            other.stream("a")
        with pytest.raises(blockserve.ClosedError):
            await other.tokenize("a")

    asyncio.run(closed())


class HangingServer(ScriptedServer):
    """Gives `events`, and no more until the call ends."""

    def __init__(self):
        super().__init__()
        self.began, self.ended = threading.Event(), threading.Event()

    def _end_of(self, context):
        """Asked for before anything is sent: a client that is gone by then ends the call at the next
        event, and what follows that never runs."""
        ended = threading.Event()

        def end():
            ended.set()
            self.ended.set()

        if not context.add_callback(end):
            end()
        return ended

    def _wait(self, ended):
        self.began.set()
        ended.wait()

    def Generate(self, request, context):
        ended = self._end_of(context)
        yield from self.events
        self._wait(ended)

    def Tokenize(self, request, context):
        self._wait(self._end_of(context))
        return pb.TokenizeResponse()


@pytest.fixture
def hanging():
    scripted = HangingServer()
    scripted.events = [started(), output(0, 3, [5], "a")]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=4))
    generation_pb2_grpc.add_GenerationServicer_to_server(scripted, server)
    scripted.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield scripted
    server.stop(0)


@pytest.mark.parametrize("call", [lambda client: list(client.stream("a")),
                                  lambda client: client.generate("a"),
                                  lambda client: client.tokenize("a")])
def test_a_client_that_is_closed_ends_what_is_under_way(hanging, call):
    client = blockserve.Client(hanging.address)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        under_way = pool.submit(call, client)
        assert hanging.began.wait(30)
        client.close()
        with pytest.raises(blockserve.ClosedError):
            under_way.result(30)


@pytest.mark.parametrize("call", [lambda client: client.generate("a"),
                                  lambda client: client.tokenize("a")])
def test_so_does_one_of_asyncio_and_its_tasks_are_not_cancelled(hanging, call):
    async def run(*, cancel):
        client = blockserve.AsyncClient(hanging.address)
        task = asyncio.ensure_future(call(client))
        await asyncio.to_thread(hanging.began.wait, 30)
        if cancel:
            task.cancel()
        await client.close()
        await task

    if sys.version_info >= (3, 11):  # which can tell
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(run(cancel=True))
        hanging.began.clear()
    with pytest.raises(blockserve.ClosedError):
        asyncio.run(run(cancel=False))


def test_nor_is_a_closed_client_tried_again():
    """With nobody at its address it would be, for seconds."""
    client = blockserve.Client("127.0.0.1:1", retries=1000, backoff=1000)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        calls = [pool.submit(list, client.stream("a")), pool.submit(client.tokenize, "a")]
        client.close()
        for under_way in calls:
            with pytest.raises(blockserve.ClosedError):
                under_way.result(30)


def test_an_interrupted_generation_ends_on_the_server(hanging, monkeypatch):
    def interrupt(response):
        raise KeyboardInterrupt

    monkeypatch.setattr(_wire, "read_event", interrupt)
    with blockserve.Client(hanging.address) as client:
        with pytest.raises(KeyboardInterrupt) as kept:
            client.generate("a")
        assert hanging.ended.wait(30)
    assert kept.tb is not None


def test_a_timeout_without_an_end_is_none(served):
    client, scripted = served
    for seconds in (float("inf"), 1e20):
        assert client.tokenize("a", timeout=seconds) == [97]
    scripted.events = [started()]
    client.generate("a", timeout=float("inf"))
    assert scripted.remaining_s[0] is None or scripted.remaining_s[0] > 1e6


def test_choices_take_memory_once_the_server_has_accepted_their_number():
    received = _wire.Received(pb.GenerateRequest(n=5))
    assert received.next_request().ByteSize() == pb.GenerateRequest(n=5).ByteSize()
    assert not received._resume.choices
    received.take(started())
    assert len(received.next_request().resume.choices) == 5


def test_an_unknown_alignment_is_refused_by_name_before_anything_is_sent(served):
    client, scripted = served
    with pytest.raises(ValueError, match="alignment is 'left'"):
        client.generate([1], alignment="left")
    assert scripted.requests == []
