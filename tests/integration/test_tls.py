"""TLS on every port, certificates between the tiers: over real processes."""

import http.client
import re
import shutil
import socket
import ssl
import subprocess
import types
import urllib.error
import urllib.request

import blockserve
import grpc
import harness
import pytest
from grpc_health.v1 import health_pb2
from secured_tiers import make_certificates, put_in_place, server_flags

PROMPT = {"prompt": "The little dog", "max_tokens": 8, "seed": 1, "temperature": 0.0}


def test_text_is_written_with_everything_encrypted(secured_client):
    assert secured_client.generate(**PROMPT).choices[0].tokens
    assert list(secured_client.stream(**PROMPT))


@pytest.mark.parametrize("command", [
    ["generate", "--prompt=A dog", "--max-tokens=4"], ["score", "--prompt=A dog"],
    ["tokenize", "--text=A dog"], ["detokenize", "--tokens=5,6"]], ids=lambda command: command[0])
def test_the_command_line_speaks_to_it(secured, pki, tmp_path, command):
    (tmp_path / "key").write_text(secured.key + "\n")

    def call(*flags):
        return subprocess.run(
            [harness.program("blockserve"), *command, f"--server={secured.gateway.address}",
             f"--tls-ca={pki.public}/ca.crt", *flags], text=True, capture_output=True, check=False)

    done = call(f"--api-key-file={tmp_path}/key")
    assert done.returncode == 0 and done.stdout, done.stderr
    assert call().returncode == 1, "without a key"


def test_the_command_line_names_the_flag_that_a_connection_lacks(secured, mutual, pki, demo_model,
                                                                 launcher, tmp_path):
    plain = launcher.serve(demo_model, f"--http-address=127.0.0.1:{(http_port := harness.free_port())}")
    plain.wait_for_log("blockserve serves")
    for name, key in (("wrong", "bsk_00000000_x\n"), ("blank", "\n"), ("two", "bsk_a bsk_b\n")):
        (tmp_path / name).write_text(key)
    ca, tls = f"--tls-ca={pki.public}/ca.crt", secured.gateway.address
    cases = [
        (1, tls, [ca], "an API key is needed (--api-key-file)"),
        (1, tls, [ca, f"--api-key-file={tmp_path}/wrong"],
         f"--api-key-file {tmp_path}/wrong: the API key is not known here"),
        (2, tls, [ca, f"--api-key-file={tmp_path}/blank"], f"--api-key-file {tmp_path}/blank holds no API key"),
        (2, tls, [ca, f"--api-key-file={tmp_path}/two"], f"--api-key-file {tmp_path}/two holds no API key"),
        (1, tls, [], "(a server with TLS needs --tls-ca)"),
        (1, tls, [f"--tls-ca={pki.tiers}/ca.crt"], "(its certificate is not of a CA of --tls-ca)"),
        (1, tls, [ca, "--tls-name=other"], "(the name in its certificate is needed as --tls-name)"),
        (1, mutual.grpc, [ca], "(a server that asks for a certificate needs --tls-cert and --tls-key)"),
        (1, plain.address, [ca], "(a server without TLS needs no --tls-ca)"),
        (1, f"127.0.0.1:{http_port}", [], "(a gRPC port is needed, not that of HTTP)"),
        (1, f"127.0.0.1:{secured.http_port}", [ca], "(a gRPC port is needed, not that of HTTP)"),
    ]
    for status, address, flags, told in cases:
        done = subprocess.run([harness.program("blockserve"), "detokenize", "--tokens=5", f"--server={address}",
                               *flags], text=True, capture_output=True, check=False, timeout=60)
        assert done.returncode == status and done.stderr.endswith(told + "\n"), (flags, done.stderr)
        assert done.stderr.count("\n") == 1, done.stderr
    https = f"--http=https://127.0.0.1:{secured.http_port}"
    needs_http = "(an HTTP port is needed, not that of gRPC)"
    for target, flags, told in (
            (f"--grpc={tls}", [], "(a server with TLS needs --tls-ca)"), (f"--grpc={tls}", [ca], "(--api-key-file)"),
            (f"--http={plain.address}", [], needs_http), (f"--http=https://{tls}", [ca], needs_http),
            (f"--http=127.0.0.1:{secured.http_port}", [], "(a server with TLS needs https://)"),
            (f"--http=https://127.0.0.1:{http_port}", [ca], "(a server without TLS needs http://)"),
            (https, [f"--tls-ca={pki.tiers}/ca.crt"], "(--tls-ca: "),
            (https, [ca, "--tls-name=other"], "(the name in its certificate is needed as --tls-name)"),
            (f"--http={mutual.http}", [ca], "(a server that asks for a certificate needs --tls-cert)")):
        # With a model's name the server is not asked for it: each request meets the error.
        for named in ([], ["--model=a"]) if "http" in target else ([],):
            done = subprocess.run([harness.program("blockserve-load"), target, "--concurrency=1", "--requests=1",
                                   *flags, *named], text=True, capture_output=True, check=False, timeout=60)
            assert done.returncode == 1, (target, done.stderr)
            assert told in (done.stdout if named else done.stderr), (target, done.stderr)


