"""The numpy reference against the golden numbers, and against itself."""

import json

import numpy as np
import pytest

import reference_model
from safetensors_io import Reader


def test_reproduces_golden_tokens_and_scores(golden):
    model = reference_model.load(golden)
    cases = json.loads((golden / "expected.json").read_text())["cases"]
    for case in cases[1:4]:
        tokens, scores, _ = model.generate(case["prompt"], 24)
        assert tokens == case["greedy"][:24]
        assert np.allclose(scores, case["greedy_logprobs"][:24], atol=5e-5)
        given = model.score(case["prompt"], case["continuation"])
        assert np.allclose(given, case["continuation_logprobs"], atol=5e-5)
        for alignment in ("start", "none"):
            if "greedy_" + alignment in case:
                tokens, _, _ = model.generate(case["prompt"], 13, alignment)
                assert tokens == case["greedy_" + alignment][:13]
        text = model.score_text(case["prompt"])
        assert text[0] is None and case["text_logprobs"][0] is None
        assert np.allclose(text[1:], case["text_logprobs"][1:], atol=5e-5)


def test_reproduces_golden_contexts_and_logits(golden):
    model = reference_model.load(golden)
    expected = Reader(golden / "expected.safetensors")
    prompt = json.loads((golden / "expected.json").read_text())["cases"][3]["prompt"]
    logits = expected.float32("logits.3")
    _, _, rows = model.generate(prompt, len(logits))
    assert np.abs(rows - logits).max() <= 1e-5 * np.abs(logits).max()
    if "block_length" in model.config:
        contexts = expected.float32("context.3")
        tokens = reference_model.align(model.config, prompt, "end")
        ours = model.contexts(tokens, model.block.empty_cache())
        assert np.abs(ours - contexts).max() <= 1e-5 * np.abs(contexts).max()


@pytest.mark.parametrize(
    "length, prefix, projection", [(1, 1, "concat"), (3, 2, "sum"), (6, 3, "concat")]
)
@pytest.mark.parametrize("alignment", ["end", "start", "none"])
def test_scores_equal_the_log_probabilities_of_generating(
    make_model, length, prefix, projection, alignment
):
    folder = make_model(
        "--block-length",
        str(length),
        "--prefix",
        str(prefix),
        "--width",
        "48",
        "--heads",
        "3",
        "--projection",
        projection,
        "--token-width",
        "32",
        "--token-heads",
        "2",
        "--vocab",
        "101",
    )
    model = reference_model.load(folder)
    prompt = [5, 7, 9, 11, 13]
    tokens, scores, _ = model.generate(prompt, 9, alignment)
    assert np.allclose(model.score(prompt, tokens, alignment), scores, atol=1e-9)


def test_start_alignment_text_score_equals_generation(make_model):
    model = reference_model.load(make_model("--vocab", "101"))
    tokens, scores, _ = model.generate([5], 12, "start")
    assert np.allclose(model.score_text([5] + tokens)[1:], scores, atol=1e-9)


def test_prints_json(make_model, capsys):
    folder = make_model()
    capsys.readouterr()
    command = ["--model", str(folder), "--prompt-tokens", "1,2,3", "--max-tokens", "5"]
    assert reference_model.main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["tokens"]) == len(printed["logprobs"]) == 5
    assert reference_model.main(command[:4] + ["--score"]) == 0
    assert json.loads(capsys.readouterr().out)["logprobs"][0] is None


def test_names_the_missing_tensor(make_model, capsys):
    folder = make_model()
    config = json.loads((folder / "config.json").read_text())
    config["embedder"]["hidden_size"] = 99
    (folder / "config.json").write_text(json.dumps(config))
    assert reference_model.main(["--model", str(folder), "--prompt-tokens", "1"]) == 2
    assert "embedder.hidden_size" in capsys.readouterr().err


def test_the_first_token_of_a_text_has_no_score(golden):
    model = reference_model.load(golden)
    assert model.score_text([1]) == [None]
