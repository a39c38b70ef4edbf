"""Whose prompts share KV: of one cache_salt, and of a key whose prefix cache is its own, nobody else's; and what
is answered does not depend on it."""

import json
import random
import subprocess
import urllib.error
import urllib.request

import blockserve
import grpc
import harness
import pytest
from answers import ask

MODEL = harness.GOLDEN / "concat_l4"
BLOCK_LENGTH = 4
VOCAB = 512
F32 = "--arithmetic=f32"


def make_prompt(seed):
    draw = random.Random(seed)
    return [draw.randrange(1, VOCAB) for _ in range(30 * BLOCK_LENGTH)]


def make_request(prompt, salt=None, **more):
    return {"prompt": prompt, "max_tokens": 12, "seed": 5, "logprobs": 2, "alignment": "start", "ignore_eos": True,
            "cache_salt": salt, **more}


class Deployment:
    """So many replicas of the block tier, and a key of each kind."""

    def __init__(self, launcher, folder, replicas):
        self._launcher = launcher
        self._keys = folder / "api.keys"
        self.key = {who: self._make_key(name, *flags) for who, (name, *flags) in {
            "alice": ("alice",), "dave": ("dave", "--prefix-cache=shared"),
            "bob": ("bob", "--prefix-cache=own"), "bob again": ("bob",), "carol": ("carol", "--prefix-cache=own"),
        }.items()}
        self.http_port = harness.free_port()
        self.gateway = launcher.gateway(
            MODEL, [launcher.block(MODEL, F32) for _ in range(replicas)], [launcher.token(MODEL, F32)],
            f"--api-keys={self._keys}", f"--http-listen=127.0.0.1:{self.http_port}").wait_until_ready()
        self._clients = {}

        def connected():
            model = self.client("alice").model()
            return (model.block_services, model.token_workers) == (replicas, 1)

        harness.wait_until(connected, "both tiers are connected")

    def _make_key(self, name, *flags):
        return subprocess.run([harness.program("blockserve"), "keys", f"--name={name}", f"--file={self._keys}", *flags],
                              text=True, capture_output=True, check=True).stdout.strip()

    def client(self, who):
        if who not in self._clients:
            self._clients[who] = self._launcher.client(self.gateway, api_key=self.key[who])
        return self._clients[who]

    def complete(self, who, **body):
        """Status and answer over HTTP."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}/v1/completions", json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.key[who]}", "Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def deployment(launcher, tmp_path_factory):
    return Deployment(launcher, tmp_path_factory.mktemp("keys"), replicas=1)


@pytest.fixture(scope="module")
def two_replicas(launcher, tmp_path_factory):
    """Prompts find the replica that has their beginning."""
    return Deployment(launcher, tmp_path_factory.mktemp("keys"), replicas=2)


# Each of these has a pool to itself.
POOLS = [("alice", None), ("alice", "ours"), ("alice", "bob"), ("bob", None), ("bob", "ours"), ("carol", None),
         ("carol", "ours")]


@pytest.mark.parametrize("choices", [1, 3])
def test_prompts_are_shared_within_a_pool_alone_and_answers_are_equal(two_replicas, choices):
    prompt = make_prompt(choices)
    answers = []
    for expected in (False, True):
        for who, salt in POOLS:
            answer = ask(two_replicas.client(who), make_request(prompt, salt, n=choices))
            assert (answer.cached_prompt_tokens > 0) == expected, (who, salt, answer.cached_prompt_tokens)
            answers.append(answer)
    assert all(answer == answers[0] for answer in answers)
    # Keys that share, and two keys of one name, meet with equal salts.
    for who, salt in (("dave", None), ("dave", "ours"), ("bob again", None), ("bob again", "ours")):
        answer = ask(two_replicas.client(who), make_request(prompt, salt, n=choices))
        assert answer.cached_prompt_tokens > 0, (who, salt)
        assert answer == answers[0]


def test_prompts_that_come_together_are_equal_too(two_replicas):
    prompt = make_prompt(7)
    calls = [lambda who=who, salt=salt: ask(two_replicas.client(who), make_request(prompt, salt, temperature=0.9))
             for who, salt in POOLS * 4]
    answers = harness.in_parallel(calls)
    assert all(answer == answers[0] for answer in answers)


def test_scores(deployment):
    text = make_prompt(8)
    scores = []
    for expected in (False, True):
        for who, salt in POOLS:
            score = deployment.client(who).score(text[-8:], context=text[:-8], alignment="start", top_logprobs=2,
                                                 cache_salt=salt)
            assert (score.usage.cached_prompt_tokens > 0) == expected, (who, salt)
            scores.append((score.tokens, score.logprobs, score.top_logprobs))
    assert all(score == scores[0] for score in scores)


def test_http(deployment):
    prompt = make_prompt(9)
    texts = set()
    for expected in (False, True):
        for who, salt in POOLS:
            status, answer = deployment.complete(who, prompt=prompt, max_tokens=6, seed=1, alignment="start",
                                                 logprobs=1, return_token_ids=True, cache_salt=salt)
            assert status == 200, answer
            cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert (cached > 0) == expected, (who, salt, cached)
            texts.add(json.dumps([answer["choices"][0]["token_ids"], answer["choices"][0]["logprobs"]]))
    assert len(texts) == 1


def test_an_echo_is_scored_in_the_pool_of_its_salt(deployment):
    request = {"prompt": make_prompt(10), "max_tokens": 6, "seed": 1, "alignment": "start", "return_token_ids": True}
    status, echoed = deployment.complete("alice", **request, echo=True, logprobs=1, cache_salt="ours")
    assert status == 200, echoed
    for salt, expected in ((None, False), ("ours", True)):
        status, answer = deployment.complete("alice", **request, cache_salt=salt)
        assert status == 200, answer
        assert (answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0) == expected, salt
        assert answer["choices"][0]["token_ids"] == echoed["choices"][0]["token_ids"]


@pytest.mark.parametrize("salt", ["", "s" * 257])
def test_a_salt_that_is_none_is_refused_by_name(deployment, salt):
    client = deployment.client("alice")
    for call in (lambda: client.generate(**make_request([1, 2, 3], salt)),
                 lambda: client.score([1, 2, 3], cache_salt=salt)):
        with pytest.raises(blockserve.Error) as caught:
            call()
        assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.message.startswith("cache_salt: must have 1 to 256 bytes")
    status, answer = deployment.complete("alice", prompt=[1, 2, 3], cache_salt=salt)
    assert status == 400 and answer["error"]["param"] == "cache_salt", answer


def generate(server, prompt, *flags):
    done = subprocess.run(
        [harness.program("blockserve"), "generate", f"--server={server.address}", "--format=json", "--alignment=start",
         "--prompt-tokens=" + ",".join(map(str, prompt)), "--max-tokens=6", *flags],
        text=True, capture_output=True, check=True)
    return json.loads(done.stdout)


def test_the_command_line_and_one_process(launcher):
    prompt = make_prompt(20)
    server = launcher.serve(MODEL, F32, "--threads=1").wait_until_ready()
    unshared = launcher.serve(MODEL, F32, "--threads=1", "--prefix-cache=false").wait_until_ready()
    answers = []
    for expected in (False, True):
        for flags in ([], ["--cache-salt=ours"], ["--cache-salt=theirs"]):
            answer = generate(server, prompt, *flags)
            assert (answer["usage"]["cached_prompt_tokens"] > 0) == expected, flags
            answers.append(answer["choices"])
            answer = generate(unshared, prompt, *flags)
            assert answer["usage"]["cached_prompt_tokens"] == 0
            answers.append(answer["choices"])
    assert all(answer == answers[0] for answer in answers)