@pytest.mark.parametrize("tier", ["block", "token"])
def test_a_tier_refuses_callers_without_a_certificate(secured, pki, tier):
    address = getattr(secured, tier).address
    strangers = {
        "plaintext": None,
        "no certificate": blockserve.Tls(ca=pki.tiers / "ca.crt").credentials(),
        "a certificate of another CA": blockserve.Tls(
            ca=pki.tiers / "ca.crt", certificate=pki.public / "client.crt",
            key=pki.public / "client.key").credentials(),
    }
    for who, credentials in strangers.items():
        with pytest.raises(grpc.RpcError) as caught:
            harness.health(address, credentials=credentials)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, who
    known = blockserve.Tls(ca=pki.tiers / "ca.crt", certificate=pki.tiers / "gateway.crt",
                           key=pki.tiers / "gateway.key").credentials()
    assert harness.health(address, credentials=known) == health_pb2.HealthCheckResponse.SERVING


def test_a_gateway_says_why_it_cannot_connect_to_a_tier(secured, pki, demo_model, launcher):
    ca = f"--tier-tls-ca={pki.tiers}/ca.crt"
    own = [f"--tier-tls-cert={pki.tiers}/gateway.crt", f"--tier-tls-key={pki.tiers}/gateway.key"]
    cases = {
        # The tier is who knows.
        "plaintext": ([], ""),
        "no certificate": ([ca], ""),
        "another name": ([ca, *own, "--tier-tls-name=other"], "Hostname Verification Check failed"),
        "another authority": ([f"--tier-tls-ca={pki.public}/ca.crt", *own],
                              "certificate verify failed"),
    }
    gateways = {case: launcher.gateway(demo_model, [secured.block], [secured.token], *flags)
                for case, (flags, _) in cases.items()}
    for case, (_, reason) in cases.items():
        for tier, server in (("block service", secured.block), ("token worker", secured.token)):
            says = re.compile(f"{tier} at {server.address} cannot be reached: .*{reason}")
            harness.wait_until(lambda says=says, case=case:
                               says.search(gateways[case].log()), f"{case}: {says.pattern}")


@pytest.mark.parametrize("tier", ["block", "token", "gateway"])
def test_metrics_are_shown_over_tls_alone(secured, pki, tier):
    """Without a certificate of one's own: scrapers seldom have one of the tiers' authority."""
    ca = (pki.public if tier == "gateway" else pki.tiers) / "ca.crt"
    port = secured.metrics[tier]
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", timeout=60,
                                context=ssl.create_default_context(cafile=str(ca))) as page:
        assert b"process_start_time_seconds" in page.read()
    with pytest.raises((OSError, http.client.HTTPException)):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60)
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", timeout=60)


def test_metrics_may_be_shown_in_plaintext(pki, launcher):
    model = harness.GOLDEN / "concat_l4"
    server = launcher.block(model, *server_flags(pki.tiers, "block"), "--metrics-plaintext",
                            f"--metrics-listen=127.0.0.1:{(port := harness.free_port())}")
    server.wait_for_log(f"metrics on 127.0.0.1:{port}\n")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        assert b"process_start_time_seconds" in page.read()


@pytest.mark.parametrize("program, flags", [
    ("serve", ["--http-address"]), ("gateway", ["--http-listen", "--metrics-listen"])])
