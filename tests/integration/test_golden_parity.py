"""Every number of every golden folder, through `blockserve serve` and through three processes.

Tolerances are those of the golden README: tokens equal, log-probabilities within 5e-5. Context
embeddings and logits are not on the wire to clients; the engine's tests compare them.
"""

import json
import math

import harness
import pytest

LOGPROB_TOLERANCE = 5e-5


def served_in_one_process(launcher, folder):
    return launcher.client(
        launcher.serve(folder, "--arithmetic=f32", "--threads=2").wait_until_ready())


def served_by_three_processes(launcher, folder):
    block = launcher.block(folder, "--arithmetic=f32")
    token = launcher.token(folder, "--arithmetic=f32")
    return launcher.connected_client(launcher.gateway(folder, [block], [token]), 1, 1)


@pytest.fixture(scope="module", params=[served_in_one_process, served_by_three_processes],
                ids=["one_process", "three_processes"])
def topology(request):
    return request.param


@pytest.fixture(scope="module")
def served(topology, golden, tmp_path_factory):
    launcher = harness.Launcher(tmp_path_factory.mktemp("golden"))
    client = topology(launcher, golden)
    yield client, json.loads((golden / "expected.json").read_text())["cases"]
    launcher.close()


def largest_difference(found, expected):
    assert len(found) == len(expected)
    worst = 0.0
    for index, (ours, theirs) in enumerate(zip(found, expected)):
        if theirs is None:
            assert ours is None, f"token {index} has the score {ours} and should have none"
        else:
            assert ours is not None and math.isfinite(ours), f"token {index} has the score {ours}"
            worst = max(worst, abs(ours - theirs))
    return worst


def measured(note, golden, topology, worst):
    note(f"golden {golden.name}, {topology.__name__}: largest error of a log-probability", worst)


@pytest.mark.parametrize("alignment", ["end", "start", "none"])
def test_greedy_tokens_and_their_logprobs(served, alignment, golden, topology, note):
    client, cases = served
    field = {"end": "greedy", "start": "greedy_start", "none": "greedy_none"}[alignment]
    if golden.name == "vanilla":
        field = "greedy"  # blocks of one token: every alignment is the same
    results = harness.in_parallel([
        lambda case=case: client.generate(case["prompt"], max_tokens=len(case[field]),
                                          temperature=0.0, ignore_eos=True, logprobs=0,
                                          alignment=alignment)
        for case in cases
    ])
    worst = 0.0
    for case, result in zip(cases, results):
        (choice,) = result.choices
        assert choice.tokens == case[field], f"prompt of {len(case['prompt'])} tokens"
        assert choice.finish_reason == "length"
        assert result.started.alignment == alignment
        assert result.usage.prompt_tokens == len(case["prompt"])
        assert result.usage.completion_tokens == len(case[field])
        assert len(choice.logprobs) == len(choice.tokens)
        if field + "_logprobs" in case:
            worst = max(worst, largest_difference(choice.logprobs, case[field + "_logprobs"]))
    measured(note, golden, topology, worst)
    assert worst <= LOGPROB_TOLERANCE


def test_scores_of_a_continuation(served, golden, topology, note):
    client, cases = served
    worst = 0.0
    for case in cases:
        score = client.score(case["continuation"], context=case["prompt"], alignment="end")
        assert score.tokens == case["continuation"]
        worst = max(worst, largest_difference(score.logprobs, case["continuation_logprobs"]))
    measured(note, golden, topology, worst)
    assert worst <= LOGPROB_TOLERANCE


def test_scores_of_a_text_by_itself(served, golden, topology, note):
    client, cases = served
    worst = 0.0
    for case in cases:
        score = client.score(case["prompt"])
        worst = max(worst, largest_difference(score.logprobs, case["text_logprobs"]))
    measured(note, golden, topology, worst)
    assert worst <= LOGPROB_TOLERANCE


def test_greedy_text_is_scored_as_it_was_generated(served):
    client, cases = served
    case = cases[3]
    generated = client.generate(case["prompt"], max_tokens=23, temperature=0.0, ignore_eos=True,
                                logprobs=0, alignment="end").choices[0]
    score = client.score(generated.tokens, context=case["prompt"], alignment="end")
    assert score.logprobs == generated.logprobs  # bit for bit


def test_the_model_is_described(served, golden):
    client, _ = served
    config = json.loads((golden / "config.json").read_text())
    model = client.model()
    assert model.kind == config["model_type"]
    assert model.block_length == config.get("block_length", 1)
    assert model.vocab_size == config["vocab_size"]
    assert model.name == golden.name
    assert not model.has_tokenizer
    assert (model.block_services, model.token_workers) == (1, 1)
    assert model.block_numeric_id.startswith("f32") and model.token_numeric_id.startswith("f32")
