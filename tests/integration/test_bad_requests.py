"""Bad requests over the wire: one clear error that names the field; the server lives and serves."""

import socket

import blockserve
import grpc
import harness
import pytest
from blockserve.v1 import generation_pb2 as pb
from blockserve.v1 import generation_pb2_grpc

MODEL = harness.GOLDEN / "concat_l4"
NAN = float("nan")
INFINITY = float("inf")


@pytest.fixture(scope="module")
def plain(launcher):
    """A model without a tokenizer, all tiers in one process."""
    return launcher.serve(MODEL, "--arithmetic=f32").wait_until_ready()


@pytest.fixture(scope="module")
def with_text(launcher, demo_model):
    return launcher.serve(demo_model).wait_until_ready()


def assert_still_serves(launcher, server):
    assert server.is_alive()
    assert len(launcher.client(server).generate([1, 2], max_tokens=5, ignore_eos=True)
               .choices[0].tokens) == 5


def refused(call, *words, code=grpc.StatusCode.INVALID_ARGUMENT):
    with pytest.raises(blockserve.Error) as caught:
        call()
    assert caught.value.code == code, str(caught.value)
    for word in words:
        assert word in caught.value.message, f"{word!r} is not in: {caught.value.message}"


# parameters of Client.generate, words that the message holds
BAD_GENERATE = [
    ({"prompt": [512]}, ["prompt", "512"]),
    ({"prompt": [1, -1]}, ["prompt", "-1"]),
    ({"prompt": [1] * 9000}, ["prompt"]),
    ({"max_tokens": 0}, ["max_tokens"]),
    ({"max_tokens": -3}, ["max_tokens"]),
    ({"max_tokens": 2**31 - 1}, ["max_tokens"]),
    ({"min_tokens": -1}, ["min_tokens"]),
    ({"temperature": NAN}, ["temperature"]),
    ({"temperature": -0.5}, ["temperature"]),
    ({"temperature": INFINITY}, ["temperature"]),
    ({"top_k": -1}, ["top_k"]),
    ({"top_p": 0.0}, ["top_p"]),
    ({"top_p": 1.5}, ["top_p"]),
    ({"top_p": NAN}, ["top_p"]),
    ({"min_p": -0.1}, ["min_p"]),
    ({"min_p": NAN}, ["min_p"]),
    ({"repetition_penalty": 0.0}, ["repetition_penalty"]),
    ({"repetition_penalty": NAN}, ["repetition_penalty"]),
    ({"presence_penalty": 2.5}, ["presence_penalty"]),
    ({"frequency_penalty": -2.5}, ["frequency_penalty"]),
    ({"frequency_penalty": NAN}, ["frequency_penalty"]),
    ({"logit_bias": {600: 1.0}}, ["logit_bias", "600"]),
    ({"logit_bias": {1: NAN}}, ["logit_bias"]),
    ({"logit_bias": {1: 101.0}}, ["logit_bias"]),
    ({"n": 0}, ["n"]),
    ({"n": 65}, ["n", "64"]),
    ({"stop": ["x"] * 17}, ["stop"]),
    ({"stop": [""]}, ["stop"]),
    ({"stop": ["y" * 257]}, ["stop"]),
    ({"stop_token_ids": [512]}, ["stop", "512"]),
    ({"stop_token_ids": list(range(65))}, ["stop"]),
    ({"logprobs": -1}, ["logprobs"]),
    ({"logprobs": 21}, ["logprobs"]),
    ({"request_id": "x" * 129}, ["request_id"]),
    ({"request_id": "line\nbreak"}, ["request_id"]),
    ({"prompt": "text without a tokenizer"}, ["tokenizer"]),
]


@pytest.mark.parametrize("parameters, words", BAD_GENERATE,
                         ids=[str(p)[:50] for p, _ in BAD_GENERATE])
def test_generate_names_the_field(launcher, plain, parameters, words):
    client = launcher.client(plain)
    refused(lambda: client.generate(**{"prompt": [1, 2, 3], **parameters}), *words)


def test_score_names_the_field(launcher, plain):
    client = launcher.client(plain)
    refused(lambda: client.score([], context=[1]), "continuation")
    refused(lambda: client.score([512]), "continuation", "512")
    refused(lambda: client.score([1], context=[-1]), "context")
    refused(lambda: client.score([1] * 9000), "continuation")
    refused(lambda: client.score([1, 2], top_logprobs=21), "top_logprobs")
    refused(lambda: client.score("text"), "continuation", "tokenizer")


def test_other_calls_name_the_field(launcher, plain):
    client = launcher.client(plain)
    for call in (lambda: client.tokenize("x"), lambda: client.detokenize([1])):
        refused(call, "tokenizer", code=grpc.StatusCode.FAILED_PRECONDITION)
    refused(lambda: client.generate([1], model="another"), "model", "another",
            code=grpc.StatusCode.NOT_FOUND)


def test_unknown_enum_values_are_refused(plain):
    with grpc.insecure_channel(plain.address) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)
        for field in ("alignment", "priority"):
            request = pb.GenerateRequest(tokens=pb.TokenIds(ids=[1]), **{field: 77})
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Generate(request, timeout=60))
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert field in caught.value.details()


# A field that no version has yet: its number, and the bytes of a message that holds it.
NEW_FIELD, NEW_FIELD_BYTES = "1007", b"\xfa\x3e\x01x"