def test_plaintext_that_other_machines_reach_is_told(program, flags, launcher):
    """Of every port, unless it was asked for; what only this machine reaches is nobody's business."""
    model = harness.GOLDEN / "concat_l4"

    def start(host, *more):
        given = [f"{flag}={host}:{harness.free_port()}" for flag in flags]
        server = (launcher.serve(model, *given, *more) if program == "serve" else
                  launcher.gateway(model, [], [], "--block-services=127.0.0.1:1",
                                   "--token-services=127.0.0.1:1", *given, *more))
        server.wait_for_log("blockserve serves" if program == "serve" else "listening on")
        server.stop()
        return server.log(), given

    log, given = start("0.0.0.0")
    for one in given:
        told = f"{one.replace('=', ' ')}: other machines reach it, and it is not encrypted (--tls-cert)"
        assert log.count(told) == 1
    assert "not encrypted" not in start("127.0.0.1")[0]
    if "--metrics-listen" in flags:
        log, _ = start("0.0.0.0", "--metrics-plaintext")
        assert "--metrics-listen 0.0.0.0" not in log


def test_a_client_does_not_trust_another_authority(secured, pki):
    tls = blockserve.Tls(ca=pki.tiers / "ca.crt")
    with blockserve.Client(secured.gateway.address, tls=tls, api_key=secured.key, timeout=60,
                           retries=0) as client:
        with pytest.raises(blockserve.Error) as caught:
            client.model()
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE


def shown(pki, ports):
    """Serial numbers of the certificates that the ports show."""
    context = ssl.create_default_context(cafile=str(pki.public / "ca.crt"))
    numbers = []
    for port in ports:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
                numbers.append(connection.getpeercert()["serialNumber"])
    return numbers


def test_certificates_are_renewed_while_it_runs(secured, pki, secured_client):
    """On all three ports; and an HTTP connection that stands goes on."""
    context = ssl.create_default_context(cafile=str(pki.public / "ca.crt"))
    ports = [int(secured.gateway.address.split(":")[1]), secured.http_port,
             secured.metrics["gateway"]]
    stands = http.client.HTTPSConnection("127.0.0.1", secured.http_port, context=context, timeout=60)
    stands.request("GET", "/health")
    assert stands.getresponse().read()
    old = shown(pki, ports)
    make_certificates(pki.public, "server")
    harness.wait_until(lambda: not set(shown(pki, ports)) & set(old), "the new certificate is shown by all")
    assert secured_client.generate(**PROMPT).choices
    stands.request("GET", "/health")
    assert stands.getresponse().status == 200
    stands.close()


def test_certificates_are_renewed_by_files_of_the_same_time(secured, pki, tmp_path):
    ports = [int(secured.gateway.address.split(":")[1]), secured.http_port]
    old = shown(pki, ports)
    made = make_certificates(shutil.copytree(pki.public, tmp_path / "new"), "server")
    for name in ("server.key", "server.crt"):
        put_in_place(made / name, pki.public / name)
    harness.wait_until(lambda: not set(shown(pki, ports)) & set(old),
                       "the new certificate is shown by both", limit_s=30)


def test_an_expired_certificate_is_told_by_whoever_shows_it(pki, demo_model, launcher, tmp_path):
    folder = shutil.copytree(pki.tiers, tmp_path / "tiers")
    make_certificates(folder, "token", "gateway", "--days", "0")
    own = [f"--tier-tls-{what}={folder}/gateway.{end}" for what, end in (("cert", "crt"), ("key", "key"))]
    token = launcher.token(demo_model, *server_flags(folder, "token"))
    gateway = launcher.gateway(demo_model, [token], [token], f"--tier-tls-ca={folder}/ca.crt", *own)
    for server, flag, name in ((token, "--tls-cert", "token"), (gateway, "--tier-tls-cert", "gateway")):
        server.wait_for_log(f"{flag} {folder}/{name}.crt: has expired on 20")
    make_certificates(folder, "token", "gateway")
    gateway.wait_for_log(f"at {token.address} connected")
    assert token.log().count("has expired") == 1


@pytest.mark.parametrize("content", ["nonsense\n", ""])
def test_certificates_that_cannot_be_used_for_a_while_change_nothing(secured, pki, content):
    """As while they are being written: both ports go on with what they had, and take what follows."""
    address = secured.gateway.address
    credentials = blockserve.Tls(ca=pki.public / "ca.crt").credentials()
    ports = [int(address.split(":")[1]), secured.http_port]
    certificate = pki.public / "server.crt"
    whole, said = certificate.read_bytes(), secured.gateway.log().count("cannot be used")
    before = shown(pki, ports)
    certificate.write_text(content)
    # Each port says so once; by then each has looked at it.
    harness.wait_until(lambda: shown(pki, ports) == before and
                       secured.gateway.log().count("cannot be used") >= said + 2, "the file is told")
    assert harness.health(address, credentials=credentials) == health_pb2.HealthCheckResponse.SERVING
    certificate.write_bytes(whole)
    make_certificates(pki.public, "server")
    harness.wait_until(lambda: not set(shown(pki, ports)) & set(before), "the new certificate is shown")
    assert harness.health(address, credentials=credentials) == health_pb2.HealthCheckResponse.SERVING


