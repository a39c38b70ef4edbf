"""OpenAI's interface over HTTP: what each field does, against what gRPC says of the same request."""

import json
import signal
import subprocess
import threading

import harness
import http_tools
import numpy as np
import pytest
from answers import ask

PROMPT = "The little dog went to the"


@pytest.fixture(scope="module")
def server(launcher, demo_model):
    return http_tools.serve(launcher, demo_model)


@pytest.fixture(scope="module")
def client(launcher, server):
    return launcher.client(server.server)


def ids_of(server, text):
    status, _, answer = server.request("POST", "/tokenize", {"prompt": text})
    assert status == 200 and answer["count"] == len(answer["tokens"])
    return answer["tokens"]


def test_a_completion_is_what_grpc_answers(server, client):
    fields = {"max_tokens": 24, "temperature": 0.8, "seed": 7, "n": 2, "top_k": 50, "top_p": 0.9,
              "min_p": 0.01, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.2,
              "ignore_eos": True}
    answer = server.complete(prompt=PROMPT, return_token_ids=True, best_of=2, logit_bias={"11": -5.0}, **fields)
    same = client.generate(PROMPT, logit_bias={11: -5.0}, **fields)
    assert [choice["token_ids"] for choice in answer["choices"]] == [
        list(choice.tokens) for choice in same.choices]
    assert [choice["text"] for choice in answer["choices"]] == [choice.text for choice in same.choices]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length", "length"]
    prompt_ids = ids_of(server, PROMPT)
    assert answer["choices"][0]["prompt_token_ids"] == prompt_ids
    assert answer["usage"]["completion_tokens"] == 48
    assert answer["usage"]["prompt_tokens"] == len(prompt_ids)
    assert answer["usage"]["total_tokens"] == 48 + len(prompt_ids)


def test_the_four_forms_of_a_prompt_are_one(server):
    ids = ids_of(server, PROMPT)
    fields = {"max_tokens": 8, "temperature": 0}
    texts = [server.complete(prompt=prompt, **fields)["choices"][0]["text"]
             for prompt in (PROMPT, ids, [PROMPT], [ids])]
    assert len(set(texts)) == 1
    several = server.complete(prompt=[PROMPT, "Once", PROMPT], n=2, **fields)["choices"]
    assert [choice["index"] for choice in several] == list(range(6))
    assert several[0]["text"] == several[1]["text"] == several[4]["text"] == texts[0]


@pytest.mark.parametrize("stop", [None, "e", ["zzz", " the"]])
def test_a_stream_has_one_event_per_token_and_the_same_text(server, stop):
    fields = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0.9, "seed": 3, "n": 2, "logprobs": 2}
    if stop is not None:
        fields["stop"] = stop
    whole = server.complete(**fields)
    events = server.events(stream_options={"include_usage": True}, return_token_ids=True, **fields)
    *tokens, (_, last) = [event for event in events]
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert len(tokens) == whole["usage"]["completion_tokens"]
    assert all(len(data["choices"]) == 1 for _, data in tokens)
    assert all(data["usage"] is None for _, data in tokens)
    for choice in whole["choices"]:
        mine = [data["choices"][0] for _, data in tokens if data["choices"][0]["index"] == choice["index"]]
        assert "".join(event["text"] for event in mine) == choice["text"]
        assert [event["finish_reason"] for event in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        assert all(len(event["token_ids"]) == 1 for event in mine)
        for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert sum((event["logprobs"][field] for event in mine), []) == choice["logprobs"][field]


def test_events_carry_request_id_and_position(server):
    status, headers, text = server.request(
        "POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 6, "stream": True, "seed": 255,
                                    "ignore_eos": True, "stream_options": {"include_event_id": True}},
        {"X-Request-Id": "mine"})
    assert status == 200 and headers["X-Request-Id"] == "mine"
    ids = [event_id.split(":") for event_id, _ in http_tools.parse_events(text)]
    assert [[request, seed, tokens] for request, seed, _, tokens in ids] == [
        ["mine", "ff", str(tokens)] for tokens in range(1, 7)]


