"""A client that has no proto file: everything it knows comes from the server's reflection."""

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase)

SERVICE = "blockserve.v1.Generation"


@pytest.fixture(scope="module")
def channel(demo_model, launcher):
    server = launcher.serve(demo_model).wait_until_ready()
    with grpc.insecure_channel(server.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def call(channel):
    """call(method, JSON value): the answers as JSON values."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert SERVICE in database.get_services()
    pool = descriptor_pool.DescriptorPool(database)
    service = pool.FindServiceByName(SERVICE)

    def make(method_name, value):
        method = service.FindMethodByName(method_name)
        request = message_factory.GetMessageClass(method.input_type)
        answer = message_factory.GetMessageClass(method.output_type)
        declared = descriptor_pb2.MethodDescriptorProto()
        method.CopyToProto(declared)
        path = f"/{SERVICE}/{method_name}"
        serialize, parse = request.SerializeToString, answer.FromString
        message = json_format.ParseDict(value, request())
        if declared.server_streaming:
            answers = channel.unary_stream(path, serialize, parse)(message, timeout=60)
        else:
            answers = [channel.unary_unary(path, serialize, parse)(message, timeout=60)]
        return [json_format.MessageToDict(one) for one in answers]

    return make


def test_every_method_by_reflection_alone(call):
    (model,) = call("GetModel", {})
    assert model["hasTokenizer"] and model["modelId"]
    (tokens,) = call("Tokenize", {"text": "The little dog"})
    (text,) = call("Detokenize", {"tokens": tokens["tokens"]})
    assert text["text"] == "The little dog"
    (score,) = call("Score", {"continuationText": "The little dog"})
    assert len(score["logprobs"]) == len(tokens["tokens"])
    request = {"text": "The little dog", "seed": "7", "stop": {"maxTokens": 12, "ignoreEos": True}}
    events = call("Generate", request)
    assert list(events[0]) == ["started"] and events[0]["started"]["seed"] == "7"
    assert list(events[-1]) == ["usage"] and events[-1]["usage"]["completionTokens"] == "12"
    written = [token for event in events for token in event.get("output", {}).get("tokens", [])]
    # The first message goes back as it came: a resume without an SDK.
    rest = call("Generate", {**request, "resume": {
        "started": events[0]["started"], "choices": [{"tokens": written[:5]}]}})
    assert [token for event in rest for token in event.get("output", {}).get("tokens", [])] == \
        written[5:]
