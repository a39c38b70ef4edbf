"""What clients of other servers send over HTTP, and what they look for in the answers."""

import http_tools
import pytest

PROMPT = "The little dog went to the"
GREEDY = {"temperature": 0, "ignore_eos": True}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(launcher, demo_model):
    return http_tools.serve(launcher, demo_model, "--http-cors-origin=https://page.example")


@pytest.fixture(scope="module")
def chat(launcher, chat_model):
    return http_tools.serve(launcher, chat_model)


def ids_of(server, text):
    return server.complete("/tokenize", prompt=text)["tokens"]


def test_names_of_other_servers_are_the_same_fields(server):
    told = server.complete(prompt=PROMPT, max_tokens=7, repetition_penalty=1.3, **GREEDY)["choices"]
    for name in ("n_predict", "max_new_tokens", "max_completion_tokens"):
        assert server.complete(prompt=PROMPT, repeat_penalty=1.3, **{name: 7}, **GREEDY)["choices"] == told
        for value in (0, 100_000):
            status, error = server.refusal(prompt=PROMPT, **{name: value})
            assert status == 400 and error["param"] == name, error
    status, error = server.refusal(prompt=PROMPT, repeat_penalty=-1)
    assert status == 400 and error["param"] == "repeat_penalty"


def test_a_seed_of_minus_one_is_none(server):
    texts = {server.complete(prompt=PROMPT, seed=-1, temperature=1, max_tokens=30)["choices"][0]["text"]
             for _ in range(3)}
    assert len(texts) > 1


@pytest.mark.parametrize("priority", [0, 5, -5, "batch"])
def test_priorities_are_words_or_numbers(server, priority):
    assert server.complete(prompt=PROMPT, max_tokens=1, priority=priority)["choices"]


def test_a_prompt_is_cut_to_its_last_tokens(server):
    ids = ids_of(server, PROMPT)
    fields = {"max_tokens": 6, "return_token_ids": True, **GREEDY}
    told = server.complete(prompt=ids[-3:], **fields)["choices"]
    assert server.complete(prompt=PROMPT, truncate_prompt_tokens=3, **fields)["choices"] == told
    assert server.complete(prompt=[ids, ids[-3:]], truncate_prompt_tokens=3, **fields)["choices"][1][
        "token_ids"] == told[0]["token_ids"]
    whole = server.complete(prompt=PROMPT, truncate_prompt_tokens=100, **fields)["choices"][0]
    assert whole["prompt_token_ids"] == ids
    limit = server.complete("/tokenize", prompt="a")["max_model_len"]
    answer = server.complete(prompt="the dog " * limit, truncate_prompt_tokens=-1, **fields)
    assert answer["usage"]["prompt_tokens"] == limit - 6
    echoed = server.complete(prompt=PROMPT, truncate_prompt_tokens=2, echo=True, max_tokens=0)["choices"][0]["text"]
    assert PROMPT.endswith(echoed) and echoed != PROMPT
    for given in ("A cafe\u0301", ""):
        told = server.complete(prompt=given, truncate_prompt_tokens=100, echo=True, max_tokens=0)["choices"][0]["text"]
        assert told == given, "what fits is echoed as it was given"


@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_string_is_part_of_the_text_on_request(server, stream):
    fields = {"prompt": PROMPT, "max_tokens": 30, **GREEDY}
    text = server.complete(**fields)["choices"][0]["text"]
    stop = text[10:14]
    fields |= {"stop": stop, "include_stop_str_in_output": True}
    if stream:
        events = [data["choices"][0] for _, data in server.events(**fields)]
        got, last = "".join(event["text"] for event in events), events[-1]
    else:
        last = server.complete(**fields)["choices"][0]
        got = last["text"]
    assert last["stop_reason"] == stop and last["finish_reason"] == "stop"
    assert got == text[:text.index(stop) + len(stop)]


