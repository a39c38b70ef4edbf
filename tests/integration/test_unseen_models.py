"""Models that are in no golden folder, made here at random, against the numpy reference: other block
lengths (1, 3, 6), widths and head sizes, sharded float16, every embedder and strategy."""

import make_random_model
import pytest
import reference_model

SHAPES = {
    "L 1": ["--block-length=1", "--prefix=1"],
    "L 3, sharded f16": ["--block-length=3", "--width=96", "--heads=3", "--dtype=f16", "--shards=3",
                         "--prefix=3"],
    "L 6, projection layer": ["--block-length=6", "--width=72", "--heads=3", "--token-width=80",
                              "--token-heads=5", "--projection=projection_layer",
                              "--embedder-width=40", "--token-layers=1"],
    "L 5, summation": ["--block-length=5", "--width=80", "--heads=5", "--strategy=summation",
                       "--rotary-pct=0.5", "--sequential-residual"],
    "L 6, sum, bf16": ["--block-length=6", "--width=60", "--heads=5", "--projection=sum",
                       "--dtype=bf16", "--prefix=4", "--rotary-pct=1.0", "--intermediate=100"],
    "vanilla f16": ["--vanilla", "--width=96", "--heads=2", "--dtype=f16", "--shards=2"],
}
PROMPT = [11, 402, 7, 90, 355, 18, 240, 3, 77, 501, 36]
CONTINUATION = [5, 6, 99, 400, 23, 8, 310, 44, 12]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_unseen_model(shape, launcher, tmp_path):
    model = tmp_path / "model"
    assert make_random_model.main([f"--out={model}", "--seed=3", *SHAPES[shape]]) == 0
    client = launcher.client(launcher.serve(model, "--arithmetic=f32").wait_until_ready())
    reference = reference_model.load(model)
    for alignment in ("end", "start", "none"):
        tokens, logprobs, _ = reference.generate(PROMPT, 40, alignment)
        choice = client.generate(PROMPT, max_tokens=40, temperature=0.0, ignore_eos=True, logprobs=0,
                                 alignment=alignment).choices[0]
        assert choice.tokens == tokens
        assert choice.logprobs == pytest.approx(logprobs, abs=5e-5)
    score = client.score(CONTINUATION, context=PROMPT, alignment="end")
    assert score.logprobs == pytest.approx(reference.score(PROMPT, CONTINUATION), abs=5e-5)
    first, *others = client.score(PROMPT).logprobs
    expected_first, *expected = reference.score_text(PROMPT)
    assert first is None and expected_first is None
    assert others == pytest.approx(expected, abs=5e-5)