def test_load_is_sent_through_tls_with_a_key(secured, pki, tmp_path):
    (tmp_path / "key").write_text(secured.key + "\n")
    flags = ["--concurrency=2", "--requests=4", "--prompt-tokens=4", "--output-tokens=4",
             "--max-failed=0", "--noprogress"]
    for target in (f"--grpc={secured.gateway.address}",
                   f"--http=https://127.0.0.1:{secured.http_port}"):
        def load(*more):
            return subprocess.run([harness.program("blockserve-load"), target, *flags, *more],
                                  text=True, capture_output=True, check=False, timeout=120)
        done = load(f"--tls-ca={pki.public}/ca.crt", f"--api-key-file={tmp_path}/key")
        assert done.returncode == 0 and "4 ok" in done.stdout, done.stderr
        assert load(f"--tls-ca={pki.public}/ca.crt").returncode > 0, "without a key"
        assert load(f"--tls-ca={pki.tiers}/ca.crt",
                    f"--api-key-file={tmp_path}/key").returncode > 0, "another authority"
    plain = subprocess.run([harness.program("blockserve-load"), "--http=http://127.0.0.1:1",
                            f"--tls-ca={pki.public}/ca.crt", *flags], text=True, capture_output=True,
                           check=False, timeout=120)
    assert plain.returncode == 2 and "https://" in plain.stderr


@pytest.fixture(scope="module")
def mutual(pki, demo_model, launcher):
    """`blockserve serve` whose callers must show a certificate, on both ports."""
    port = harness.free_port()
    server = launcher.serve(demo_model, f"--http-address=127.0.0.1:{port}", "--http-header-timeout=2s",
                            *server_flags(pki.public, "server", f"{pki.public}/ca.crt"))
    server.wait_for_log("blockserve serves")
    return types.SimpleNamespace(grpc=server.address, http=f"https://127.0.0.1:{port}", port=port,
                                 log=server.log)


def test_serve_names_the_url_that_a_browser_takes(mutual):
    assert f"{mutual.grpc} (gRPC) and {mutual.http}/\n" in mutual.log()


def test_both_ports_ask_callers_for_a_certificate(mutual, pki):
    flags = ["--concurrency=1", "--requests=2", "--prompt-tokens=4", "--output-tokens=4",
             "--max-failed=0", "--noprogress", f"--tls-ca={pki.public}/ca.crt"]
    shown = [f"--tls-cert={pki.public}/client.crt", f"--tls-key={pki.public}/client.key"]
    for target in (f"--grpc={mutual.grpc}", f"--http={mutual.http}"):
        for more, status in ((shown, 0), ([], 1)):
            done = subprocess.run([harness.program("blockserve-load"), target, *flags, *more],
                                  text=True, capture_output=True, check=False, timeout=120)
            assert done.returncode == status, done.stderr


def test_a_client_that_does_not_begin_its_handshake_is_closed(mutual):
    with socket.create_connection(("127.0.0.1", mutual.port), timeout=60) as connection:
        assert connection.recv(100) == b""


def client_context(pki):
    context = ssl.create_default_context(cafile=str(pki.public / "ca.crt"))
    context.load_cert_chain(pki.public / "client.crt", pki.public / "client.key")
    return context