@pytest.mark.parametrize("part", ["", "stop.", "sampling.", "sampling.logit_bias.", "tokens.", "resume.choices."])
def test_a_field_of_a_newer_client_is_refused_rather_than_passed_over(plain, part):
    """It would change the answer, or else the client would not have sent it."""
    request = pb.GenerateRequest(
        tokens=pb.TokenIds(ids=[1]), stop=pb.StopConditions(max_tokens=2),
        sampling=pb.SamplingParameters(logit_bias=[pb.LogitBias(token=1, bias=1)]),
        resume=pb.Resume(choices=[pb.ResumedChoice()]))
    message = request
    for name in part.split(".")[:-1]:
        message = getattr(message, name)
        message = message[0] if name in ("logit_bias", "choices") else message
    message.MergeFromString(NEW_FIELD_BYTES)
    with grpc.insecure_channel(plain.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            list(generation_pb2_grpc.GenerationStub(channel).Generate(request, timeout=60))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(f"{part}{NEW_FIELD}: ")
    assert "upgrade the gateway" in caught.value.details()


def test_every_call_refuses_the_fields_of_a_newer_client(plain):
    with grpc.insecure_channel(plain.address) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)
        for call, request in ((stub.Score, pb.ScoreRequest(continuation_tokens=pb.TokenIds(ids=[1, 2]))),
                              (stub.Tokenize, pb.TokenizeRequest()), (stub.Detokenize, pb.DetokenizeRequest()),
                              (stub.GetModel, pb.GetModelRequest())):
            request.MergeFromString(NEW_FIELD_BYTES)
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=60)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert NEW_FIELD in caught.value.details()


def test_a_stream_of_a_newer_gateway_goes_on(plain):
    """Its first message, which clients send back as they had it, may have fields that are not known here."""
    request = pb.GenerateRequest(tokens=pb.TokenIds(ids=[1, 2]), seed=3,
                                 stop=pb.StopConditions(max_tokens=9, ignore_eos=True))
    with grpc.insecure_channel(plain.address) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)
        events = list(stub.Generate(request, timeout=60))
        tokens = [token for event in events for token in event.output.tokens]
        request.resume.started.CopyFrom(events[0].started)
        request.resume.started.MergeFromString(NEW_FIELD_BYTES)
        request.resume.choices.add(tokens=tokens[:5])
        rest = list(stub.Generate(request, timeout=60))
    assert [token for event in rest for token in event.output.tokens] == tokens[5:]


def test_a_request_without_a_prompt_is_refused(plain):
    with grpc.insecure_channel(plain.address) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(pb.GenerateRequest(), timeout=60))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "prompt" in caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Score(pb.ScoreRequest(), timeout=60)
        assert "continuation" in caught.value.details()


def test_an_empty_prompt_is_the_begin_of_text_token(launcher, plain):
    client = launcher.client(plain)
    common = {"max_tokens": 9, "temperature": 0.0, "logprobs": 0, "ignore_eos": True}
    empty, bos = client.generate([], **common), client.generate([0], **common)
    assert empty.choices == bos.choices and empty.usage.prompt_tokens == 1


def test_invalid_utf8_is_refused(launcher, with_text):
    """Not even a correct protobuf message: a string field that is no UTF-8."""
    prompt = b"\x1a\x03a\xff\xfe"  # field 3, `text`
    with grpc.insecure_channel(with_text.address) as channel:
        call = channel.unary_stream("/blockserve.v1.Generation/Generate")
        with pytest.raises(grpc.RpcError) as caught:
            list(call(prompt, timeout=60))
    assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
    assert_still_serves(launcher, with_text)


def test_half_a_message_is_refused(launcher, plain):
    with grpc.insecure_channel(plain.address) as channel:
        call = channel.unary_stream("/blockserve.v1.Generation/Generate")
        with pytest.raises(grpc.RpcError):
            list(call(b"\x22\xff\xff\xff\x0f\x01", timeout=60))
    assert_still_serves(launcher, plain)


@pytest.mark.parametrize("noise", [b"\x00" * 64, b"GET / HTTP/1.1\r\n\r\n",
                                   b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200])
def test_what_is_not_grpc_at_all_is_survived(launcher, plain, noise):
    host, port = plain.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(noise)
        connection.shutdown(socket.SHUT_WR)
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass
    assert_still_serves(launcher, plain)


def test_a_message_larger_than_allowed_is_refused(launcher, plain):
    client = launcher.client(plain)
    with pytest.raises(blockserve.Error) as caught:
        client.generate([1] * (40 << 20))
    assert caught.value.code in (grpc.StatusCode.RESOURCE_EXHAUSTED,
                                 grpc.StatusCode.INVALID_ARGUMENT)
    assert_still_serves(launcher, plain)


def test_the_server_serves_after_all_of_this(launcher, plain):
    client = launcher.client(plain)
    calls = []
    for parameters, _ in BAD_GENERATE:
        def bad(parameters=parameters):
            with pytest.raises(blockserve.Error):
                client.generate(**{"prompt": [1, 2, 3], **parameters})
        calls += [bad, lambda: client.generate([1, 2, 3], max_tokens=8)]
    harness.in_parallel(calls)
    assert_still_serves(launcher, plain)
