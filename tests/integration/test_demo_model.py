"""The demo model served: text in, text out."""

import blockserve
import make_random_model
import pytest
import tokenizers

PROMPT = "Once upon a time"
TEXTS = [PROMPT, "", " ", "  two  spaces ", "naïve café — “quoted” 日本語 🙂\n\tnew line", "don't 1234567"]


@pytest.fixture(scope="module")
def client(launcher, demo_model):
    return launcher.client(launcher.serve(demo_model).wait_until_ready())


def test_tokenize_is_that_of_the_tokenizers_library(client, demo_model):
    library = tokenizers.Tokenizer.from_file(str(demo_model / "tokenizer.json"))
    for text in TEXTS:
        assert client.tokenize(text) == library.encode(text, add_special_tokens=False).ids
        tokens = client.tokenize(text)
        assert client.detokenize(tokens) == library.decode(tokens, skip_special_tokens=False)


def test_streamed_text_is_the_text_of_the_tokens(client):
    for seed in range(6):
        result = client.generate(PROMPT, max_tokens=60, temperature=1.0, seed=seed, ignore_eos=True)
        (choice,) = result.choices
        assert choice.text == client.detokenize(choice.tokens, skip_special_tokens=True)
        assert result.usage.prompt_tokens == len(client.tokenize(PROMPT))


def test_a_stop_string_ends_the_text_and_is_not_part_of_it(client):
    whole = client.generate(PROMPT, max_tokens=80, temperature=0.0).choices[0].text
    stop = whole[20:27]
    choice = client.generate(PROMPT, max_tokens=80, temperature=0.0, stop=[stop]).choices[0]
    assert choice.text == whole[: whole.find(stop)]
    assert (choice.finish_reason, choice.stop_string) == ("stop", stop)
    tokens = choice.tokens
    choice = client.generate(PROMPT, max_tokens=80, temperature=0.0, stop=[stop],
                             include_stop_string=True).choices[0]
    assert choice.text == whole[: whole.find(stop) + len(stop)], "unless that was asked for"
    assert (choice.finish_reason, choice.stop_string, choice.tokens) == ("stop", stop, tokens)


def test_a_stop_token_ends_the_tokens_and_is_among_them(client):
    whole = client.generate(PROMPT, max_tokens=40, temperature=0.0).choices[0].tokens
    stop = whole[9]
    choice = client.generate(PROMPT, max_tokens=40, temperature=0.0,
                             stop_token_ids=[stop]).choices[0]
    assert choice.tokens == whole[: whole.index(stop) + 1]
    assert (choice.finish_reason, choice.stop_token) == ("stop", stop)


def test_ids_beyond_the_tokenizer_are_never_drawn(launcher, demo_model, tmp_path):
    """However much they are wanted: the padding of a table has no text."""
    model = tmp_path / "padded"
    assert make_random_model.main([f"--out={model}", f"--tokenizer={demo_model}", "--vocab=2112"]) == 0
    client = launcher.client(launcher.serve(model).wait_until_ready())
    size = tokenizers.Tokenizer.from_file(str(demo_model / "tokenizer.json")).get_vocab_size()
    assert (size, client.model().vocab_size) == (2048, 2112)
    choice = client.generate(PROMPT, max_tokens=40, seed=1, ignore_eos=True,
                             logit_bias={token: 100.0 for token in range(size, 2112)}).choices[0]
    assert len(choice.tokens) == 40 and max(choice.tokens) < size


def test_logprobs_best_first_and_those_of_the_scored_text(client):
    choice = client.generate(PROMPT, max_tokens=24, temperature=0.0, logprobs=5,
                             ignore_eos=True).choices[0]
    for token, own, top in zip(choice.tokens, choice.logprobs, choice.top_logprobs):
        assert top[0] == blockserve.TopLogprob(token, own)
        assert [best.logprob for best in top] == sorted((b.logprob for b in top), reverse=True)
    score = client.score(choice.tokens, context=client.tokenize(PROMPT), top_logprobs=5)
    assert score.logprobs == choice.logprobs and score.top_logprobs == choice.top_logprobs


def test_min_tokens_holds_the_end_of_text_back(client):
    eos = client.model().eos_token_id
    wanted = {"temperature": 0.0, "logit_bias": {eos: 100.0}, "max_tokens": 20}
    assert client.generate(PROMPT, **wanted).choices[0].tokens == [eos]
    tokens = client.generate(PROMPT, min_tokens=7, **wanted).choices[0].tokens
    assert len(tokens) == 8 and tokens[-1] == eos and eos not in tokens[:-1]