def test_a_client_that_is_answered_while_it_sends_may_send_on(mutual, pki):
    """As without TLS: closing would take the answer away from clients that read when they have sent
    everything."""
    body = b"x" * 800_000
    for _ in range(10):  # each second one found its connection closed
        with socket.create_connection(("127.0.0.1", mutual.port), timeout=20) as plain:
            with client_context(pki).wrap_socket(plain, server_hostname="127.0.0.1",
                                                 suppress_ragged_eofs=False) as secure:
                secure.sendall(b"POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
                answer = b""
                while piece := secure.recv(1000):  # to the end that TLS tells
                    answer += piece
                assert answer.startswith(b"HTTP/1.1 404") and b"Connection: close" in answer
                secure.sendall(body)
                secure.unwrap()


def test_a_client_with_a_certificate_takes_up_its_tls_session(mutual, pki):
    context = client_context(pki)
    session = None
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", mutual.port), timeout=20) as plain:
            with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as secure:
                assert secure.session_reused == (session is not None)
                secure.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
                assert secure.recv(1000).startswith(b"HTTP/1.1 200")
                session = secure.session


@pytest.fixture
def files(pki, tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("no certificate\n")
    return types.SimpleNamespace(cert=f"{pki.tiers}/block.crt", key=f"{pki.tiers}/block.key",
                                 other_key=f"{pki.tiers}/token.key", folder=tmp_path)


@pytest.mark.parametrize("program", ["blockserve serve", "blockserve-gateway", "blockserve-block",
                                     "blockserve-token"])
def test_a_tls_file_that_cannot_be_used_is_named(program, demo_model, files):
    cases = [
        ([f"--tls-cert={files.cert}"], "--tls-cert needs --tls-key"),
        ([f"--tls-key={files.key}"], "--tls-key needs --tls-cert"),
        ([f"--tls-client-ca={files.cert}"], "--tls-client-ca needs --tls-cert"),
        ([f"--tls-cert={files.folder}/none", f"--tls-key={files.key}"],
         f"--tls-cert {files.folder}/none: No such file or directory"),
        ([f"--tls-cert={files.folder}/empty", f"--tls-key={files.key}"],
         f"--tls-cert {files.folder}/empty: is empty or cannot be read"),
        ([f"--tls-cert={files.folder}/text", f"--tls-key={files.key}"],
         f"--tls-cert {files.folder}/text: is no certificate: "),
        ([f"--tls-cert={files.cert}", f"--tls-key={files.other_key}"],
         f"--tls-key {files.other_key}: is not the key of {files.cert}: "),
        ([f"--tls-cert={files.cert}", f"--tls-key={files.key}",
          f"--tls-client-ca={files.folder}/text"],
         f"--tls-client-ca {files.folder}/text: holds no CA certificate: "),
    ]
    name, *subcommand = program.split()
    common = [f"--model={demo_model}"]
    if name == "blockserve-gateway":
        common += ["--block-services=127.0.0.1:1", "--token-services=127.0.0.1:1"]
        cases += [([f"--tier-tls-cert={files.cert}", f"--tier-tls-key={files.key}"],
                   "--tier-tls-cert needs --tier-tls-ca"),
                  ([f"--tier-tls-ca={files.folder}/none"],
                   f"--tier-tls-ca {files.folder}/none: No such file or directory")]
    for flags, message in cases:
        done = subprocess.run([harness.program(name), *subcommand, *common, *flags], text=True,
                              capture_output=True, timeout=60, check=False)
        assert done.returncode == 2, (flags, done)
        assert done.stderr.startswith(f"{program}: {message}"), (flags, done.stderr)
        assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("program", ["blockserve serve", "blockserve-gateway", "blockserve-block",
                                     "blockserve-token"])
def test_nothing_listens_beyond_loopback_unless_asked(program):
    name, *subcommand = program.split()
    text = subprocess.run([harness.program(name), *subcommand, "--helpfull"], text=True,
                          capture_output=True, check=True).stdout
    listening = [line for line in text.splitlines()
                 if re.match(r"\s*--\S*(listen|address)\b", line)]
    assert listening, text
    for line in listening:
        default = re.search(r"\[?([\w.]+)\]?:\d+", line)
        assert default is None or default[1] == "127.0.0.1", line
    assert any("127.0.0.1:" in line for line in listening), text


def test_the_example_of_the_document_works_as_written(demo_model, tmp_path):
    text = (harness.ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    servers, call = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    ports = {port: str(harness.free_port()) for port in ("7070", "7071", "7072")}

    def here(commands):
        commands = commands.replace("pki/", f"{tmp_path}/pki/").replace(
            "build/bin/", f"{harness.PROGRAMS}/")
        return re.sub(r"127\.0\.0\.1:(\d+)", lambda found: "127.0.0.1:" + ports[found[1]], commands)

    with open(tmp_path / "log", "wb") as log:
        shell = subprocess.Popen(
            ["bash", "-euc", f"trap 'kill $(jobs -p)' TERM\n{here(servers)}\nwait"],
            cwd=harness.ROOT, stdout=log, stderr=log)
        try:
            def answers():
                assert shell.poll() is None, (tmp_path / "log").read_text()
                done = subprocess.run(["bash", "-euc", here(call)], cwd=harness.ROOT, text=True,
                                      capture_output=True, check=False)
                return done.returncode == 0 and bool(done.stdout.strip())

            harness.wait_until(answers, "the example's call is answered")
        finally:
            shell.terminate()
            shell.wait(harness.STOP_LIMIT_S)
