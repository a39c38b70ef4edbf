"""blockserve-load and blockserve-simulate as programs: what they print, write and exit with."""

import contextlib
import http.server
import json
import re
import socket
import ssl
import subprocess
import threading

import harness
import pytest
from scraping import scrape
from secured_tiers import make_certificates

SHORT = ["--prompt-tokens=uniform:2:9", "--output-tokens=uniform:3:11", "--noprogress"]


def load(*arguments: str, status: int = 0) -> subprocess.CompletedProcess:
    ran = subprocess.run([harness.program("blockserve-load"), *arguments], capture_output=True,
                         text=True, timeout=100, check=False)
    assert ran.returncode == status, f"{ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return ran


def result_of(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def consecutive_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    while True:
        first = harness.free_port()
        probes = []
        try:
            for port in range(first, first + count):
                probes.append(socket.create_server(("127.0.0.1", port)))
            return first
        except (OSError, OverflowError):
            continue
        finally:
            for probe in probes:
                probe.close()


@pytest.fixture(scope="module")
def server(launcher):
    model = harness.GOLDEN / "concat_l4"
    return launcher.serve(model, "--arithmetic=f32").wait_until_ready()


def test_a_closed_loop_measures_every_request_and_checks_it(server, tmp_path):
    out = tmp_path / "a.json"
    load(f"--grpc={server.address}", "--concurrency=4", "--requests=24", "--n=2", f"--json={out}",
         f"--csv={tmp_path / 'a.csv'}", f"--html={tmp_path / 'a.html'}",
         "--objectives=ttft=1h,itl=1h,e2e=1h", *SHORT)
    result = result_of(out)
    assert result["requests"] == {"measured": 24, "ok": 24, "failed": 0, "good": 24,
                                  "shortened": 0}
    assert result["usage_check"] == {"checked": 24, "wrong": 0}
    assert result["target"]["block_length"] == 4 and result["errors"] == {}
    assert result["latency"]["ttft_ms"]["count"] == result["latency"]["e2e_ms"]["count"] == 24
    assert result["tokens"]["output"] == result["window"]["output_tokens"] > 24 * 2 * 3
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert len(lines) == 25 and all(line.endswith(",OK") for line in lines[1:])
    assert "<svg" in (tmp_path / "a.html").read_text()


def test_requests_spread_over_several_gateways(launcher, tmp_path):
    servers = [launcher.serve(harness.GOLDEN / "concat_l4", "--arithmetic=f32",
                              "--metrics-listen=127.0.0.1:0") for _ in range(2)]
    addresses = ",".join(server.wait_until_ready().address for server in servers)
    out = tmp_path / "two.json"
    load(f"--grpc={addresses}", "--concurrency=3", "--requests=24", "--max-failed=0",
         f"--json={out}", *SHORT)
    result = result_of(out)
    assert result["requests"]["ok"] == 24 and result["target"]["address"] == addresses
    for server in servers:
        assert scrape(server).value("blockserve_gateway_requests_total", method="generate",
                                    outcome="ok") == 12
    # Each of them is asked before anything is measured.
    dead = f"127.0.0.1:{harness.free_port()}"
    refused = load(f"--grpc={servers[0].address},{dead}", "--concurrency=1", "--requests=1",
                   status=1)
    assert dead in refused.stderr


def test_the_same_requests_have_the_same_answers_whatever_the_load(server, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    asked = [f"--grpc={server.address}", "--requests=20", *SHORT]
    load(*asked, "--concurrency=1", f"--json={one}")
    load(*asked, "--rate=500", "--threads=2", f"--json={two}")
    assert result_of(one)["output_hash"] == result_of(two)["output_hash"]
    larger = tmp_path / "larger.json"
    load(*asked, "--concurrency=4", "--stream-interval=7", f"--json={larger}")
    assert result_of(larger)["output_hash"] == result_of(one)["output_hash"]
    compared = load("--compare", str(one), str(two)).stdout
    assert "output tokens/s" in compared and "differs: loop" in compared
    assert "the answers are the same, token for token" in compared
    merged = tmp_path / "merged.json"
    load("--merge", str(one), str(two), f"--json={merged}")
    assert result_of(merged)["requests"]["ok"] == 40


def test_over_http_events_are_counted_against_usage(launcher, tmp_path):
    """One event per token; refusals and wrong answers would be failures."""
    help_text = subprocess.run([harness.program("blockserve"), "serve", "--help"],
                               capture_output=True, text=True, check=True).stdout
    if "--http-address" not in help_text:
        pytest.skip("this build of blockserve has no HTTP front")
    port, out = harness.free_port(), tmp_path / "http.json"
    launcher.serve(harness.GOLDEN / "concat_l4", "--arithmetic=f32",
                   f"--http-address=127.0.0.1:{port}").wait_until_ready()
    for more in ([], ["--stream-interval=6"]):
        load(f"--http=http://127.0.0.1:{port}/v1", "--concurrency=4", "--requests=20", "--n=2",
             f"--json={out}", "--max-failed=0", "--prompt-tokens=uniform:2:9",
             "--output-tokens=uniform:3:30", "--noprogress", *more)
        result = result_of(out)
        assert result["usage_check"] == {"checked": 20, "wrong": 0}
        assert result["target"]["protocol"] == "http"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_salt_keeps_the_cache_of_other_runs_out(launcher, tmp_path, protocol):
    port, out = harness.free_port(), tmp_path / "out.json"
    server = launcher.serve(harness.GOLDEN / "concat_l4", "--arithmetic=f32",
                            f"--http-address=127.0.0.1:{port}").wait_until_ready()
    target = f"--grpc={server.address}" if protocol == "grpc" else f"--http=http://127.0.0.1:{port}/v1"

    def cached(*flags):
        load(target, "--concurrency=1", "--requests=1", "--prompt-tokens=120", "--output-tokens=4",
             f"--json={out}", "--noprogress", "--max-failed=0", *flags)
        return result_of(out)["tokens"]["cached_prompt"]

    runs = [["--cache-salt=a"], ["--cache-salt=a"], ["--cache-salt=b"], []]
    assert [cached(*flags) > 0 for flags in runs] == [False, True, False, False]
    bad = subprocess.run([harness.program("blockserve-load"), target, "--concurrency=1", b"--cache-salt=\xff"],
                         capture_output=True, check=False)
    assert bad.returncode == 2 and b"--cache-salt is not valid UTF-8" in bad.stderr


def test_a_key_that_cannot_be_read_is_told(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        bad = subprocess.run([harness.program("blockserve-load"), "--grpc=127.0.0.1:1", "--concurrency=1",
                              f"--api-key-file={path}"], capture_output=True, text=True, check=False)
        assert bad.returncode == 2 and f"--api-key-file: {path} cannot be read" in bad.stderr


@pytest.fixture
def strange_server():
    """Its address. What it answers to a completion is told by the request's path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/no-utf8":
                body = bytes(range(128, 256))
                self.send_response(500)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            with contextlib.suppress(OSError):  # until the client has had enough
                while True:
                    self.wfile.write(b"x" * 65536)

        def log_message(self, *unused):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_answer_that_is_no_text_does_not_cost_the_result(strange_server, tmp_path):
    out = tmp_path / "out.json"
    load(f"--http={strange_server}/no-utf8", "--model=m", "--concurrency=1", "--requests=2",
         f"--json={out}", *SHORT, status=1)
    result = result_of(out)
    assert result["errors"] == {"HTTP 500": 2}
    assert result["error_examples"]["HTTP 500"].startswith(r"\x80\x81")


def test_a_server_that_never_stops_sending_is_left_at_the_deadline(strange_server, tmp_path):
    out = tmp_path / "out.json"
    load(f"--http={strange_server}/flood", "--model=m", "--concurrency=1", "--requests=1",
         "--timeout=1s", f"--json={out}", *SHORT, status=1)
    assert result_of(out)["errors"] == {"TIMEOUT": 1}


def test_a_prompt_that_is_no_text_is_told_by_its_line(tmp_path):
    (tmp_path / "prompts").write_bytes(b"good\nb\xe4d\n")
    error = load("--http=127.0.0.1:1", "--concurrency=1", f"--prompts={tmp_path / 'prompts'}",
                 status=2).stderr
    assert "prompts:2: is not valid UTF-8" in error


def test_a_trace_is_played_with_its_lengths(server, tmp_path):
    trace, out = tmp_path / "trace.csv", tmp_path / "out.csv"
    trace.write_text("arrival_s,prompt,output\n0,3,5\n0.01,4,6\n0.02,5,7\n")
    load(f"--grpc={server.address}", f"--trace={trace}", f"--csv={out}", "--noprogress")
    rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
    assert [(row[5], row[6]) for row in rows] == [("3", "5"), ("4", "6"), ("5", "7")]
    load(f"--grpc={server.address}", f"--trace={trace}", "--warmup=5ms", f"--csv={out}", "--noprogress")
    rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
    assert [(row[5], row[6]) for row in rows] == [("4", "6"), ("5", "7")]


def test_a_sweep_draws_its_curve(server, tmp_path):
    out, page = tmp_path / "sweep.json", tmp_path / "sweep.html"
    load(f"--grpc={server.address}", "--sweep=concurrency:1,2,4", "--requests=8", f"--json={out}",
         f"--html={page}", *SHORT)
    sweep = result_of(out)
    assert [point["offered"] for point in sweep["points"]] == [1, 2, 4]
    assert all(point["result"]["requests"]["ok"] == 8 for point in sweep["points"])
    assert page.read_text().count("<svg") == 2


def test_points_of_a_sweep_find_nothing_of_each_other_in_the_cache(server, tmp_path):
    out = tmp_path / "sweep.json"
    load(f"--grpc={server.address}", "--sweep=concurrency:1,2", "--requests=2", "--prompt-tokens=120",
         "--output-tokens=2", f"--json={out}", "--noprogress")
    assert [point["result"]["tokens"]["cached_prompt"] for point in result_of(out)["points"]] == [0, 0]


def event_of(token: int) -> bytes:
    choice = {"index": 0, "text": "x", "token_ids": [token], "finish_reason": "length" if token == 3 else None}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


END_OF_STREAM = (b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}\n\n'
                 b"data: [DONE]\n\n")
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def read_request(connection) -> bool:
    received = b""
    while b"\r\n\r\n" not in received:
        received += (more := connection.recv(65536))
        if not more:
            return False
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
    while len(body) < length:
        body += connection.recv(65536)
    return True


def as_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_an_event_is_counted_when_it_comes_and_not_when_the_next_does(tmp_path):
    out = tmp_path / "out.json"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ran = subprocess.Popen(
            [harness.program("blockserve-load"), f"--http=127.0.0.1:{listener.getsockname()[1]}", "--model=m",
             "--concurrency=1", "--requests=1", "--prompt-tokens=3", "--output-tokens=4", "--stream-interval=1",
             "--timeout=60s", f"--json={out}", "--max-failed=0"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True)
        with listener.accept()[0] as connection:
            read_request(connection)
            connection.sendall(CHUNKED + as_chunk(event_of(0)))
            # It is told while nothing else has come.
            told = next((line for line in ran.stderr if " 1 tokens/s" in line), None)
            for token in (1, 2, 3):
                connection.sendall(as_chunk(event_of(token)))
            connection.sendall(as_chunk(END_OF_STREAM) + as_chunk(b""))
            rest = ran.communicate(timeout=100)[1]
    assert told is not None and ran.returncode == 0, rest
    assert result_of(out)["tokens"]["output"] == 4


def test_an_idle_connection_that_its_server_closed_costs_no_request_under_tls(tmp_path):
    make_certificates(tmp_path, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    out = tmp_path / "out.json"
    connections = []

    def serve(listener):
        """An answer on each connection: the next request on it is not answered, and no TLS alert is sent."""
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as connection, contextlib.suppress(OSError):
                    connections.append(connection)
                    secured = context.wrap_socket(connection, server_side=True)
                    read_request(secured)
                    answer = b"".join(event_of(token) for token in range(4)) + END_OF_STREAM
                    secured.sendall(CHUNKED + as_chunk(answer) + as_chunk(b""))
                    read_request(secured)
                    socket.socket(fileno=secured.detach()).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        load(f"--http=https://localhost:{listener.getsockname()[1]}", f"--tls-ca={tmp_path}/ca.crt", "--model=m",
             "--concurrency=1", "--requests=3", "--prompt-tokens=3", "--output-tokens=4", "--stream-interval=1",
             f"--json={out}", "--max-failed=0", "--noprogress")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert result_of(out)["requests"]["ok"] == 3 and len(connections) == 3


def test_an_address_of_ipv6_is_in_brackets(launcher, tmp_path):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
            port = probe.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no IPv6")
    launcher.serve(harness.GOLDEN / "concat_l4", "--arithmetic=f32",
                   f"--http-address=[::1]:{port}").wait_until_ready()
    out = tmp_path / "out.json"
    load(f"--http=http://[::1]:{port}", "--concurrency=1", "--requests=1", f"--json={out}", "--max-failed=0", *SHORT)
    assert result_of(out)["target"]["address"] == f"[::1]:{port}"


def test_bad_usage_exits_2_and_failure_1(server, tmp_path):
    nowhere = f"127.0.0.1:{harness.free_port()}"
    trace, prompts = tmp_path / "trace.csv", tmp_path / "prompts.txt"
    trace.write_text("arrival_s,prompt,output\n0,3,5\n")
    prompts.write_text("Once\n")
    (tmp_path / "no_key").write_text("\n")
    (tmp_path / "two_keys").write_text("one\ntwo\n")
    for arguments, word in [
            ([], "--grpc"), (["--grpc=x:1"], "--concurrency"),
            (["--grpc=x:1", "--rate=1", "--concurrency=1"], "--concurrency"),
            (["--grpc=x:1,,y:2", "--concurrency=1"], "--grpc"),
            (["--grpc=x:1", "--rate=1", "--arrivals=often"], "--arrivals"),
            (["--grpc=x:1", "--rate=1", "--prompt-tokens=many"], "--prompt-tokens"),
            (["--grpc=x:1", "--trace=/no/such"], "--trace"),
            (["--grpc=x:1", "--sweep=4,2"], "--sweep"),
            (["--grpc=x:1", "--rate=1", "--objectives=fast=1s"], "--objectives"),
            (["--grpc=x:1", "--concurrency=1", "--arrivals=constant"], "--arrivals has no effect with --concurrency"),
            (["--grpc=x:1", "--sweep=concurrency:1,2", "--max-in-flight=5"], "--max-in-flight has no effect"),
            (["--grpc=x:1", f"--trace={trace}", "--arrivals=constant"], "--arrivals has no effect with --trace"),
            (["--grpc=x:1", "--rate=1", f"--prompts={prompts}", "--shared-prefix=2"], "--shared-prefix has no effect"),
            (["--grpc=x:1", "--rate=1", f"--prompts={prompts}", "--prompt-tokens=9"], "--prompt-tokens has no effect"),
            (["--http=x:1", "--rate=1", "--connections=4"], "--connections has no effect with --http"),
            (["--grpc=x:1", "--rate=1", f"--prompts={tmp_path}"], f"--prompts: {tmp_path} cannot be read"),
            (["--grpc=x:1", "--rate=1", f"--api-key-file={tmp_path}/no_key"], "no_key holds no API key"),
            (["--grpc=x:1", "--rate=1", f"--api-key-file={tmp_path}/two_keys"], "two_keys holds no API key"),
            (["--http=[::1:80", "--rate=1"], '--http: "[::1:80" is not http://host:port'),
            (["--compare", str(tmp_path / "none.json")], "two results")]:
        error = load(*arguments, status=2).stderr
        assert word in error and error.count("\n") == 1, error
    # A request that no server can serve fails; the run goes on, and says so.
    error = load(f"--grpc={server.address}", "--concurrency=1", "--requests=2", "--model=other",
                 *SHORT, status=2).stderr
    assert "other" in error
    error = load(f"--grpc={nowhere}", "--concurrency=1", "--requests=1", *SHORT, status=1).stderr
    assert nowhere in error and "Connection refused" in error
    error = load(f"--http={server.address}", "--concurrency=1", "--requests=1", *SHORT, status=1).stderr
    assert "(an HTTP port is needed, not that of gRPC)" in error


def test_a_result_that_could_not_be_written_is_told_before_anything_is_sent(server, tmp_path):
    nowhere = f"--grpc=127.0.0.1:{harness.free_port()}"
    (tmp_path / "old.json").write_text("old")
    for flag, path, why in [("--json", tmp_path / "no" / "out", "No such file"),
                            ("--csv", tmp_path, "Is a directory"),
                            ("--html", tmp_path / "old.json" / "out", "Not a directory")]:
        error = load(nowhere, "--concurrency=1", f"{flag}={path}", status=2).stderr
        assert f"{flag}: {path} cannot be written: {why}" in error
    # What can be written is left alone until there is something to write.
    load(f"--grpc={server.address}", "--model=other", "--concurrency=1",
         f"--json={tmp_path}/old.json", f"--csv={tmp_path}/new.csv", status=2)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"


def test_what_is_no_result_is_not_merged(tmp_path):
    (tmp_path / "other.json").write_text('{"answer": 42}')
    error = load("--merge", str(tmp_path / "other.json"), status=2).stderr
    assert error.startswith(f"blockserve-load: {tmp_path}/other.json is no result of blockserve-load")


def test_requests_that_do_not_fit_are_told(server, tmp_path):
    """Those of a distribution are shortened and counted; lengths of which none fits are refused."""
    limit = int(re.search(r"context of (\d+) tokens", load(
        f"--grpc={server.address}", "--concurrency=1", "--prompt-tokens=99999", status=2).stderr)[1])
    out = tmp_path / "out.json"
    told = load(f"--grpc={server.address}", "--concurrency=1", "--requests=6",
                f"--prompt-tokens=uniform:1:{4 * limit}", "--output-tokens=2", f"--json={out}",
                "--noprogress").stdout
    shortened = result_of(out)["requests"]["shortened"]
    assert 0 < shortened <= 6
    assert f"{shortened} of the requests were shortened" in told


def test_times_are_seconds_or_have_a_unit(server, tmp_path):
    out = tmp_path / "out.json"
    load(f"--grpc={server.address}", "--concurrency=1", "--requests=1", "--duration=5",
         "--timeout=1m", "--objectives=e2e=3600", f"--json={out}", *SHORT)
    result = result_of(out)
    assert result["workload"]["duration_s"] == 5 and result["objectives_ms"]["e2e"] == 3600e3
    load(f"--grpc={server.address}", "--concurrency=1", "--requests=1", "--duration=inf",
         "--warmup=1ms", "--timeout=inf", "--max-failed=0", *SHORT)
    error = load(f"--grpc={server.address}", "--concurrency=1", "--duration=soon", status=2).stderr
    assert '--duration cannot be "soon": it must be a time as 10s or 500ms' in error


def test_help_fits_a_screen():
    lines = load("--help").stdout.splitlines()
    assert len(lines) <= 45 and max(len(line) for line in lines) <= 120


def test_simulated_workers_serve_a_gateway_and_share_its_rows(launcher, tmp_path):
    """Answers do not depend on how many workers there are; every worker gets its share."""
    model = harness.GOLDEN / "concat_l4"
    hashes = []
    for workers in (1, 5):
        first = consecutive_ports(workers + 2)
        stats = tmp_path / f"stats{workers}.json"
        simulated = subprocess.Popen(
            [harness.program("blockserve-simulate"), f"--model={model}",
             f"--token-workers={workers}", f"--token-listen=127.0.0.1:{first}",
             "--block-replicas=2", f"--block-listen=127.0.0.1:{first + workers}",
             "--token-steps=0.5", "--block-steps=0.2", f"--stats={stats}"],
            stdout=subprocess.PIPE, text=True)
        try:
            assert "ready" in simulated.stdout.readline()
            addresses = [f"127.0.0.1:{first + i}" for i in range(workers + 2)]
            gateway = launcher.start("blockserve-gateway", [
                f"--model={model}", "--block-services=" + ",".join(addresses[workers:]),
                "--token-services=" + ",".join(addresses[:workers])])
            launcher.connected_client(gateway, 2, workers)
            out = tmp_path / "load.json"
            load(f"--grpc={gateway.address}", "--concurrency=20", "--requests=100",
                 f"--json={out}", "--max-failed=0", *SHORT)
            hashes.append(result_of(out)["output_hash"])
            gateway.stop()
        finally:
            simulated.terminate()
            assert simulated.wait(60) == 0
        rows = [worker["rows"] for worker in result_of(stats)["token_workers"]]
        assert len(rows) == workers and min(rows) > 0 and max(rows) <= 3 * min(rows), rows
        assert all(replica["steps"] > 0 for replica in result_of(stats)["block_replicas"])
    assert hashes[0] == hashes[1]


def test_workers_come_and_go_under_load_without_a_failed_request(launcher, tmp_path):
    """1 -> 3 -> 1: the new ones take rows, and leave with what they have in hand answered."""
    model = harness.GOLDEN / "concat_l4"
    first = consecutive_ports(4)
    addresses = [f"127.0.0.1:{first + i}" for i in range(4)]

    def simulate(*flags: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [harness.program("blockserve-simulate"), f"--model={model}", *flags],
            stdout=subprocess.PIPE, text=True)
        assert "ready" in process.stdout.readline()
        return process

    started = [simulate("--token-workers=1", f"--token-listen={addresses[0]}", "--token-steps=2",
                        "--block-replicas=1", f"--block-listen={addresses[3]}")]
    try:
        gateway = launcher.start("blockserve-gateway", [
            f"--model={model}", f"--block-services={addresses[3]}",
            "--token-services=" + ",".join(addresses[:3])])
        client = launcher.connected_client(gateway, 1, 1)
        out, stats = tmp_path / "load.json", tmp_path / "stats.json"
        running = subprocess.Popen(
            [harness.program("blockserve-load"), f"--grpc={gateway.address}", "--concurrency=16",
             "--duration=1h", f"--json={out}", *SHORT])
        started.append(simulate("--token-workers=2", f"--token-listen={addresses[1]}",
                                "--token-steps=2", f"--stats={stats}"))
        harness.wait_until(lambda: client.model().token_workers == 3, "three workers")
        # Every worker writes some of these.
        client.generate([1, 2, 3], n=12, max_tokens=40, ignore_eos=True)
        started[1].terminate()
        assert started[1].wait(60) == 0
        harness.wait_until(lambda: client.model().token_workers == 1, "one worker is left")
        running.terminate()
        assert running.wait(60) == 0
        assert result_of(out)["requests"]["failed"] == result_of(out)["errors"].get("CANCELLED", 0)
        assert min(worker["rows"] for worker in result_of(stats)["token_workers"]) > 0
        gateway.stop()
    finally:
        for process in started:
            process.terminate()
            process.wait(60)
