"""What a client that leaves held is free for others."""

import blockserve
import grpc
import harness
import pytest
from answers import ask

MODEL = harness.GOLDEN / "concat_l4"
BLOCK_LENGTH = 4


@pytest.fixture
def crowded(launcher):
    """A block service whose pages hold one long sequence and not two."""
    block = launcher.block(MODEL, "--arithmetic=f32", "--max-sequences=1")
    token = launcher.token(MODEL, "--arithmetic=f32")
    return launcher.connected_client(launcher.gateway(MODEL, [block], [token]), 1, 1)


def test_a_second_request_runs_when_the_first_is_cancelled(crowded):
    long_one = {"prompt": [7] * 40, "max_tokens": 4000, "ignore_eos": True, "seed": 1}
    expected = ask(crowded, {"prompt": [9] * 40, "max_tokens": 24, "seed": 2, "ignore_eos": True})
    with crowded.stream(**long_one) as stream:
        for event in stream:
            if isinstance(event, blockserve.Output):
                break
    again = ask(crowded, {"prompt": [9] * 40, "max_tokens": 24, "seed": 2, "ignore_eos": True})
    assert again == expected


def test_many_cancelled_requests_leave_nothing_behind(crowded):
    """More than the service could hold if one of them stayed."""
    for index in range(20):
        stream = crowded.stream([index + 1] * 400, max_tokens=4000, ignore_eos=True)
        for event in stream:
            if isinstance(event, blockserve.Output):
                stream.cancel()
                break
        with pytest.raises(blockserve.Error) as caught:
            list(stream)
        assert caught.value.code == grpc.StatusCode.CANCELLED
    answer = ask(crowded, {"prompt": [3] * 400, "max_tokens": 40, "ignore_eos": True, "seed": 1})
    assert len(answer.tokens[0]) == 40


def test_a_stream_that_is_past_its_deadline_ends_there(crowded):
    with pytest.raises(blockserve.Error) as caught:
        crowded.generate([5] * 10, max_tokens=7000, ignore_eos=True, timeout=0.3)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(crowded.generate([5], max_tokens=6, ignore_eos=True).choices[0].tokens) == 6