@pytest.mark.parametrize("per_block", [False, True])
def test_a_stream_goes_on_after_the_last_event_that_a_client_has(server, per_block):
    """Nobody gave a seed: the events' ids tell the one that was drawn."""
    fields = {"prompt": [PROMPT, "Once"], "n": 2, "max_tokens": 120, "temperature": 1, "logprobs": 0,
              "stream_options": {"include_usage": True, "include_event_id": True, "per_block": per_block}}
    events = server.events(**fields)
    for cut in (0, len(events) // 3, len(events) - 2):
        status, _, text = server.request("POST", "/v1/completions", {**fields, "stream": True},
                                         {"Last-Event-ID": events[cut][0]})
        assert status == 200, text
        for choice in range(4):
            texts = [[data["choices"][0] for _, data in part if data["choices"]
                      and data["choices"][0]["index"] == choice]
                     for part in (events[cut + 1:], list(http_tools.parse_events(text)))]
            assert texts[0] == texts[1]
    assert server.request("POST", "/v1/completions", {**fields, "stream": True},
                          {"Last-Event-ID": "a:b"})[0] == 400
    elsewhere = events[3][0].split(":")
    elsewhere[-2] = "00000000" + elsewhere[-2][8:]
    assert server.request("POST", "/v1/completions", {**fields, "stream": True},
                          {"Last-Event-ID": ":".join(elsewhere)})[0] == 412


def test_one_event_per_block_and_the_worker_on_request(server):
    events = server.events(prompt=PROMPT, max_tokens=40, ignore_eos=True, return_token_ids=True,
                           stream_options={"per_block": True, "include_worker": True,
                                           "continuous_usage_stats": True})
    counts = [len(data["choices"][0]["token_ids"]) for _, data in events]
    assert sum(counts) == 40 and max(counts) > 1
    assert all(data["choices"][0]["worker"] for _, data in events)
    assert [data["usage"]["completion_tokens"] for _, data in events] == [
        sum(counts[:i + 1]) for i in range(len(counts))]


def test_echo_scores_every_token_but_the_first(server, client):
    """What lm-evaluation-harness asks for; and equal to Score, bit for bit."""
    text = "The little dog went to the garden and saw a bird."
    scored = client.score(text, top_logprobs=1)
    for most in (0, 1):
        choice = server.complete(prompt=text, echo=True, logprobs=1, max_tokens=most, temperature=0)["choices"][0]
        logprobs = choice["logprobs"]
        values = logprobs["token_logprobs"]
        assert len(values) == len(scored.tokens) + most
        assert values[0] is None and None not in values[1:]
        assert np.array_equal(np.float32(values[1:len(scored.tokens)]), np.float32(scored.logprobs[1:]))
        assert choice["text"].startswith(text)
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"]):
            assert choice["text"][offset:offset + len(token)] == token
        for token, value, best in zip(logprobs["tokens"][1:], values[1:], logprobs["top_logprobs"][1:]):
            assert best[token] == value and value <= max(best.values())


def test_echo_aligns_the_generated_tokens_too(server, client):
    fields = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
    echoed = server.complete(prompt=PROMPT, echo=True, **fields)["choices"][0]["text"]
    start = client.generate(PROMPT, alignment="start", **fields).choices[0].text
    assert echoed == PROMPT + start
    events = server.events(prompt=PROMPT, echo=True, **fields)
    assert len(events) == 20
    assert "".join(data["choices"][0]["text"] for _, data in events) == echoed


def test_a_character_that_the_prompt_begins_and_the_output_ends_is_whole(server):
    before, last = (ids := ids_of(server, "A dog 🙂"))[:-1], ids[-1]
    assert len(before) > len(ids_of(server, "A dog "))
    fields = {"prompt": before, "echo": True, "max_tokens": 1, "logit_bias": {str(last): 100}, "temperature": 0}
    choice = server.complete(logprobs=0, **fields)["choices"][0]
    assert choice["text"] == "A dog 🙂"
    assert choice["logprobs"]["text_offset"][-1] == len("A dog ")
    assert "".join(data["choices"][0]["text"] for _, data in server.events(**fields)) == "A dog 🙂"
    # Nothing, or something else, comes after the beginning.
    for more in ({"max_tokens": 0}, {"logit_bias": {str(ids[0]): 100}}):
        answer = server.complete(return_token_ids=True, **{**fields, **more})["choices"][0]
        _, _, whole = server.request("POST", "/detokenize", {"tokens": before + answer["token_ids"]})
        assert answer["text"] == whole["prompt"] and answer["text"].startswith("A dog \ufffd")


def test_a_token_after_half_a_character_begins_after_what_stands_for_that(server):
    half = ids_of(server, "🙂")[:2]
    ids = ids_of(server, "A") + half + half + ids_of(server, " dog") + half[:1]
    choice = server.complete(prompt=ids, echo=True, max_tokens=0, logprobs=0)["choices"][0]
    assert choice["text"] == "A\ufffd\ufffd dog\ufffd"
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 2, 2, 3, 7]


