"""What a client that leaves held is free for others."""

import blockserve
import grpc
import harness
import pytest
from answers import ask

MODEL = harness.GOLDEN / "concat_l4"
# A prompt of 200 blocks is 13 pages of 16 blocks, and 4 pages of output are reserved with it: of 24
# pages one such request finds room, and not two.
LONG = 800


@pytest.fixture
def crowded(launcher):
    """A block service whose pages hold one long sequence and not two."""
    block = launcher.block(MODEL, "--arithmetic=f32", "--kv-pages=24", "--page-blocks=16")
    token = launcher.token(MODEL, "--arithmetic=f32")
    return launcher.connected_client(launcher.gateway(MODEL, [block], [token]), 1, 1)


def test_the_pages_of_a_cancelled_request_are_another_ones(crowded):
    """The request that follows is admitted only when the one before is gone, prompt and all."""
    for index in range(8):
        with crowded.stream([index + 1] * LONG, max_tokens=400, ignore_eos=True) as stream:
            for event in stream:
                if isinstance(event, blockserve.Output):
                    break
    answer = ask(crowded, {"prompt": [99] * LONG, "max_tokens": 40, "ignore_eos": True, "seed": 1})
    assert len(answer.tokens[0]) == 40


def test_more_requests_than_there_is_room_for_take_turns(crowded):
    requests = [{"prompt": [index + 1] * LONG, "max_tokens": 40, "ignore_eos": True, "seed": index,
                 "logprobs": 0} for index in range(6)]
    together = harness.in_parallel([lambda r=request: ask(crowded, r) for request in requests])
    assert together == [ask(crowded, request) for request in requests]


def test_a_cancelled_stream_ends_as_cancelled(crowded):
    stream = crowded.stream([1] * LONG, max_tokens=400, ignore_eos=True)
    for event in stream:
        if isinstance(event, blockserve.Output):
            stream.cancel()
            break
    with pytest.raises(blockserve.Error) as caught:
        list(stream)
    assert caught.value.code == grpc.StatusCode.CANCELLED


def test_a_request_that_can_never_fit_is_refused(crowded):
    with pytest.raises(blockserve.Error) as caught:
        crowded.generate([1] * 4000, max_tokens=10)
    assert caught.value.code in (grpc.StatusCode.RESOURCE_EXHAUSTED,
                                 grpc.StatusCode.INVALID_ARGUMENT)
    assert len(crowded.generate([5], max_tokens=6, ignore_eos=True).choices[0].tokens) == 6


def test_a_stream_that_is_past_its_deadline_ends_there(launcher):
    client = launcher.client(launcher.serve(MODEL).wait_until_ready())
    with pytest.raises(blockserve.Error) as caught:
        client.generate([5] * 10, max_tokens=7000, n=8, ignore_eos=True, timeout=0.2)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(client.generate([5], max_tokens=6, ignore_eos=True).choices[0].tokens) == 6
