"""Clients that want fewer and larger events: the tokens, texts and log-probabilities of a stream of blocks."""

import blockserve
import http_tools
import pytest

PROMPT = "The little dog went to the"
FIELDS = {"max_tokens": 90, "temperature": 0.9, "seed": 3, "n": 2, "ignore_eos": True}
INTERVAL = 16
BLOCK = 4


@pytest.fixture(scope="module")
def server(launcher, demo_model):
    return http_tools.serve(launcher, demo_model)


@pytest.fixture(scope="module")
def gathering(launcher, demo_model):
    """Gathers where a request does not say otherwise."""
    return http_tools.serve(launcher, demo_model, f"--stream-interval={INTERVAL}")


def stream(launcher, server, **fields):
    """The outputs of each choice."""
    choices = ([], [])
    for event in launcher.client(server.server).stream(PROMPT, logprobs=2, **FIELDS, **fields):
        if isinstance(event, blockserve.Output):
            choices[event.choice].append(event)
    return choices


def joined(outputs):
    return ([token for output in outputs for token in output.tokens], "".join(output.text for output in outputs),
            [one for output in outputs for one in output.logprobs])


def check_sizes(counts):
    """The first block at once, then whole intervals, then what is left."""
    assert counts[0] <= BLOCK
    assert all(INTERVAL <= count < INTERVAL + BLOCK for count in counts[1:-1])
    assert sum(counts) == FIELDS["max_tokens"] and len(counts) <= 8


def test_outputs_over_grpc(launcher, server, gathering):
    blocks = stream(launcher, server)
    assert all(len(outputs) >= FIELDS["max_tokens"] / BLOCK / 2 for outputs in blocks)
    for choices in (stream(launcher, server, stream_interval=INTERVAL), stream(launcher, gathering)):
        for alone, together in zip(blocks, choices):
            check_sizes([len(output.tokens) for output in together])
            assert joined(together) == joined(alone)
    assert [joined(outputs) for outputs in stream(launcher, gathering, stream_interval=1)] == [
        joined(outputs) for outputs in blocks]


def choices_of(events, index):
    return [data["choices"][0] for _, data in events if data["choices"] and data["choices"][0]["index"] == index]


def http_events(server, **options):
    return server.events(prompt=PROMPT, logprobs=2, return_token_ids=True, stream_options={"include_usage": True, **options},
                         **FIELDS)


def test_events_over_http(server, gathering):
    tokens = http_events(server)
    for events in (http_events(server, stream_interval=INTERVAL), http_events(gathering)):
        assert events[-1][1]["usage"] == tokens[-1][1]["usage"]
        for index in range(2):
            alone, together = choices_of(tokens, index), choices_of(events, index)
            check_sizes([len(event["token_ids"]) for event in together])
            for field in ("text", "token_ids"):
                assert [one for event in together for one in event[field]] == [
                    one for event in alone for one in event[field]]
            for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                assert sum((event["logprobs"][field] for event in together), []) == sum(
                    (event["logprobs"][field] for event in alone), [])
            assert [event["finish_reason"] for event in together] == [None] * (len(together) - 1) + ["length"]
    whole = gathering.complete(prompt=PROMPT, logprobs=2, return_token_ids=True, **FIELDS)
    for index in range(2):
        assert whole["choices"][index]["text"] == "".join(event["text"] for event in choices_of(tokens, index))


def test_a_stream_goes_on_at_a_server_that_cuts_it_elsewhere(server, gathering):
    fields = {"prompt": PROMPT, "return_token_ids": True, "stream": True,
              "stream_options": {"include_event_id": True}, **FIELDS}
    events = {which: which.events(**{**fields, "stream": True}) for which in (server, gathering)}
    for begun, other in ((server, gathering), (gathering, server)):
        for cut in (1, len(events[begun]) // 2, len(events[begun]) - 2):
            status, _, text = other.request("POST", "/v1/completions", fields, {"Last-Event-ID": events[begun][cut][0]})
            assert status == 200, text
            rest = list(http_tools.parse_events(text))
            for index in range(2):
                had = choices_of(events[begun][:cut + 1], index)
                for field in ("text", "token_ids"):
                    assert [one for event in had + choices_of(rest, index) for one in event[field]] == [
                        one for event in choices_of(events[server], index) for one in event[field]]


def test_what_is_no_interval_is_named(server):
    status, error = server.refusal(prompt="a", stream=True, stream_options={"stream_interval": 2000})
    assert status == 400 and error["param"] == "stream_options.stream_interval"
    assert "1 to 1024" in error["message"]