@pytest.mark.parametrize("fields, param", [
    ({"suffix": "x"}, "suffix"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1_000_000}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 65}, "n"),
    ({"logprobs": 21}, "logprobs"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop_token_ids": [10**9]}, "stop_token_ids[0]"),
    ({"logit_bias": {"10000000": 1}}, "logit_bias"),
    ({"prompt": [10**9]}, "prompt[0]"),
    ({"prompt": [[1], [10**9]]}, "prompt[1][0]"),
    ({"prompt": ["a"] * 129}, "prompt"),
    ({"prompt": [1] * 100_000}, "prompt"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": "y" * 257}, "stop[0]"),
    ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
    ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, 'logit_bias["1"]'),
    ({"min_tokens": -1}, "min_tokens"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"n": 2, "best_of": 3}, "best_of"),
    ({"logprobs": -1}, "logprobs"),
    ({"seed": 2**64}, "seed"),
])
def test_what_cannot_be_served_is_named(server, fields, param):
    status, error = server.refusal(**{"prompt": "a", **fields})
    assert status == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == param and param in error["message"]


@pytest.mark.parametrize("header, value", [
    ("X-Request-Id", "x" * 121),
    ("X-Request-Timeout", "0"),
    ("X-Request-Timeout", "86401"),
    ("X-Request-Timeout", "soon"),
    ("Last-Event-ID", "a:b"),
])
def test_headers_that_cannot_be_served_are_named(server, header, value):
    status, _, answer = server.request("POST", "/v1/completions", {"prompt": "a", "stream": True}, {header: value})
    assert status == 400 and answer["error"]["param"] == header


@pytest.mark.parametrize("fields, param", [
    ({"prompt": [[66] * 4000] * 3, "n": 64, "max_tokens": 0, "logprobs": 20, "echo": True}, "logprobs"),
    ({"prompt": [[66] * 4000] * 64, "n": 64, "max_tokens": 0, "echo": True}, "n"),
    ({"prompt": [66] * 4000, "n": 64, "max_tokens": 1, "logprobs": 20, "echo": True, "stream": True}, "logprobs"),
    ({"prompt": [" frightened" * 4000] * 20, "n": 52, "max_tokens": 0, "echo": True}, "n"),
    ({"prompt": [[66] * 4000] * 22, "n": 64, "max_tokens": 1, "return_token_ids": True}, "n"),
])
def test_an_answer_that_would_fill_the_memory_is_refused(server, fields, param):
    status, error = server.refusal(**fields)
    assert status == 400 and error["param"] == param, error
    assert "MiB" in error["message"]


def test_a_refused_request_keeps_its_id(server):
    for path, body, expected in (("/v1/completions", {"prompt": "a", "n": 0}, 400), ("/v1/completions", "{", 400),
                                 ("/nope", {}, 404), ("/health", {}, 405)):
        status, headers, _ = server.request("POST", path, body, {"X-Request-Id": "mine-1"})
        assert status == expected and headers["X-Request-Id"] == "mine-1"
    assert server.request("POST", "/v1/completions", {"prompt": "a", "n": 0})[1]["X-Request-Id"]


