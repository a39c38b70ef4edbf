"""API keys and the limits of each, over both ports of real processes; what is secret stays so."""

import http.client
import json
import signal
import ssl
import subprocess

import blockserve
import grpc
import harness
import pytest
from grpc_health.v1 import health_pb2
from secured_tiers import keys_command, put_in_place

PROMPT = {"prompt": "The little dog", "max_tokens": 8, "seed": 1, "temperature": 0.0}


@pytest.mark.parametrize("key", [None, "bsk_00000000_x", "nonsense"])
def test_without_a_key_every_call_is_unauthenticated(secured, pki, key):
    tls = blockserve.Tls(ca=pki.public / "ca.crt")
    with blockserve.Client(secured.gateway.address, tls=tls, api_key=key, timeout=60) as client:
        for call in (lambda: client.generate(**PROMPT), lambda: client.score("text"),
                     lambda: client.tokenize("text"), lambda: client.detokenize([1]), client.model):
            with pytest.raises(blockserve.Error) as caught:
                call()
            assert caught.value.code == grpc.StatusCode.UNAUTHENTICATED


def test_health_needs_no_key(secured, pki):
    credentials = blockserve.Tls(ca=pki.public / "ca.crt").credentials()
    assert harness.health(secured.gateway.address, credentials=credentials) == health_pb2.HealthCheckResponse.SERVING


def test_keys_are_taken_in_and_back_while_it_runs(secured, pki, secured_client):
    made = keys_command("--name=bob", f"--file={secured.keys}", "--highest-priority=normal")
    tls = blockserve.Tls(ca=pki.public / "ca.crt")
    with blockserve.Client(secured.gateway.address, tls=tls, api_key=made.stdout.strip(),
                           timeout=60) as bob:
        def is_let_in():
            try:
                return bool(bob.model())
            except blockserve.Error as error:
                assert error.code == grpc.StatusCode.UNAUTHENTICATED
                return False

        harness.wait_until(is_let_in, "the new key is known")
        with pytest.raises(blockserve.Error) as caught:
            bob.generate(**PROMPT, priority="high")
        assert caught.value.code == grpc.StatusCode.PERMISSION_DENIED
        assert bob.generate(**PROMPT, priority="normal").choices
        lines = secured.keys.read_text().splitlines(keepends=True)
        # A file that is broken for a while changes nothing.
        secured.keys.write_text("".join(lines) + "oops\n")
        harness.wait_until(
            lambda: is_let_in() and "the keys stay as they were" in secured.gateway.log(),
            "the gateway has noticed, and lets the key in")
        secured.keys.write_text(lines[0])
        harness.wait_until(lambda: not is_let_in(), "the key that was taken back is refused")
    assert secured_client.model().name


def test_a_key_is_taken_back_by_a_file_of_the_same_time(secured, pki, tmp_path):
    made = keys_command("--name=carol", f"--file={secured.keys}")
    tls = blockserve.Tls(ca=pki.public / "ca.crt")
    with blockserve.Client(secured.gateway.address, tls=tls, api_key=made.stdout.strip(),
                           timeout=60) as carol:
        wait_until_known(carol)
        lines = secured.keys.read_text().splitlines(keepends=True)
        (tmp_path / "keys").write_text("".join(lines[:-1]))
        put_in_place(tmp_path / "keys", secured.keys)

        def is_refused():
            try:
                return not carol.model()
            except blockserve.Error as error:
                return error.code == grpc.StatusCode.UNAUTHENTICATED

        harness.wait_until(is_refused, "the key that was taken back is refused", limit_s=30)


def call_http(secured, pki, key, method, path, body=None):
    """(status, headers, body) of a call with this key."""
    context = ssl.create_default_context(cafile=str(pki.public / "ca.crt"))
    connection = http.client.HTTPSConnection("127.0.0.1", secured.http_port, context=context, timeout=60)
    connection.request(method, path, body and json.dumps(body), {"Authorization": f"Bearer {key}"})
    response = connection.getresponse()
    return response.status, response.headers, json.loads(response.read())


def wait_until_known(client):
    def known():
        try:
            return bool(client.model())
        except blockserve.Error:
            return False

    harness.wait_until(known, "the new key is known")


@pytest.mark.parametrize("limit, code", [
    ("--max-requests=1", "requests are in flight, the most allowed"),
    ("--max-tokens=40", "tokens are in flight, of 40 allowed"),
    ("--requests-per-second=0.001", "more than 0.001 requests in a second")])
