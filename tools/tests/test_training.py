"""The training's own parts: data, models, optimizer, resuming. Skipped without torch."""

import json

import numpy as np
import pytest

import data
import reference_model

torch = pytest.importorskip("torch")

import model as models  # noqa: E402
import optim  # noqa: E402
import train  # noqa: E402

TEXT = "".join(
    f"Tale number {i}: the fox {w} the hen.\n\nThe hen {w} the fox.\n\n"
    + "<|endoftext|>" * (i % 9 == 8)
    for i, w in enumerate(("saw", "met", "ate", "had") * 60)
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    pytest.importorskip("tokenizers")
    import train_tokenizer

    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text(TEXT)
    train_tokenizer.write(train_tokenizer.train(folder / "text.txt", 300), folder)
    return folder


def run_for(corpus, out, kind="block", *options):
    return train.Run(train.parse([
        "--kind", kind, "--corpus", str(corpus / "text.txt"), "--tokenizer",
        str(corpus / "tokenizer.json"), "--out", str(out), "--context", "32", "--long-context", "64",
        "--width", "32", "--heads", "2", "--layers", "1", "--batch-tokens", "128", "--micro-tokens", "64", "--tokens", "512", "--warmup-tokens", "128",
        *options,
    ]))  # fmt: skip


def test_golden_numbers(golden):
    from safetensors.torch import load_file

    model = models.load_folder(golden)
    expected = load_file(golden / "expected.safetensors")
    cases = json.loads((golden / "expected.json").read_text())["cases"]
    for i, case in enumerate(cases):
        logits = expected[f"logits.{i}"]
        pads = -len(case["prompt"]) % getattr(model, "length", 1)
        pads = [model.config.get("pad_token_id", 0)] * pads
        tokens = torch.tensor([pads + case["prompt"] + case["greedy"][: len(logits)]])
        with torch.no_grad():
            ours = model(tokens)[0, -len(logits) :]
        assert (ours - logits).abs().max() <= 1e-5 * logits.abs().max()


@pytest.mark.parametrize("options", [
    ("--block-length", "1", "--prefix", "1"), ("--block-length", "6", "--prefix", "3", "--width", "96"),
    ("--block-length", "3", "--strategy", "summation", "--projection", "sum"),
    ("--sequential-residual", "--projection", "projection_layer"), ("--vanilla",),
])  # fmt: skip
def test_torch_and_numpy_agree_on_unseen_models(make_model, options):
    folder = make_model("--vocab", "101", *options)
    model, reference = models.load_folder(folder), reference_model.load(folder)
    prompt = list(range(1, 13))
    tokens, _, logits = reference.generate(prompt, 12)
    with torch.no_grad():
        ours = model(torch.tensor([prompt + tokens]))[0, -12:].numpy()
    assert np.abs(ours - logits).max() <= 1e-5 * np.abs(logits).max()


def test_held_out_text_is_the_end_of_each_book():
    train_part, held_out = data.split_books(TEXT, 0.2)
    assert len(train_part) == len(held_out) == TEXT.count("<|endoftext|>") + 1
    for book, tail in zip(train_part, held_out):
        assert book + "\n\n" + tail in TEXT


def test_an_epoch_covers_the_text_once():
    tokens = np.arange(1000)
    windows = data.Windows(tokens, 10, newline_id=5, seed=1)
    windows.paragraphs = np.array([0])
    rows = [windows.row(i) for i in range(windows.per_epoch) if i % 8]
    seen = np.concatenate(rows)
    assert len(set(seen)) == len(seen)
    assert windows.row(8)[0] == 0
    again = data.Windows(tokens, 10, newline_id=5, seed=1)
    assert np.array_equal(again.row(45), windows.row(45))


def test_random_padding_meets_every_alignment():
    batch = np.arange(1, 401).reshape(20, 20)
    padded, pads = data.pad_first_block(batch, 0, 4)
    assert set(pads) == {0, 1, 2, 3} and padded.shape == batch.shape
    for row, before, n in zip(padded, batch, pads):
        assert (row[:n] == 0).all() and (row[n:] == before[: 20 - n]).all()


def test_orthogonalized_update_has_singular_values_about_one():
    torch.manual_seed(0)
    for shape in ((48, 16), (16, 48), (32, 32)):
        values = torch.linalg.svdvals(optim.orthogonalize(torch.randn(shape), steps=6))
        assert values.max() < 1.4 and values.median() > 0.6


def test_learning_rate_rises_stays_and_falls_to_zero():
    scale = [train.learning_rate_scale(t, 100, t / 1000, 0.5) for t in (0, 49, 300, 499, 750, 1000)]
    assert scale[1] == 0.5 and scale[2] == scale[3] == 1.0 and scale[4] == 0.5 and scale[5] == 0.0


def test_a_run_can_finish_by_the_clock(corpus, tmp_path):
    run = run_for(corpus, tmp_path, "block", "--finish-at", "12:00", "--decay-minutes", "30")
    at = [run.progress(run.finish - 60 * minutes) for minutes in (90, 30, 15, 0)]
    assert at == [0.0, 0.5, 0.75, 1.0]
    run.done_tokens = 448
    assert run.progress(run.finish - 5400) == 0.875


def test_a_resumed_run_equals_an_unbroken_one(corpus, tmp_path):
    torch.manual_seed(0)
    whole = run_for(corpus, tmp_path / "whole")
    losses = [whole.step()[0] for _ in range(4)]
    first = run_for(corpus, tmp_path / "halves")
    parts = [first.step()[0] for _ in range(2)]
    first.save()
    second = run_for(corpus, tmp_path / "halves")
    second.resume()
    parts += [second.step()[0] for _ in range(2)]
    assert parts == losses
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["block", "vanilla"])
def test_training_lowers_the_held_out_loss(corpus, tmp_path, kind):
    run = run_for(corpus, tmp_path, kind, "--tokens", "2048")
    run.held_out = np.tile(run.held_out, 256 // len(run.held_out) + 1)
    before = run.evaluate()
    run.train()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["tokens_trained"] == 2048
    assert result["held_out_bits_per_byte"] < 0.8 * before
