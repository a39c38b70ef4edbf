"""Each limit of the HTTP front, crossed; clients that do not read, leave, or only wait."""

import contextlib
import http.client
import json
import pathlib
import re
import resource
import select
import socket
import time

import grpc
import harness
import http_tools
import pytest
from blockserve.v1 import generation_pb2, generation_pb2_grpc
from prometheus_client import parser

LIMITS = ["--http-max-header-bytes=2048", "--http-max-body-bytes=4096", "--http-header-timeout=500ms",
          "--http-body-timeout=500ms", "--http-write-timeout=500ms", "--http-max-connections=1100",
          "--http-threads=2"]
CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG = {"prompt": "Once", "ignore_eos": True, "max_tokens": 1500, "stream": True, "seed": 1}


@pytest.fixture(scope="module")
def server(launcher, demo_model):
    block = launcher.block(demo_model)
    token = launcher.token(demo_model)
    return http_tools.gateway(launcher, demo_model, [block], [token], *LIMITS)


def status_of(server):
    return server.request("GET", "/status")[2]


def ask_raw(server, data):
    with server.connect() as connection:
        connection.sendall(data)
        status, headers, _ = http_tools.read_response(connection)
        return status, headers, http_tools.read_to_end(connection)


@pytest.mark.parametrize("data, status", [
    (b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 4096 + b"\r\n\r\n", 431),
    (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n" + b"a" * 5000, 413),
    (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1400\r\n" + b"a" * 5120, 413),
    (CHUNKED + b"0\r\nX: " + b"a" * 70000 + b"\r\n\r\n", 431),
    (CHUNKED + b"1;" + b"a" * 70000, 431),
    (b"GET /health HTTP/1.1\r\nHo", 408),
    (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{", 408),
    (b"nonsense\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\n\r\n", 400),
    (b"GET /health HTTP/4.2\r\nHost: a\r\n\r\n", 505),
])
def test_a_request_beyond_a_limit_is_told_and_cut_off(server, data, status):
    answered, headers, rest = ask_raw(server, data)
    assert answered == status and headers["connection"] == "close" and rest == b""
    assert server.request("GET", "/health")[0] == 200


@pytest.mark.parametrize("head, status", [
    (b"POST /nope HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n", 404),
    (b"PUT /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 405),
    (b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n", 405),
    (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nContent-Encoding: gzip\r\n\r\n", 415),
])
def test_what_the_head_decides_does_not_wait_for_the_body(server, head, status):
    answered, headers, rest = ask_raw(server, head)
    assert answered == status and headers["connection"] == "close" and rest == b""


@pytest.fixture(scope="module")
def impatient(launcher):
    return http_tools.serve(launcher, harness.GOLDEN / "concat_l4", "--http-idle-timeout=200ms",
                            "--http-header-timeout=200ms", "--http-body-timeout=200ms")


@pytest.mark.parametrize("before", [0, 1])
def test_a_connection_that_asks_for_nothing_is_closed_without_a_word(impatient, before):
    with impatient.connect() as connection:
        for _ in range(before):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert http_tools.read_response(connection)[0] == 200
        assert http_tools.read_to_end(connection) == b""


@pytest.mark.parametrize("begin, piece", [
    (b"GET /health HTTP/1.1\r\n", b"X: a\r\n"),
    (b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n", b" "),
    (b"POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
])
def test_a_request_that_trickles_in_gains_no_time(impatient, begin, piece):
    with impatient.connect() as connection:
        connection.sendall(begin)
        connection.settimeout(0.02)
        answer = b""
        for _ in range(3000):
            connection.sendall(piece)
            try:
                answer = connection.recv(1000)
                break
            except socket.timeout:
                pass
        assert answer.startswith(b"HTTP/1.1 408")


def test_a_connection_serves_one_request_after_the_other(server):
    with server.connect() as connection:
        for index in range(20):
            connection.sendall(http_tools.post("/v1/completions", {"prompt": "a", "max_tokens": 1 + index % 3}))
            status, headers, _ = http_tools.read_response(connection)
            assert status == 200
            assert headers["connection"] == "keep-alive" and headers["keep-alive"] == "timeout=120"


def test_of_an_idle_time_without_end_clients_are_told_nothing(launcher):
    server = http_tools.serve(launcher, harness.GOLDEN / "concat_l4", "--http-idle-timeout=inf")
    with server.connect() as connection:
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            status, headers, _ = http_tools.read_response(connection)
            assert status == 200 and "keep-alive" not in headers and "connection" not in headers


def test_an_idle_connection_stays_for_longer_than_its_client_is_told(launcher):
    """A request that is sent at the very end of what was told arrives later."""
    server = http_tools.serve(launcher, harness.GOLDEN / "concat_l4", "--http-idle-timeout=1s")
    with server.connect() as connection:
        asked = time.monotonic()
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert http_tools.read_response(connection)[1]["keep-alive"] == "timeout=1"
        assert http_tools.read_to_end(connection) == b""
        assert time.monotonic() - asked > 2


def test_a_request_sent_before_the_answer_to_the_last_one_is_not_taken(server):
    request = http_tools.post("/v1/completions", {"prompt": "a", "max_tokens": 2})
    status, headers, rest = ask_raw(server, request + request)
    assert status == 200 and headers["connection"] == "close" and rest == b""


def test_chunked_bodies_and_expected_continues_are_read(server):
    with server.connect() as connection:
        body = b'{"prompt":"a","max_tokens":1}'
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
                           b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for byte in body:
            connection.sendall(b"1\r\n" + bytes([byte]) + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert http_tools.read_response(connection)[0] == 200


def test_http_1_0_gets_a_stream_that_ends_with_the_connection(server):
    with server.connect() as connection:
        request = http_tools.post("/v1/completions", {**LONG, "max_tokens": 5}).replace(b"HTTP/1.1", b"HTTP/1.0")
        connection.sendall(request)
        head, _, text = http_tools.read_to_end(connection).partition(b"\r\n\r\n")
        assert b"chunked" not in head and b"Connection: close" in head
        assert len(list(http_tools.parse_events(text.decode()))) == 5


def nothing_is_held(server):
    status = status_of(server)
    return (status["live_requests"] == 0
            and all(worker["sequences"] == 0 for worker in status["block"])
            and all(worker["in_flight"] == 0 for worker in status["token"]))


def test_a_client_that_leaves_frees_what_it_held(server):
    for stream in (True, False):
        with server.connect() as connection:
            connection.sendall(http_tools.post("/v1/completions", {**LONG, "stream": stream, "n": 4}))
            if stream:
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            harness.wait_until(lambda: status_of(server)["block"][0]["sequences"] > 0, "its sequences are held")
        harness.wait_until(lambda: nothing_is_held(server), "everything of the request is given up")
    server.server.wait_for_log(": 499, the client has closed", 2)


def timer_of(port, peer_port):
    """What the kernel waits for at the `port` end of a connection (proc_net_tcp.txt); None: there is none."""
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in pathlib.Path(path).read_text().splitlines()[1:]:
            _, local, remote, _, _, timer, *_ = line.split()
            if [int(address.split(":")[1], 16) for address in (local, remote)] == [port, peer_port]:
                return timer.split(":")[0]
    return None


def test_a_client_that_waits_is_asked_whether_it_is_there(server):
    """Else the work of one whose network has gone without a word would be done to its end."""
    with server.connect() as connection:
        # Linux shows this end's timer at once; gVisor's kernel shows none.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if timer_of(connection.getsockname()[1], server.port) != "02":
            pytest.skip("/proc/net/tcp does not tell of keepalive timers here")
        harness.wait_until(lambda: timer_of(server.port, connection.getsockname()[1]) == "02",
                           "the keepalive timer runs")


@pytest.fixture(scope="module")
def roomy(launcher, demo_model):
    """Takes long bodies, which are read beside the connections' thread."""
    return http_tools.serve(launcher, demo_model, "--http-threads=1")


def test_a_long_body_is_read_like_a_short_one(roomy, launcher):
    client = launcher.client(roomy.server)
    text = "Once upon a time there was a little dog. " * 1000
    _, _, answer = roomy.request("POST", "/tokenize", {"prompt": text})
    assert answer["tokens"] == client.tokenize(text)
    assert roomy.request("POST", "/detokenize", {"tokens": answer["tokens"]})[2]["prompt"] == text
    # Many prompts in one body, and each by itself.
    prompts = [f"{i} dogs. " + "The little dog went to the garden. " * 10 for i in range(100)]
    fields = {"max_tokens": 4, "temperature": 0}
    assert len(str(prompts)) > 20_000
    choices = roomy.complete(prompt=prompts, **fields)["choices"]
    assert [choice["text"] for choice in choices[:3]] == [
        roomy.complete(prompt=prompt, **fields)["choices"][0]["text"] for prompt in prompts[:3]]
    for fields, param in [({"prompt": text * 20}, "prompt"), ({"prompt": text, "n": 0}, "n"),
                          ({"prompt": [text, 7]}, "prompt")]:
        status, error = roomy.refusal(**fields)
        assert status == 400 and error["param"] == param
    status, headers, _ = roomy.request("POST", "/v1/completions", {"prompt": text, "n": 0}, {"X-Request-Id": "mine"})
    assert status == 400 and headers["X-Request-Id"] == "mine"


def test_a_connection_goes_on_after_a_long_body(roomy):
    with roomy.connect() as connection:
        for text in ("a dog " * 5000, "a dog", "a dog " * 5000):
            connection.sendall(http_tools.post("/tokenize", {"prompt": text}))
            status, _, body = http_tools.read_response(connection)
            assert status == 200 and len(json.loads(body)["tokens"]) >= 2


def test_long_bodies_on_their_way_share_a_room_and_short_ones_come_in(roomy):
    length = 4 << 20
    head = b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length
    with contextlib.ExitStack() as stack:
        connections = []
        for size in [length - 1] * 64 + [3 << 19] * 4:  # the room is that of 64 whole ones
            connections.append(stack.enter_context(roomy.connect()))
            with contextlib.suppress(ConnectionError):  # it may have been refused already
                connections[-1].sendall(head + b" " * size)
        answers = []
        for connection in select.select(connections, [], [], 30)[0]:
            with contextlib.suppress(ConnectionError):  # of one that was refused, and had more to send
                answers.append(http_tools.read_response(connection))
        assert answers
        for status, headers, _ in answers:
            assert (status, headers["retry-after"], headers["connection"]) == (503, "2", "close")
        assert roomy.complete(prompt="Once", max_tokens=2)["choices"]
    harness.wait_until(lambda: roomy.request("POST", "/tokenize", {"prompt": "a" * 4_000_000})[0] == 200,
                       "there is room again")


LONG_ANSWER = {"prompt": [" frightened" * 4000] * 20, "n": 36, "max_tokens": 0, "echo": True}  # of 30 MiB


@pytest.fixture(scope="module")
def patient(launcher, demo_model):
    return http_tools.serve(launcher, demo_model, "--http-write-timeout=1h", "--http-idle-timeout=1h")


def test_an_idle_connection_does_not_keep_the_memory_of_its_last_answer(patient):
    def resident_mib():
        families = parser.text_string_to_metric_families(patient.request("GET", "/metrics")[2])
        return next(sample.value for family in families for sample in family.samples
                    if sample.name == "process_resident_memory_bytes") / 2**20

    before = resident_mib()
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            connection = http.client.HTTPConnection("127.0.0.1", patient.port, timeout=300)
            stack.callback(connection.close)
            connection.request("POST", "/v1/completions", json.dumps(LONG_ANSWER))
            assert len(connection.getresponse().read()) > 30 << 20
        harness.wait_until(lambda: resident_mib() < before + 6 * 30, "the memory is given back")


@pytest.mark.parametrize("stream", [False, True])
def test_answers_that_nobody_reads_share_a_room(patient, stream):
    asked = http_tools.post("/v1/completions", {**LONG_ANSWER, "stream": stream})
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.socket()) for _ in range(24)]  # the room is that of 17
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", patient.port))
            connection.settimeout(300)
            connection.sendall(asked)
        begun = [connection.recv(12) for connection in connections]
        refused = b"" if stream else b"HTTP/1.1 503"
        assert set(begun) == {b"HTTP/1.1 200", refused}
        assert patient.complete(prompt="Once", max_tokens=2)["choices"]
    harness.wait_until(lambda: patient.request("POST", "/v1/completions", LONG_ANSWER)[0] == 200,
                       "there is room again")


def cancelled(server, method):
    families = parser.text_string_to_metric_families(server.request("GET", "/metrics")[2])
    return next(sample.value for family in families for sample in family.samples
                if sample.name == "blockserve_gateway_requests_total"
                and sample.labels == {"method": method, "outcome": "cancelled"})


def test_nothing_is_done_for_a_client_that_leaves_while_its_body_is_read(roomy):
    before = [cancelled(roomy, method) for method in ("tokenize", "generate")]
    body = {"prompt": ["Once upon a time there was a little dog. " * 20] * 100, "ignore_eos": True,
            "max_tokens": 500}
    def send_and_leave(path, fields):
        with roomy.connect() as connection:
            connection.sendall(http_tools.post(path, fields))

    def one_that_waited_is_given_up():
        # The second waits behind the first, unless the machine had no time for this client.
        for _ in range(2):
            send_and_leave("/tokenize", {"prompt": "the" * 1_300_000})
        return cancelled(roomy, "tokenize") > before[0]

    harness.wait_until(one_that_waited_is_given_up, "a text that waited is given up")
    send_and_leave("/v1/completions", body)
    harness.wait_until(lambda: cancelled(roomy, "generate") > before[1], "the completion is given up")
    harness.wait_until(lambda: nothing_is_held(roomy), "nothing is held")
    assert roomy.complete(prompt="Once", max_tokens=2)["choices"]


def test_a_grpc_call_that_is_given_up_while_its_text_waits_is_not_answered(roomy):
    before = cancelled(roomy, "tokenize")
    with grpc.insecure_channel(roomy.server.address) as channel:
        request = generation_pb2.TokenizeRequest(text="the" * 1_300_000)
        stub = generation_pb2_grpc.GenerationStub(channel)

        def one_that_waited_is_given_up():
            calls = [stub.Tokenize.future(request, timeout=120) for _ in range(4)]
            assert len(calls[0].result().tokens) > 100_000
            for call in calls[1:]:
                call.cancel()
            return cancelled(roomy, "tokenize") > before

        harness.wait_until(one_that_waited_is_given_up, "one that waited is given up")
    assert roomy.complete(prompt="Once", max_tokens=2)["choices"]


def test_a_server_ends_while_long_bodies_wait(launcher, demo_model):
    server = http_tools.serve(launcher, demo_model, "--drain-time=1ms")
    connections = [server.connect() for _ in range(8)]
    for connection in connections:
        connection.sendall(http_tools.post("/tokenize", {"prompt": "the" * 1_300_000}))
    assert server.request("GET", "/health")[0] == 200
    server.server.stop()
    for connection in connections:
        connection.close()


def test_a_client_that_does_not_read_stops_the_work_and_is_cut_off(server):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(60)
        # Enough to fill what the network holds many times over.
        connection.sendall(http_tools.post("/v1/completions", {**LONG, "n": 16, "logprobs": 5}))
        server.server.wait_for_log("does not read")
        harness.wait_until(lambda: nothing_is_held(server), "everything of the request is given up")
        events = http_tools.read_to_end(connection).count(b"data: {")
    assert 0 < events < 16 * 1500, "the rest was never written"


def test_a_stream_that_is_read_slowly_is_whole(server):
    whole = server.complete(prompt="Once", ignore_eos=True, max_tokens=300, seed=1, logprobs=5)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(60)
        connection.sendall(http_tools.post("/v1/completions", {**LONG, "max_tokens": 300, "logprobs": 5},
                                           "Connection: close"))
        data = b""
        while piece := connection.recv(512):
            data += piece
    text = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", data.partition(b"\r\n\r\n")[2].partition(b"\r\n")[2] + b"\r\n")
    text = text.removesuffix(b"\r\n").removesuffix(b"0\r\n").decode()
    tokens = "".join(data["choices"][0]["text"] for _, data in http_tools.parse_events(
        text[:text.index("data: [DONE]") + len("data: [DONE]\n\n")]))
    assert tokens == whole["choices"][0]["text"]


def test_a_thousand_idle_connections_are_in_nobodys_way_and_one_too_many_is_told(server):
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(1000)]
        for connection in idle[::100]:
            connection.sendall(http_tools.post("/v1/completions", {"prompt": "a", "max_tokens": 2}))
            assert http_tools.read_response(connection)[0] == 200
        assert server.complete(prompt="a", max_tokens=4)["usage"]["completion_tokens"] == 4
        more = [stack.enter_context(server.connect()) for _ in range(120)]
        statuses = set()
        for connection in more[-10:]:
            status, headers, _ = http_tools.read_response(connection)
            statuses.add((status, "retry-after" in headers))
        assert statuses == {(503, True)}
    harness.wait_until(lambda: try_health(server), "connections are free again")


def test_beyond_the_limit_sixty_four_connections_are_told_and_the_others_cut(launcher):
    server = http_tools.serve(launcher, harness.GOLDEN / "concat_l4", "--http-max-connections=2")
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(server.connect()) for _ in range(2)]
        told = 0

        def some_are_cut():
            nonlocal told
            answers = [http_tools.read_to_end(connection) for connection in
                       [stack.enter_context(server.connect()) for _ in range(80)]]
            assert all(answer[:13] in (b"", b"HTTP/1.1 503 ") for answer in answers)
            told += sum(map(bool, answers))
            return not all(answers)

        harness.wait_until(some_are_cut, "connections are cut without a word")
        assert told >= 64
        for connection in held:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert http_tools.read_response(connection)[0] == 200
    harness.wait_until(lambda: try_health(server), "connections are free again")


def test_without_free_descriptors_connections_wait_and_the_log_is_not_filled(launcher):
    server = http_tools.serve(launcher, harness.GOLDEN / "concat_l4")
    process = server.server.process.pid
    before = resource.prlimit(process, resource.RLIMIT_NOFILE)
    resource.prlimit(process, resource.RLIMIT_NOFILE, (3, before[1]))
    with server.connect() as connection:
        server.server.wait_for_log('accepting an HTTP connection: Too many open files left_out="the next ones')
        resource.prlimit(process, resource.RLIMIT_NOFILE, before)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert http_tools.read_response(connection)[0] == 200


def try_health(server):
    try:
        return server.request("GET", "/health")[0] == 200
    except OSError:
        return False