def test_limits_of_a_key_hold_over_both_ports(secured, pki, limit, code):
    name = limit.split("=")[0].strip("-")
    key = keys_command(f"--name={name}", f"--file={secured.keys}", limit).stdout.strip()
    tls = blockserve.Tls(ca=pki.public / "ca.crt")

    def post(max_tokens):
        return call_http(secured, pki, key, "POST", "/v1/completions",
                         {"prompt": "A", "max_tokens": max_tokens, "ignore_eos": True})

    with blockserve.Client(secured.gateway.address, tls=tls, api_key=key, timeout=60,
                           retries=0) as limited:
        wait_until_known(limited)
        # While it runs (and, of the rate, also afterwards), nothing more of this key is taken.
        secured.token.process.send_signal(signal.SIGSTOP)
        try:
            stream = limited.stream("Once", max_tokens=30, ignore_eos=True)
            next(iter(stream))
            answers = [post(20)]
            with pytest.raises(blockserve.Error) as caught:
                limited.generate("A", max_tokens=20, ignore_eos=True)
        finally:
            secured.token.process.send_signal(signal.SIGCONT)
        list(stream)
    status, headers, body = answers[0]
    assert status == 429 and 1 <= int(headers["Retry-After"]) <= 60
    assert body["error"]["type"] == "rate_limit_error" and code in body["error"]["message"]
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED and code in str(caught.value)
    if limit.startswith("--max"):
        harness.wait_until(lambda: post(20)[0] == 200, "the place is free again")


def test_whatever_costs_work_counts_for_the_rate_of_a_key(secured, pki):
    """Bad requests and tokenizing too, over both ports; what tells of the deployment is free."""
    key = keys_command("--name=frugal", f"--file={secured.keys}", "--requests-per-second=0.001",
                       "--burst=7").stdout.strip()

    def post(path, **body):
        return call_http(secured, pki, key, "POST", path, body)

    tls = blockserve.Tls(ca=pki.public / "ca.crt")
    with blockserve.Client(secured.gateway.address, tls=tls, api_key=key, timeout=60,
                           retries=0) as limited:
        wait_until_known(limited)
        grpc_calls = [(lambda: limited.generate("A", max_tokens=-1), "max_tokens"),
                      (lambda: limited.score([10**9]), "continuation"),
                      (lambda: limited.tokenize("A dog"), None)]
        http_calls = [("/v1/completions", {"prompt": "A", "n": 0}, 400), ("/tokenize", {"prompt": 7}, 400),
                      ("/detokenize", {"tokens": [5, 6]}, 200),
                      ("/v1/completions", {"prompt": "A dog", "echo": True, "max_tokens": 0}, 200)]
        for call, refused in grpc_calls:
            if refused is None:
                assert call()
            else:
                with pytest.raises(blockserve.Error, match=refused):
                    call()
        for path, body, status in http_calls:
            assert post(path, **body)[0] == status
        for call, _ in grpc_calls:
            with pytest.raises(blockserve.Error, match="more than 0.001 requests in a second") as caught:
                call()
            assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED and caught.value.retry_after == 60
        for path, body, _ in http_calls:
            status, headers, answer = post(path, **body)
            assert status == 429 and headers["Retry-After"] == "60", answer
            assert answer["error"]["type"] == "rate_limit_error"
        assert limited.model()
        for path in ("/v1/models", "/health", "/status", "/tokenizer_info"):
            assert call_http(secured, pki, key, "GET", path)[0] == 200


def test_nothing_secret_is_logged(secured, secured_client):
    secured_client.generate("a prompt nobody else should read", max_tokens=2, request_id="the-request")
    secured.gateway.wait_for_log("the-request")
    for server in (secured.gateway, secured.block, secured.token):
        log = server.log()
        assert "nobody else should read" not in log and secured.key not in log
        assert secured.key.split("_", 2)[2] not in secured.keys.read_text()


def test_a_key_gets_a_line_of_its_own(tmp_path):
    keys = tmp_path / "api.keys"
    keys.write_text("# ours")
    for name in ("alice", "bob"):
        keys_command(f"--name={name}", f"--file={keys}")
    lines = keys.read_text().splitlines()
    assert lines[0] == "# ours" and [json.loads(line)["name"] for line in lines[1:]] == ["alice", "bob"]


def test_no_key_is_put_where_no_server_would_take_it(tmp_path):
    keys = tmp_path / "api.keys"
    keys.write_text("# ours\nnot a key\n")
    done = keys_command("--name=alice", f"--file={keys}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"blockserve keys: --file {keys}: line 2: not valid JSON (column 2 of 9 bytes)\n"
    assert keys.read_text() == "# ours\nnot a key\n"


def test_a_key_that_nobody_was_told_is_not_in_the_file(tmp_path):
    keys = tmp_path / "api.keys"
    with open("/dev/full", "w") as full:
        done = subprocess.run([harness.program("blockserve"), "keys", "--name=alice", f"--file={keys}"], stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr == "blockserve keys: standard output cannot be written\n"
    assert not keys.exists()


def test_a_file_of_keys_that_cannot_be_used_is_named(demo_model, tmp_path):
    (tmp_path / "keys").write_text("# ours\nnot a key\n")
    done = subprocess.run(
        [harness.program("blockserve"), "serve", f"--model={demo_model}", "--grpc-address=127.0.0.1:0",
         f"--api-keys={tmp_path}/keys"], text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"blockserve serve: --api-keys {tmp_path}/keys: line 2: not valid JSON (column 2 of 9 bytes)")