def test_an_error_in_a_stream_has_the_status_as_its_code(server):
    status, _, text = server.request("POST", "/v1/completions", {
        "prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "n": 16, "stream": True},
        {"X-Request-Timeout": "0.3"})
    if status == 200:  # else it was told before the first token
        error = json.loads(text.strip().split("\n")[-1].removeprefix("data: "))["error"]
        assert error["code"] == 504 and "deadline" in error["message"], error
    else:
        assert status in (429, 504)


def test_a_server_that_drains_answers_those_who_have_not_heard(launcher, demo_model):
    # Longer than the stream takes on any machine.
    server = http_tools.serve(launcher, demo_model, "--drain-time=2m")
    running = threading.Event()
    ended = []

    def stream():
        with server.connect() as connection:
            connection.sendall(http_tools.post("/v1/completions", {
                "prompt": "Once", "max_tokens": 1900, "n": 8, "ignore_eos": True, "stream": True}))
            received = connection.recv(1000)
            running.set()
            while piece := connection.recv(65536):
                received += piece
            ended.append(received)

    client = threading.Thread(target=stream)
    client.start()
    assert running.wait(60)
    server.server.process.send_signal(signal.SIGTERM)
    harness.wait_until(lambda: server.request("GET", "/ready")[0] == 503, "it is not ready")
    assert server.request("GET", "/health")[0] == 200
    status, headers, _ = server.request("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1})
    assert status == 503 and int(headers["Retry-After"]) > 0 and headers["Connection"] == "close"
    client.join()
    assert b"[DONE]" in ended[0], "what ran has ended well"
    assert server.server.process.wait(harness.STOP_LIMIT_S) == 0


def test_another_model_is_not_found(server):
    status, error = server.refusal(prompt="a", model="gpt-x")
    assert status == 404 and error["code"] == "model_not_found"


@pytest.mark.parametrize("fields", [{"prompt": [1] * 9000}, {"prompt": [1], "max_tokens": 9000},
                                    {"prompt": [1] * 9000, "max_tokens": 0, "echo": True}])
def test_too_long_a_text_has_the_code_that_clients_cut_theirs_by(server, fields):
    status, error = server.refusal(**fields)
    assert status == 400 and error["code"] == "context_length_exceeded"
    assert error["param"] == ("max_tokens" if "max_tokens" in fields and fields["max_tokens"]
                              else "prompt")


def test_a_deadline_ends_a_request_with_504(server):
    status, _, answer = server.request(
        "POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 400, "n": 64, "ignore_eos": True},
        {"X-Request-Timeout": "0.02"})
    assert status == 504, answer


def test_unknown_fields_are_logged_once_and_by_name_alone(server):
    for value in ("first secret", "second secret"):
        server.complete(prompt="a", max_tokens=1, surprise=value)
    server.complete(prompt="a", max_tokens=1, a_later_one=1)
    log = server.server.wait_for_log("a_later_one")
    assert log.count("surprise") == 1
    assert "secret" not in log


def test_the_log_says_when_no_further_unknown_fields_are_logged(launcher, demo_model):
    server = http_tools.serve(launcher, demo_model)
    for part in range(17):
        server.complete(prompt="a", max_tokens=1, **{f"made_up_{part}_{i}": 1 for i in range(20)})
    log = server.server.wait_for_log("request finished", 17)
    assert log.count("made_up_") == 256
    assert log.count("256 names have been logged; no further ones are") == 1


def test_text_comes_back_from_its_ids(server):
    text = "naïve 日本語 🙂"
    status, _, answer = server.request("POST", "/detokenize", {"tokens": ids_of(server, text)})
    assert status == 200 and answer["prompt"] == text


def test_a_model_of_any_name_is_found_by_it(launcher, demo_model):
    server = http_tools.serve(launcher, demo_model, "--model-name=org/my chat")
    assert server.request("GET", "/v1/models")[2]["data"][0]["id"] == "org/my chat"
    assert server.request("GET", "/v1/models/org%2Fmy%20chat")[2]["id"] == "org/my chat"
    assert server.request("GET", "/v1/models/org/my%20chat")[0] == 200
    assert server.request("GET", "/v1/models/org%2Fother")[0] == 404


def test_models_health_and_version(server, client):
    models = server.request("GET", "/v1/models")[2]["data"]
    assert [model["id"] for model in models] == [client.model().name]
    assert models[0]["root"] == client.model().model_id
    assert server.request("GET", f"/v1/models/{models[0]['id']}")[2] == models[0]
    assert server.request("GET", "/v1/models/other")[0] == 404
    assert server.request("GET", "/health")[0] == 200
    assert server.request("GET", "/ready")[0] == 200
    assert server.request("GET", "/ready?scope=deployment")[0] == 200
    assert server.request("GET", "/ready?scope=moon")[0] == 400
    assert server.request("GET", "/version")[2]["version"]


def test_head_options_and_what_is_not_there(server):
    status, headers, body = server.request("HEAD", "/health")
    assert status == 200 and body == "" and int(headers["Content-Length"]) > 0
    status, headers, _ = server.request("OPTIONS", "/v1/completions")
    assert status == 204 and headers["Allow"] == "POST, OPTIONS"
    assert "Access-Control-Allow-Origin" not in headers
    assert server.request("GET", "/nothing")[0] == 404
    status, headers, _ = server.request("GET", "/v1/completions")
    assert status == 405 and headers["Allow"] == "POST, OPTIONS"


def test_curl_streams(server):
    done = subprocess.run(
        ["curl", "-sS", "-N", f"{server.url}/v1/completions", "-H", "Content-Type: application/json", "-d",
         json.dumps({"prompt": PROMPT, "max_tokens": 5, "stream": True, "ignore_eos": True})],
        capture_output=True, text=True, check=True, timeout=120)
    assert len(list(http_tools.parse_events(done.stdout))) == 5


def test_a_deployment_without_token_workers_is_alive_and_not_ready_to_answer(launcher, demo_model):
    block = launcher.block(demo_model)
    token = launcher.token(demo_model)
    gateway = http_tools.gateway(launcher, demo_model, [block], [token], "--tier-wait=0s",
                                 "--http-cors-origin=*")
    status, headers, _ = gateway.request("GET", "/ready?scope=deployment")
    assert status == 200 and headers["Access-Control-Allow-Origin"] == "*"
    token.kill()
    harness.wait_until(lambda: gateway.refusal(prompt="a")[0] == 503, "the tier is missed")
    status, headers, _ = gateway.request("POST", "/v1/completions", {"prompt": "a"})
    assert status == 503 and int(headers["Retry-After"]) > 0
    assert gateway.request("GET", "/health")[0] == gateway.request("GET", "/ready")[0] == 200
    harness.wait_until(lambda: gateway.request("GET", "/ready?scope=deployment")[0] == 503,
                       "the last probe is too old, and a new one fails")


def test_a_chat_is_the_text_that_its_format_makes(launcher, chat_model):
    server = http_tools.serve(launcher, chat_model)
    client = launcher.client(server.server)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who are you?"}]
    fields = {"max_tokens": 20, "temperature": 0, "n": 2}
    answer = server.complete("/v1/chat/completions", messages=messages, logprobs=True, top_logprobs=2, **fields)
    text = client.generate("Be kind.\nQ: Who are you?\nA:", alignment="start", stop=["\nQ:"],
                           **fields).choices[0].text
    assert [choice["message"] for choice in answer["choices"]] == [{"role": "assistant", "content": text}] * 2
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"] / 2
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    events = server.events("/v1/chat/completions", messages=messages, **fields)
    assert len(events) == answer["usage"]["completion_tokens"]
    first = [data["choices"][0]["delta"] for _, data in events if data["choices"][0]["index"] == 0]
    assert first[0]["role"] == "assistant" and "role" not in first[1]
    assert "".join(delta["content"] for delta in first) == text
    # The format's own stop strings are on top of those of the request.
    many = {**fields, "messages": messages, "stop": ["zzz"] * 16}
    again = server.complete("/v1/chat/completions", **many)
    assert [choice["message"]["content"] for choice in again["choices"]] == [text] * 2
    for fields, param in [({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
                          ({**many, "stop": ["zzz"] * 17}, "stop"),
                          ({"messages": messages * 513}, "messages"),
                          ({"messages": messages, "logprobs": True, "top_logprobs": 21}, "top_logprobs")]:
        status, error = server.refusal("/v1/chat/completions", **fields)
        assert status == 400 and error["param"] == param


def test_chat_without_a_format_says_what_is_missing(server):
    status, error = server.refusal("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])
    assert status == 400 and error["param"] == "messages" and "chat_format.json" in error["message"]


def test_metrics_are_what_prometheus_reads(server):
    parser = pytest.importorskip("prometheus_client.parser")
    server.complete(prompt="a", max_tokens=2)
    status, headers, text = server.request("GET", "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = list(parser.text_string_to_metric_families(text))
    assert families and all(family.documentation for family in families)
    assert all(family.name.startswith(("blockserve_", "process_")) for family in families)


def test_tls_and_keys_are_those_of_the_grpc_port(launcher, demo_model, tmp_path):
    subprocess.run([harness.ROOT / "scripts" / "make_certificates", tmp_path, "server"], check=True,
                   stdout=subprocess.DEVNULL)
    keys = tmp_path / "api.keys"
    key = subprocess.run([harness.program("blockserve"), "keys", "--name=alice", f"--file={keys}",
                          "--highest-priority=normal"], text=True, capture_output=True, check=True).stdout.strip()
    port = harness.free_port()
    server = launcher.serve(demo_model, f"--http-address=127.0.0.1:{port}", f"--tls-cert={tmp_path}/server.crt",
                            f"--tls-key={tmp_path}/server.key", f"--api-keys={keys}")
    server.wait_for_log("blockserve serves")

    def curl(path, *arguments):
        done = subprocess.run(["curl", "-sS", "--cacert", tmp_path / "ca.crt", "-w", "\n%{http_code}",
                               f"https://127.0.0.1:{port}{path}", *arguments],
                              text=True, capture_output=True, check=True, timeout=60)
        body, status = done.stdout.rsplit("\n", 1)
        return int(status), body

    ask_for = {"prompt": PROMPT, "max_tokens": 4}
    with_key = ["-H", f"Authorization: Bearer {key}", "-d"]
    for path in ("/health", "/ready", "/version", "/"):
        assert curl(path)[0] == 200
    for path in ("/metrics", "/status", "/v1/models", "/tokenizer_info"):
        assert curl(path)[0] == 401 and curl(path, *with_key[:2])[0] == 200
    for path in ("/tokenize", "/detokenize", "/v1/chat/completions"):
        assert curl(path, "-d", "{}")[0] == 401 and curl(path, *with_key, "{}")[0] == 400
    status, body = curl("/v1/completions", "-d", json.dumps(ask_for))
    assert status == 401 and json.loads(body)["error"]["code"] == "invalid_api_key"
    assert curl("/v1/completions", "-H", "Authorization: Bearer bsk_x_y", "-d", json.dumps(ask_for))[0] == 401
    status, body = curl("/v1/completions", *with_key, json.dumps({**ask_for, "stream": True, "ignore_eos": True}))
    assert status == 200 and len(list(http_tools.parse_events(body))) == 4
    assert curl("/v1/completions", *with_key, json.dumps({**ask_for, "priority": "high"}))[0] == 403
    slow = subprocess.run([harness.program("blockserve"), "keys", "--name=bob", f"--file={keys}",
                           "--highest-priority=batch"], text=True, capture_output=True, check=True).stdout.strip()
    with_slow = ["-H", f"Authorization: Bearer {slow}", "-d"]
    harness.wait_until(lambda: curl("/v1/models", *with_slow[:2])[0] == 200, "the new key is known")
    assert curl("/v1/completions", *with_slow, json.dumps(ask_for))[0] == 200, "who names no priority asks for none"
    assert curl("/v1/completions", *with_slow, json.dumps({**ask_for, "priority": "normal"}))[0] == 403
    plain = subprocess.run(["curl", "-sS", f"http://127.0.0.1:{port}/health"], capture_output=True, check=False,
                           timeout=60)
    assert plain.returncode != 0, "nothing is said in plain text"
