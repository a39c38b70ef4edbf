"""An answer is a function of the model, the prompt, the parameters and the seed alone: not of what
else runs, in which order it came, how many machines share the work, or what was cached. Tokens are
equal and log-probabilities equal bit for bit."""

import random

import harness
import pytest
from answers import ask, mixed_requests

MODEL = harness.GOLDEN / "concat_l4"
BLOCK_LENGTH = 4
VOCAB = 512
F32 = "--arithmetic=f32"
REQUESTS = mixed_requests(64, VOCAB)


@pytest.fixture(scope="module")
def blocks(launcher):
    return [launcher.block(MODEL, F32) for _ in range(2)]


@pytest.fixture(scope="module")
def tokens(launcher):
    return [launcher.token(MODEL, F32) for _ in range(3)]


@pytest.fixture(scope="module")
def connect(launcher, blocks, tokens):
    """connect(blocks, token workers): a client of a gateway of its own."""
    clients = {}

    def client(block_count, token_count):
        key = (block_count, token_count)
        if key not in clients:
            gateway = launcher.gateway(MODEL, blocks[:block_count], tokens[:token_count])
            clients[key] = launcher.connected_client(gateway, block_count, token_count)
        return clients[key]

    return client


@pytest.fixture(scope="module")
def alone(connect):
    """Each request's answer when nothing else runs."""
    client = connect(1, 1)
    return [ask(client, request) for request in REQUESTS]


def ask_all_at_once(client, order):
    answers = harness.in_parallel([lambda i=i: ask(client, REQUESTS[i]) for i in order])
    return dict(zip(order, answers))


def assert_equal(answers, alone):
    for index, answer in answers.items():
        assert answer == alone[index], f"request {index}: {REQUESTS[index]}"


def test_the_requests_show_something(alone):
    """Sampled answers differ between choices, and requests do not all end alike."""
    assert any(answer.tokens[0] != answer.tokens[1] for answer in alone if 1 in answer.tokens)
    assert len({tuple(answer.tokens[0]) for answer in alone}) == len(alone)


@pytest.mark.parametrize("order", ["as listed", "backwards", "shuffled"])
def test_a_request_among_63_others_in_any_order_of_arrival(connect, alone, order):
    indices = list(range(len(REQUESTS)))
    if order == "backwards":
        indices.reverse()
    elif order == "shuffled":
        random.Random(3).shuffle(indices)
    assert_equal(ask_all_at_once(connect(1, 1), indices), alone)


@pytest.mark.parametrize("token_count", [1, 2, 3])
@pytest.mark.parametrize("block_count", [1, 2])
def test_any_number_of_workers_and_replicas(connect, alone, block_count, token_count):
    answers = ask_all_at_once(connect(block_count, token_count), list(range(len(REQUESTS))))
    assert_equal(answers, alone)
    workers = set().union(*(answer.workers for answer in answers.values()))
    assert len(workers) == token_count, "every worker took part"


def test_one_process_with_two_threads_gives_the_bits_of_three_processes(launcher, alone):
    server = launcher.serve(MODEL, F32, "--threads=2").wait_until_ready()
    assert_equal(ask_all_at_once(launcher.client(server), list(range(len(REQUESTS)))), alone)


@pytest.mark.parametrize("alignment", ["start", "end", "none"])
def test_with_and_without_prefix_sharing(launcher, tokens, alignment):
    draw = random.Random(alignment)
    prompt = [draw.randrange(1, VOCAB) for _ in range(30 * BLOCK_LENGTH)]
    # Shares all but its last block with `prompt`.
    other = prompt[:-BLOCK_LENGTH] + [draw.randrange(1, VOCAB) for _ in range(BLOCK_LENGTH)]
    common = {"max_tokens": 30, "seed": 5, "logprobs": 2, "alignment": alignment}
    requests = [{"prompt": other, **common}, {"prompt": prompt, **common},
                {"prompt": other, "temperature": 0.0, **common}]

    def fresh_client(*flags):
        gateway = launcher.gateway(MODEL, [launcher.block(MODEL, F32, *flags)], tokens[:1])
        return launcher.connected_client(gateway, 1, 1)

    unshared = fresh_client("--prefix-cache=false")
    cold = [ask(unshared, request) for request in requests * 2]
    assert all(answer.cached_prompt_tokens == 0 for answer in cold)
    warmed = fresh_client()
    ask(warmed, {"prompt": prompt, **common})
    warm = [ask(warmed, request) for request in requests]
    assert all(answer.cached_prompt_tokens > 0 for answer in warm), "the prefix was shared"
    assert warm * 2 == cold
    together = harness.in_parallel([lambda r=r: ask(warmed, r) for r in requests * 4])
    assert together == warm * 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("alignment", ["start", "end", "none"])
def test_prefilled_or_decoded(connect, alignment, temperature):
    """What was generated, given as prompt: its blocks are prefilled, not decoded, and what follows
    is the same. By whole blocks, so that alignment `end` pads alike."""
    client = connect(2, 3)
    draw = random.Random(9)
    prompt = [draw.randrange(1, VOCAB) for _ in range(10)]
    common = {"seed": 11, "temperature": temperature, "logprobs": 1, "alignment": alignment,
              "ignore_eos": True}
    whole = ask(client, {"prompt": prompt, "max_tokens": 48, **common})
    for blocks in (1, 2, 7):
        cut = blocks * BLOCK_LENGTH
        rest = ask(client, {"prompt": prompt + whole.tokens[0][:cut], "max_tokens": 48 - cut, **common})
        assert rest.tokens[0] == whole.tokens[0][cut:]
        assert rest.logprobs[0] == whole.logprobs[0][cut:]
        assert rest.top_logprobs[0] == whole.top_logprobs[0][cut:]
    score = client.score(whole.tokens[0], context=prompt, alignment=alignment, top_logprobs=1)
    assert score.logprobs == whole.logprobs[0]
    assert score.top_logprobs == whole.top_logprobs[0]


def test_a_seed_that_the_server_drew_gives_the_same_answer_again(connect):
    client = connect(2, 3)
    request = {"prompt": [5, 6, 7], "max_tokens": 20, "logprobs": 0}
    first, second = client.generate(**request), client.generate(**request)
    assert first.started.seed != second.started.seed
    again = client.generate(**request, seed=first.started.seed)
    assert again.choices == first.choices
