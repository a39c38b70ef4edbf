"""The `openai` package against blockserve, unchanged."""

import asyncio

import http_tools
import openai
import pytest

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def url(launcher, demo_model):
    return http_tools.serve(launcher, demo_model).url + "/v1"


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_completions(client):
    model = client.models.list().data[0].id
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=12, temperature=0.7, seed=5, n=2,
                                       logprobs=2, stop=["zzz"], extra_body={"top_k": 40, "ignore_eos": True})
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage.completion_tokens == 24
    assert len(answer.choices[0].logprobs.token_logprobs) == 12
    again = client.completions.create(model=model, prompt=PROMPT, max_tokens=12, temperature=0.7, seed=5, n=2,
                                      extra_body={"top_k": 40, "ignore_eos": True})
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]


def test_streaming(client):
    fields = {"model": "demo-block", "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
    whole = client.completions.create(**fields)
    chunks = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **fields))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage.completion_tokens == len(chunks) - 1 == whole.usage.completion_tokens


def test_values_that_ask_for_nothing_are_taken(client):
    """Frameworks send these unasked."""
    fields = {"model": "demo-block", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    plain = client.completions.create(**fields).choices[0].text
    neutral = {"response_format": {"type": "text"}, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True,
               "functions": [], "function_call": "none", "modalities": ["text"]}
    assert client.completions.create(suffix="", extra_body=neutral, **fields).choices[0].text == plain
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(extra_body={"response_format": {"type": "json_object"}}, **fields)
    assert caught.value.param == "response_format"


def test_errors_are_the_packages_own(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="demo-block", prompt=PROMPT, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt=PROMPT)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="chat_format.json"):
        client.chat.completions.create(model="demo-block", messages=[{"role": "user", "content": "hi"}])


def test_a_request_that_breaks_its_workers_is_not_sent_again(launcher, demo_model):
    """The package tries again by itself what ends with a 5xx, which would break as many workers each time."""
    worker = launcher.token(demo_model, "--allow-fault-injection", "--inject-errors=1")
    server = http_tools.gateway(launcher, demo_model, [launcher.block(demo_model)], [worker])
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none") as client:
        with pytest.raises(openai.InternalServerError, match="an injected error"):
            client.completions.create(model="demo-block", prompt=PROMPT)
    server.server.stop()
    assert server.server.log().count("request finished") == 1


def test_64_streams_at_once(url):
    async def run():
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            async def one(seed):
                fields = {"model": "demo-block", "prompt": PROMPT, "max_tokens": 8, "seed": seed}
                stream = await client.completions.create(stream=True, **fields)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one(index % 4) for index in range(64)))

    texts = asyncio.run(run())
    assert len(texts) == 64 and all(texts)
    # The same seed gives the same text, whoever is served beside it.
    assert len(set(texts)) <= 4