def test_tokens_are_ids_on_request(server, chat):
    ids = ids_of(server, PROMPT)
    choice = server.complete(prompt=PROMPT, max_tokens=3, echo=True, logprobs=2, return_tokens_as_token_ids=True,
                             return_token_ids=True, **GREEDY)["choices"][0]
    names = [f"token_id:{token}" for token in ids + choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == names
    assert set(choice["logprobs"]["top_logprobs"][-1]) > {names[-1]}
    entries = chat.complete(CHAT, messages=[{"role": "user", "content": "Hi"}], max_tokens=2, logprobs=True,
                            return_tokens_as_token_ids=True)["choices"][0]["logprobs"]["content"]
    assert all(entry["token"].startswith("token_id:") for entry in entries)


def test_an_empty_prompt_has_neither_text_nor_tokens(server):
    for prompt in ("", [[]]):
        for most in (0, 2):
            choice = server.complete(prompt=prompt, echo=True, logprobs=1, max_tokens=most, **GREEDY)["choices"][0]
            tokens = choice["logprobs"]["tokens"]
            assert "".join(tokens) == choice["text"] and len(tokens) == most


def test_an_echo_alone_names_what_is_served(server):
    fields = {"prompt": PROMPT, "echo": True}
    fingerprints = {server.complete(max_tokens=most, **fields)["system_fingerprint"] for most in (0, 1)}
    assert len(fingerprints) == 1 and "" not in fingerprints


def test_a_chat_goes_on_in_its_last_message(chat):
    client_messages = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am a"}]
    fields = {"max_tokens": 8, **GREEDY}
    asked = {"stop": ["\nQ:"], "alignment": "start", **fields}

    def text_of(prompt):
        return chat.complete(prompt=prompt, **asked)["choices"][0]["text"]

    def chat_of(messages, **more):
        answer = chat.complete(CHAT, messages=messages, **fields, **more)
        return answer["choices"][0]["message"]["content"]

    assert chat_of(client_messages, continue_final_message=True, add_generation_prompt=False) == text_of(
        "Q: Who are you?\nA: I am a")
    assert chat_of(client_messages, add_generation_prompt=False) == text_of("Q: Who are you?\nA: I am a\n")
    developer = [{"role": "developer", "content": "Be kind."}, *client_messages[:1]]
    assert chat_of(developer, top_logprobs=0) == text_of("Be kind.\nQ: Who are you?\nA:")
    for field, value in [("echo", True), ("chat_template", "{{x}}"), ("documents", [{}]),
                         ("chat_template_kwargs", {"a": 1})]:
        status, error = chat.refusal(CHAT, messages=developer, **{field: value})
        assert status == 400 and error["param"] == field


def test_a_browser_may_send_the_headers_that_its_library_has(server):
    asked = "authorization,content-type,x-stainless-lang,x-stainless-os"
    status, headers, _ = server.request("OPTIONS", "/v1/completions", headers={
        "Origin": "https://page.example", "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": asked})
    assert status == 204 and headers["Access-Control-Allow-Headers"] == asked
    assert headers["Access-Control-Allow-Origin"] == "https://page.example"
    assert "Access-Control-Request-Headers" in ", ".join(headers.get_all("Vary"))
    status, headers, _ = server.request("OPTIONS", "*")
    assert status == 204 and headers["Allow"] == "GET, HEAD, POST, OPTIONS"


def test_every_answer_has_a_request_id(server):
    for method, path, status in (("GET", "/health", 200), ("GET", "/nothing", 404), ("PUT", "/health", 405),
                                 ("GET", "/v1/models", 200), ("POST", "/tokenize", 400), ("OPTIONS", "/", 204)):
        answered, headers, _ = server.request(method, path, headers={"X-Request-Id": "mine"})
        assert answered == status and headers.get_all("X-Request-Id") == ["mine"]
        assert len(server.request(method, path)[1]["X-Request-Id"]) == 32
    for data in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        with server.connect() as connection:
            connection.sendall(data)
            status, headers, _ = http_tools.read_response(connection)
        assert status == 400 and len(headers["x-request-id"]) == 32


def test_a_stream_that_was_shorter_than_its_client_says_is_refused(server):
    fields = {"prompt": PROMPT, "max_tokens": 20, "seed": 1, "stop": " ", "temperature": 0,
              "stream_options": {"include_event_id": True}}
    events = server.events(**fields)
    head, tokens = events[-1][0].rsplit(":", 1)
    for more in (1, 5, 1000):
        status, _, answer = server.request("POST", "/v1/completions", {**fields, "stream": True},
                                           {"Last-Event-ID": f"{head}:{int(tokens) + more}"})
        assert status == 400 and answer["error"]["param"] == "Last-Event-ID"


def test_one_client_does_not_fill_the_log_of_unknown_fields(server):
    for path in ("/v1/completions", "/tokenize"):
        names = [f"x{path[1]}{i}" for i in range(300)]
        server.request("POST", path, {"prompt": "a", "max_tokens": 1, **dict.fromkeys(names, 1)})
        server.request("POST", "/tokenize", {"prompt": "a", f"later_{path[1]}": 1})
        log = server.server.wait_for_log(f"later_{path[1]}")
        assert 1 <= sum(f"{name}," in log or f"{name}\n" in log for name in names) <= 16


@pytest.mark.parametrize("path", ["/v1/completions", CHAT])
def test_unasked_a_stream_has_lines_of_data_alone(chat, path):
    """As OpenAI's and vLLM's: `vllm bench serve` and sglang.bench_serving take every line for data."""
    fields = {"prompt": PROMPT} if path != CHAT else {"messages": [{"role": "user", "content": "Hi"}]}
    fields |= {"max_tokens": 6, "stream": True, "stream_options": {"include_usage": True}, **GREEDY}
    lines = chat.request("POST", path, fields)[2].split("\n")
    assert len(lines) == 2 * (6 + 1 + 1) + 1
    assert all(line.startswith("data: ") for line in lines[:-1:2]) and not any(lines[1::2])
    fields["stream_options"]["include_event_id"] = True
    assert all(name is not None for name, _ in chat.events(path, **fields))


def test_a_text_beyond_the_model_is_told_in_the_words_that_clients_look_for(server):
    """litellm, and with it the fallbacks of its router, goes by these words, not by the code."""
    limit = server.request("GET", "/v1/models")[2]["data"][0]["max_model_len"]
    assert limit == 8192, "2048 positions of 4 tokens"
    for fields in ({"prompt": [5] * 9000, "max_tokens": 1}, {"prompt": "a", "max_tokens": 9000},
                   {"prompt": "the dog " * 30_000}):
        status, error = server.refusal(**fields)
        assert status == 400 and error["code"] == "context_length_exceeded"
        assert f": this model's maximum context length is {limit} tokens" in error["message"]


def test_a_text_beyond_the_kv_is_told_by_field_and_not_asked_again(launcher, demo_model):
    small = http_tools.serve(launcher, demo_model, "--kv-memory-mib=2")
    small.server.wait_for_log("longer ones are refused (--kv-memory-mib)")
    limit = small.complete("/tokenize", prompt="a")["max_model_len"]
    assert small.request("GET", "/v1/models")[2]["data"][0]["max_model_len"] == limit
    for fields, param in [({"prompt": [5] * (limit + 10), "max_tokens": 1}, "prompt"),
                          ({"prompt": "a", "max_tokens": limit + 10}, "max_tokens"),
                          ({"prompt": "a", "n_predict": limit + 10}, "n_predict"),
                          ({"prompt": [5] * (limit + 10), "max_tokens": 0, "echo": True, "logprobs": 1}, "prompt")]:
        status, headers, answer = small.request("POST", "/v1/completions", fields)
        assert status == 400 and "Retry-After" not in headers, answer
        assert answer["error"]["code"] == "context_length_exceeded" and answer["error"]["param"] == param
        assert f": this model's maximum context length is {limit} tokens" in answer["error"]["message"]
    assert small.complete(prompt=[5] * (limit - 4), max_tokens=4)["usage"]["total_tokens"] <= limit
    client = launcher.client(small.server)
    assert client.model().max_tokens == limit
