"""kill -9 in the middle of 32 running streams: clients see latency and nothing else."""

import random
import threading

import harness
import pytest
from answers import ask, read_answer

# Long enough that the kill comes in the middle of every stream.
MAX_TOKENS = 240
STREAMS = 32


class Cluster:
    def __init__(self, launcher, model):
        self.launcher, self.model = launcher, model
        self.blocks = [launcher.block(model) for _ in range(2)]
        self.tokens = [launcher.token(model, f"--name=worker-{i}") for i in range(3)]
        gateway = launcher.gateway(model, self.blocks, self.tokens)
        self.client = launcher.connected_client(gateway, 2, 3)

    def wait_for(self, blocks, tokens):
        def counted():
            model = self.client.model()
            return (model.block_services, model.token_workers) == (blocks, tokens)

        harness.wait_until(counted, f"{blocks} block services and {tokens} token workers connected")


@pytest.fixture
def cluster(demo_model, tmp_path):
    launcher = harness.Launcher(tmp_path)
    yield Cluster(launcher, demo_model)
    launcher.close()


def stop_string_across_blocks(client, request):
    """A piece of the request's own answer that the end of a block cuts in two, late in the text."""
    stream = client.stream(**request)
    pieces = [event.text for event in stream if hasattr(event, "position") and event.choice == 0]
    for index in range(2 * len(pieces) // 3, len(pieces) - 1):
        left, right = pieces[index], pieces[index + 1]
        if len(left) >= 3 and len(right) >= 3:
            stop = left[-3:] + right[:3]
            if "".join(pieces).find(stop) >= len("".join(pieces[: len(pieces) // 2])):
                return stop
    raise AssertionError("no two long pieces follow one another")


def requests_of_every_kind(client):
    draw = random.Random(4)
    starts = ["Once upon a time", "The little girl", "One day, a dog", "There was a big",
              "Tom and Sue", "In the forest", "", "The sun was"]
    requests = []
    for index in range(STREAMS):
        request = {
            "prompt": starts[index % len(starts)] + " and" * (index // len(starts)),
            "max_tokens": MAX_TOKENS,
            "ignore_eos": True,
            "logprobs": 1,
            "seed": draw.getrandbits(64),
            "temperature": 0.0 if index % 4 == 0 else 0.9,
            "alignment": ("end", "start")[index % 2],
        }
        if index % 4 == 1:
            request["n"] = 2
        if index % 4 == 2:
            request["top_p"] = 0.95
            request["repetition_penalty"] = 1.1
        if index % 4 == 3:
            request["stop"] = [stop_string_across_blocks(client, request), "\x00never"]
            request["include_stop_string"] = index % 8 == 3
        requests.append(request)
    return requests


class Progress:
    """Counts outputs of each stream; lets the test act when all streams are under way."""

    def __init__(self, streams):
        self._changed = threading.Condition()
        self._outputs = [0] * streams
        self._ended = [False] * streams
        self.workers_before = set()
        self.outputs_after_kill = 0
        self.killed = False

    def output(self, stream, output):
        with self._changed:
            self._outputs[stream] += 1
            if self.killed:
                self.outputs_after_kill += 1
            else:
                self.workers_before.add(output.worker)
            self._changed.notify_all()

    def ended(self, stream):
        with self._changed:
            self._ended[stream] = True
            self._changed.notify_all()

    def kill_when_all_run(self, kill):
        """Returns how many streams had ended when `kill` was called: on a busy machine a short one may
        before the last one has begun."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: all(had >= 3 or ended for had, ended in zip(self._outputs, self._ended)), 120)
            ended = sum(self._ended)
            kill()
            self.killed = True
            return ended


def run_disturbed(cluster, requests, kill):
    progress = Progress(len(requests))

    def run(index):
        try:
            return read_answer(cluster.client.stream(**requests[index]),
                               lambda output: progress.output(index, output))
        finally:
            progress.ended(index)

    calls = [lambda index=index: run(index) for index in range(len(requests))]
    ended = []
    calls.append(lambda: ended.append(progress.kill_when_all_run(kill)))
    answers = harness.in_parallel(calls)[:-1]
    assert 2 * ended[0] < len(requests), "the kill came when most streams were under way"
    assert progress.outputs_after_kill > len(requests), "much of the work was done after the kill"
    return answers, progress


def assert_undisturbed(answers, requests, expected):
    for request, answer, undisturbed in zip(requests, answers, expected):
        assert answer == undisturbed, request


def test_kill_9_of_a_token_worker_and_of_a_block_replica(cluster):
    requests = requests_of_every_kind(cluster.client)
    expected = [ask(cluster.client, request) for request in requests]
    stopped = [answer.finished[0] for answer in expected[3::4]]
    assert all(reason == "stop" and string for reason, _, string in stopped), stopped

    answers, progress = run_disturbed(cluster, requests, cluster.tokens[1].kill)
    assert_undisturbed(answers, requests, expected)
    assert "worker-1" in progress.workers_before
    cluster.wait_for(blocks=2, tokens=2)

    answers, _ = run_disturbed(cluster, requests, cluster.blocks[0].kill)
    assert_undisturbed(answers, requests, expected)
    cluster.wait_for(blocks=1, tokens=2)


def test_the_only_worker_dies_and_another_takes_its_place(demo_model, launcher):
    """Requests wait for the tier to come back, and go on where they were."""
    block = launcher.block(demo_model)
    token = launcher.token(demo_model)
    client = launcher.connected_client(launcher.gateway(demo_model, [block], [token]), 1, 1)
    request = {"prompt": "Once upon a time", "max_tokens": MAX_TOKENS, "ignore_eos": True,
               "seed": 6, "logprobs": 0}
    expected = ask(client, request)
    replaced = []

    def replace(output):
        if not replaced:
            token.kill()
            replaced.append(launcher.token(demo_model, port=int(token.address.rsplit(":")[-1])))

    assert read_answer(client.stream(**request), replace) == expected
    assert replaced
