"""The command line: golden numbers through `blockserve generate` and `score`, with an own engine and
against three processes; help, version and bad usage of every program; health and reflection."""

import json
import os
import pathlib
import re
import resource
import socket
import subprocess

import grpc
import harness
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

ALL_PROGRAMS = ["blockserve", "blockserve-gateway", "blockserve-block", "blockserve-token",
                "blockserve-bench"]
FOLDERS = ["concat_l4", "concat_l2_sharded", "projection_layer_f16", "vanilla"]


def run(name, *arguments, environment=None):
    return subprocess.run([harness.program(name), *arguments], cwd=harness.ROOT, text=True,
                          env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=120)


def run_json(*arguments):
    result = run("blockserve", *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def cases(folder):
    return json.loads((harness.GOLDEN / folder / "expected.json").read_text())["cases"]


def listed(tokens):
    return ",".join(map(str, tokens))


@pytest.fixture(scope="module")
def three_processes(launcher):
    """Where `blockserve generate` finds a model: `--model` it itself, or `--server` three processes."""
    addresses = {}

    def source(folder, how):
        model = harness.GOLDEN / folder
        if how == "--model":
            return [f"--model={model}", "--arithmetic=f32"]
        if folder not in addresses:
            flag = "--arithmetic=f32"
            gateway = launcher.gateway(model, [launcher.block(model, flag)],
                                       [launcher.token(model, flag)])
            launcher.connected_client(gateway, 1, 1)
            addresses[folder] = gateway.address
        return [f"--server={addresses[folder]}"]

    return source


@pytest.mark.parametrize("how", ["--model", "--server"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_generate_prints_the_golden_tokens(three_processes, folder, how):
    """Greedy is the command line's default."""
    for case in (cases(folder)[0], cases(folder)[4]):
        printed = run_json(
            "generate", *three_processes(folder, how), f"--prompt-tokens={listed(case['prompt'])}",
            "--max-tokens=64", "--ignore-eos", "--logprobs", "--format=json")
        (choice,) = printed["choices"]
        assert choice["tokens"] == case["greedy"]
        assert choice["logprobs"] == pytest.approx(case["greedy_logprobs"], abs=5e-5)
        assert choice["text"] is None
        assert choice["finish_reason"] == "length"
        assert printed["usage"]["prompt_tokens"] == len(case["prompt"])
        assert printed["usage"]["completion_tokens"] == 64


@pytest.mark.parametrize("how", ["--model", "--server"])
def test_generate_takes_the_alignment(three_processes, how):
    case = cases("concat_l4")[3]
    for alignment in ("start", "none"):
        printed = run_json(
            "generate", *three_processes("concat_l4", how), "--max-tokens=64", "--ignore-eos",
            f"--prompt-tokens={listed(case['prompt'])}", f"--alignment={alignment}",
            "--format=json")
        assert printed["choices"][0]["tokens"] == case["greedy_" + alignment]
        assert "logprobs" not in printed["choices"][0], "nobody asked"


@pytest.mark.parametrize("how", ["--model", "--server"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_score_prints_the_golden_logprobs(three_processes, folder, how):
    case = cases(folder)[2]
    prompt = f"--prompt-tokens={listed(case['prompt'])}"
    printed = run_json("score", *three_processes(folder, how), prompt,
                       f"--continuation-tokens={listed(case['continuation'])}", "--alignment=end")
    assert printed["tokens"] == case["continuation"]
    assert printed["logprobs"] == pytest.approx(case["continuation_logprobs"], abs=5e-5)
    printed = run_json("score", *three_processes(folder, how), prompt)
    assert printed["tokens"] == case["prompt"]
    assert printed["logprobs"][0] is None and case["text_logprobs"][0] is None
    assert printed["logprobs"][1:] == pytest.approx(case["text_logprobs"][1:], abs=5e-5)


def test_sampling_by_seed_and_several_choices(three_processes):
    arguments = ["generate", *three_processes("concat_l4", "--model"), "--prompt-tokens=5,6,7",
                 "--max-tokens=20", "--temperature=1", "--n=3", "--ignore-eos", "--format=json"]
    first, second = (run_json(*arguments, "--seed=4") for _ in range(2))
    assert first["choices"] == second["choices"] and len(first["choices"]) == 3
    assert len({tuple(choice["tokens"]) for choice in first["choices"]}) == 3
    assert run_json(*arguments, "--seed=5")["choices"] != first["choices"]


@pytest.mark.parametrize("name", ALL_PROGRAMS)
def test_help_fits_a_screen_and_version_tells_commit_and_arithmetic(name):
    shown = run(name, "--help")
    assert shown.returncode == 0
    assert 5 < len(shown.stdout.splitlines()) <= 40
    for line in (*shown.stdout.splitlines(), *run(name, "--helpfull").stdout.splitlines()):
        assert len(line) <= 120, line
    version = run(name, "--version")
    assert version.returncode == 0
    assert "commit" in version.stdout and "f32" in version.stdout and "bf16" in version.stdout


def test_whoever_serves_clients_takes_the_same_flags_for_them():
    """By subject; the lines are equal, defaults and all."""
    def subjects(*command):
        lines = run(*command, "--helpfull").stdout.splitlines()
        found, subject = {}, None
        for line in lines:
            if line.endswith(":") and not line.startswith(" "):
                subject = line
            elif subject and line.startswith("  --") and "--flagfile" not in line:
                found.setdefault(subject, []).append(line.split())
        return found

    gateway, serve = subjects("blockserve-gateway"), subjects("blockserve", "serve")
    assert gateway.pop("Tiers:")  # serve has its tiers inside
    assert gateway == serve and len(serve) == 5
    short = run("blockserve-gateway", "--help").stdout
    assert len(short.splitlines()) <= 24 and "Admission" in short


BAD_USAGE = [
    (name, [*arguments, *more], words)
    for name, arguments in (
        ("blockserve", ["serve"]), ("blockserve", ["generate"]), ("blockserve-gateway", []),
        ("blockserve-block", []), ("blockserve-token", []), ("blockserve-bench", []))
    for more, words in (
        (["--no-such-flag=1"], ["--no-such-flag"]),
        ([], ["--model"]),
        (["--flagfile=/no/such/file"], ["/no/such/file"]),
    )
] + [
    ("blockserve", ["dance"], ["dance"]),
    ("blockserve", ["generate", "--model=tests/golden/concat_l4", "--prompt-tokens=1,x"], ["x"]),
    ("blockserve", ["generate", "--model=tests/golden/concat_l4"], ["--prompt"]),
    ("blockserve", ["generate", "--model=tests/golden/concat_l4", "--prompt-tokens=1",
                    "--max-tokens=many"], ["--max-tokens", "many"]),
    ("blockserve", ["generate", "--model=tests/golden/concat_l4", "--prompt-tokens=1",
                    "--alignment=left"], ["alignment", "left"]),
    ("blockserve", ["generate", "--model=tests/golden/concat_l4", "--prompt-tokens=1",
                    "--format=xml"], ["format", "xml"]),
    ("blockserve", ["generate", "--model=tests/golden/concat_l4", "--prompt-tokens=1",
                    "--logprobs=2"], ["--logprobs", "--format json"]),
    ("blockserve", ["generate", "--model=tests/golden/concat_l4", "--prompt-tokens=512"],
     ["--prompt-tokens[0]: ", "512"]),
    ("blockserve", ["generate", "--model=tests/golden/concat_l4", "--prompt-tokens=1",
                    "--temperature=nan"], ["--temperature: "]),
    ("blockserve", ["generate", "--model=tests/golden/concat_l4", "--prompt=text"], ["tokenizer"]),
    ("blockserve", ["generate", "--model=tests/golden/concat_l4", "--prompt-tokens=1",
                    "--arithmetic=f8"], ["arithmetic", "f8"]),
    ("blockserve", ["generate", "--model=tests/golden/concat_l4", "--prompt-tokens=x"],
     ["--prompt-tokens", "no token id"]),
    ("blockserve", ["generate", "--server=127.0.0.1:99999", "--prompt-tokens=1"],
     ["--server", "127.0.0.1:99999"]),
    ("blockserve", ["generate", "--server=localhost", "--prompt-tokens=1"],
     ["--server", "localhost"]),
    ("blockserve", ["generate", "--server=http://localhost:8080", "--prompt-tokens=1"],
     ["--server", "http://localhost:8080", "must be host:port"]),
    ("blockserve-load", ["--grpc=http://localhost:8080", "--concurrency=1"],
     ["--grpc", "http://localhost:8080", "host:port"]),
    *(("blockserve", ["generate", "--server=localhost:7070", "--prompt-tokens=1", flag],
       [flag.split("=")[0], "--model"]) for flag in ("--threads=2", "--arithmetic=f32", "--device=cpu")),
    ("blockserve", ["generate", "--model=tests/golden/concat_l4", "--prompt-tokens=1,,2"],
     ["--prompt-tokens", "no token id"]),
    ("blockserve", ["tokenize", "--model=models/demo-block", "--file=docs"], ["--file docs: cannot be read: Is a directory"]),
    ("blockserve", ["evaluate", "--model=models/demo-block", "--text=docs"], ["--text docs: cannot be read: Is a directory"]),
    ("blockserve", ["serve", "--model=tests/golden/concat_l4", "--grpc-address=nonsense"],
     ["--grpc-address", "nonsense"]),
    ("blockserve-block", ["--model=tests/golden/concat_l4", "--threads=-1"], ["threads"]),
    ("blockserve-token", ["--model=tests/golden/concat_l4", "--listen=nonsense"], ["listen"]),
    ("blockserve-bench", ["--model=tests/golden/concat_l4", "--sequences=0"], ["--sequences"]),
    ("blockserve-bench", ["--model=tests/golden/concat_l4", "--kernels=sse"], ["--kernels", "sse"]),
    ("blockserve-gateway", ["--model=tests/golden/concat_l4", "--listen=127.0.0.1:0"],
     ["--block-services"]),
    ("blockserve", ["serve", "--model=tests/golden/concat_l4", "--grpc-write-threads=0"],
     ["--grpc-write-threads", "1 to 64"]),
    # Flags that have no effect without another.
    ("blockserve", ["serve", "--model=tests/golden/concat_l4", "--http-cors-origin=*"],
     ["--http-cors-origin needs --http-address"]),
    ("blockserve-gateway", ["--model=tests/golden/concat_l4", "--http-threads=2"],
     ["--http-threads needs --http-listen"]),
    ("blockserve-gateway", ["--model=tests/golden/concat_l4", "--log-prompts", "--nolog-requests"],
     ["--log-prompts needs --log-requests"]),
    *((name, [*command, "--model=tests/golden/concat_l4", flag], [words])
      for name, command in (("blockserve", ["serve"]), ("blockserve-gateway", []),
                            ("blockserve-block", []), ("blockserve-token", []))
      for flag, words in (("--metrics-plaintext", "--metrics-plaintext needs --metrics-listen"),
                          ("--stall-bound=9s", "--stall-bound needs --health-listen"))),
    *(("blockserve", ["generate", "--model=tests/golden/concat_l4", "--prompt-tokens=1", flag],
       [flag.split("=")[0] + " needs --server"])
      for flag in ("--api-key-file=key", "--tls-ca=system", "--tls-name=name")),
    ("blockserve", ["evaluate", "--model=models/demo-block", "--text=README.md", "--compare=a.json"],
     ["--compare needs --plot"]),
    ("blockserve", ["keys", "--name=a", "--file=/no/such/file", "--max-requests=-1"],
     ["--max-requests must be a whole number from 0 to 1e+09"]),
    ("blockserve", ["keys", "--name=a", "--file=/no/such/file", "--burst=2"],
     ["--burst needs --requests-per-second"]),
    ("blockserve-bench", ["--model=tests/golden/concat_l4", "--gateways=2"], ["--gateways needs --tiers"]),
    ("blockserve-simulate", ["--model=tests/golden/concat_l4", "--block-replicas=1", "--token-steps=2"],
     ["--token-steps needs --token-workers"]),
    ("blockserve", ["detokenize", "--model=models/demo-block", "--tokens=1,-5"], ["--tokens: token id -5"]),
    ("blockserve-random-model", ["--size=block_main_b4_85", "--out=README.md"],
     ["--out README.md: cannot be written"]),
]


@pytest.mark.parametrize("name, arguments, words", BAD_USAGE,
                         ids=[" ".join([n, *a])[-60:] for n, a, _ in BAD_USAGE])
def test_bad_usage_is_one_line_and_exit_2(name, arguments, words):
    result = run(name, *arguments)
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    assert len([line for line in result.stderr.splitlines() if line]) == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


def test_too_much_kv_is_told_in_the_flags_own_unit():
    result = run("blockserve", "serve", "--model=tests/golden/concat_l4",
                 "--kv-memory-mib=100000000", "--grpc-address=127.0.0.1:0")
    assert result.returncode == 1
    assert re.search(r"no memory for \d+ MiB of KV: .* \(--kv-memory-mib\)$", result.stderr.strip())


def test_flags_in_a_file(tmp_path):
    case = cases("concat_l4")[1]
    flags = tmp_path / "flags"
    flags.write_text(f"# golden\n--model={harness.GOLDEN / 'concat_l4'}\n--max-tokens=64\n"
                     f"--prompt-tokens={listed(case['prompt'])}\n--ignore-eos\n--format=json\n")
    assert run_json("generate", f"--flagfile={flags}")["choices"][0]["tokens"] == case["greedy"]


@pytest.mark.parametrize("name", [*ALL_PROGRAMS, "blockserve-load", "blockserve-simulate"])
def test_the_memory_that_a_program_frees_goes_back_to_the_system(name):
    """That is jemalloc's task; glibc's malloc, which would be there without a word, keeps it."""
    if b"__asan_init" in pathlib.Path(harness.program(name)).read_bytes():
        pytest.skip("the sanitizer's malloc")
    shown = run(name, "--version", environment={"MALLOC_CONF": "stats_print:true"})
    assert "opt.background_thread: true (background_thread: true)" in shown.stderr
    assert re.search(r"opt\.dirty_decay_ms: 1000 ", shown.stderr), shown.stderr


@pytest.mark.parametrize("name", ["blockserve-block", "blockserve-token", "blockserve-gateway"])
def test_a_port_in_use_is_named(name):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        more = ["--block-services=127.0.0.1:1", "--token-services=127.0.0.1:1"]
        result = run(name, f"--model={harness.GOLDEN / 'concat_l4'}", f"--listen={address}",
                     *(more if "gateway" in name else []))
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert address in result.stderr.splitlines()[-1]
    if "gateway" not in name:  # told before a model is loaded
        assert len(result.stderr.splitlines()) == 1, result.stderr


def test_a_full_disk_under_the_output_is_a_failure():
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [harness.program("blockserve"), "tokenize", "--model=models/demo-block", "--text=a"],
            cwd=harness.ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "blockserve tokenize: standard output cannot be written\n"


def test_a_server_outlives_whoever_reads_its_log():
    """A broken pipe under the log ends no server."""
    address = f"127.0.0.1:{harness.free_port()}"
    server = subprocess.Popen(
        [harness.program("blockserve"), "serve", f"--model={harness.GOLDEN / 'concat_l4'}",
         f"--grpc-address={address}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert address in server.stdout.readline().decode()
        server.stdout.close()
        server.stderr.close()
        for _ in range(2):  # each leaves a line in the log
            run_json("generate", f"--server={address}", "--prompt-tokens=1", "--format=json")
        assert server.poll() is None
    finally:
        server.terminate()
        assert server.wait(harness.STOP_LIMIT_S) == 0


@pytest.mark.parametrize("command, arguments", [
    ("generate", ["--prompt-tokens=1"]), ("score", ["--prompt=a"]),
    ("tokenize", ["--text=a"]), ("detokenize", ["--tokens=1"])])
def test_a_server_that_is_not_there_is_named(command, arguments):
    # By the name that was typed: gRPC's own words have the address that it was looked up as.
    address = f"localhost:{harness.free_port()}"
    result = run("blockserve", command, f"--server={address}", *arguments)
    assert result.returncode == 1, (result.returncode, result.stderr)
    assert result.stderr.startswith(f"blockserve {command}: {address}: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("source", [f"--model={harness.DEMO_MODEL}", "--server=127.0.0.1:1"])
def test_a_file_that_is_no_text_is_refused_in_one_line(source, tmp_path):
    (tmp_path / "latin1").write_bytes(b"caf\xe9 noir")
    refused = run("blockserve", "tokenize", source, f"--file={tmp_path / 'latin1'}")
    assert refused.returncode == 2 and "is not valid UTF-8" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_text_that_is_too_long_for_one_message_is_refused_by_its_flag(tmp_path):
    (tmp_path / "long").write_bytes(b"a" * (16 << 20))
    refused = run("blockserve", "tokenize", "--server=127.0.0.1:1", f"--file={tmp_path}/long")
    assert refused.returncode == 2
    assert refused.stderr == (f"blockserve tokenize: --file {tmp_path}/long has 16777216 bytes; 16711680 are the "
                              "most that a server tokenizes as one text\n")


def with_memory(limit, name):
    """A program under `ulimit -v`. Not by preexec_fn: the child would be a copy of this process, gRPC in it, which may
    end it before the program begins."""
    return ["prlimit", f"--as={limit}", harness.program(name)]


def test_a_number_of_choices_that_nobody_takes_costs_no_memory(three_processes):
    source = three_processes("concat_l4", "server")
    refused = subprocess.run(
        [*with_memory(4 << 30, "blockserve"), "generate", *source, "--prompt-tokens=5",
         "--n=2000000000"],
        text=True, capture_output=True, timeout=120)
    assert refused.returncode == 2 and "--n: must be 1 to 64" in refused.stderr


def test_health_and_reflection_of_all_three_tiers(launcher):
    model = harness.GOLDEN / "concat_l4"
    block, token = launcher.block(model), launcher.token(model)
    gateway = launcher.gateway(model, [block], [token])
    services = {block: "BlockDecoder", token: "TokenDecoder", gateway: "Generation"}
    for server, service in services.items():
        server.wait_until_ready()
        with grpc.insecure_channel(server.address) as channel:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=60)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
            reflected = ProtoReflectionDescriptorDatabase(channel)
            assert f"blockserve.v1.{service}" in reflected.get_services()
            pool = descriptor_pool.DescriptorPool(reflected)
            assert pool.FindServiceByName(f"blockserve.v1.{service}").methods


def test_the_commit_in_the_programs_is_that_of_the_build_and_not_of_the_configuration(tmp_path):
    source, target = tmp_path / "version.cc.in", tmp_path / "version.cc"
    source.write_text("@PROJECT_VERSION@ @BLOCKSERVE_COMMIT@")
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}

    def git(*words):
        return subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=n@example.org", *words],
                              cwd=tmp_path, text=True, capture_output=True, check=True).stdout.strip()

    def written(commit=""):
        subprocess.run(["cmake", f"-DSOURCE={source}", f"-DTARGET={target}", "-DPROJECT_VERSION=1.2.3",
                        f"-DBLOCKSERVE_COMMIT={commit}", "-P",
                        str(harness.ROOT / "cmake" / "WriteVersion.cmake")],
                       cwd="/", env=environment, check=True)
        return target.read_text().strip()

    assert written() == "1.2.3 unknown"
    git("init", "-q")
    for change in ("one", "two"):
        git("commit", "-q", "--allow-empty", "-m", change)
        assert written() == f"1.2.3 {git('rev-parse', '--short=12', 'HEAD')}"
    # What is the same is not compiled again.
    at = target.stat().st_mtime_ns
    written()
    assert target.stat().st_mtime_ns == at
    assert written("abc") == "1.2.3 abc"


@pytest.mark.parametrize("program", ["blockserve serve", "blockserve-gateway", "blockserve-block",
                                     "blockserve-token"])
def test_a_server_may_have_as_many_connections_as_the_system_allows(launcher, program):
    """Not the 1024 that shells and systemd start programs with; 32,768 at most."""
    model = harness.GOLDEN / "concat_l4"
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        server = {"blockserve serve": lambda: launcher.serve(model),
                  "blockserve-gateway": lambda: launcher.gateway(
                      model, [], [], "--block-services=127.0.0.1:1",
                      "--token-services=127.0.0.1:1"),
                  "blockserve-block": lambda: launcher.block(model),
                  "blockserve-token": lambda: launcher.token(model)}[program]()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    server.wait_until_ready()
    raised = 32768 if hard == resource.RLIM_INFINITY else min(hard, 32768)
    assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (raised, hard)


def has_ipv6():
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_every_port_is_there_in_both_families(host, launcher):
    """Pods of a cluster may have IPv6 addresses alone."""
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    model = harness.GOLDEN / "concat_l4"
    ports = {flag: harness.free_port() for flag in ("--http-listen", "--health-listen", "--metrics-listen")}
    gateway = launcher.gateway(model, [], [], "--block-services=127.0.0.1:1", "--token-services=127.0.0.1:1",
                               *(f"{flag}={host}:{port}" for flag, port in ports.items()))
    gateway.wait_for_log("listening on")
    for flag, port in ports.items():
        for address in ("127.0.0.1", "::1"):
            try:
                socket.create_connection((address, port), timeout=10).close()
            except OSError as error:
                pytest.fail(f"{flag} {host}: {address}: {error}")


@pytest.mark.parametrize("program", ["blockserve-gateway", "blockserve-token"])
def test_a_program_that_ends_for_want_of_memory_says_so(program):
    """At any limit: which allocation, or thread, of which library is the one too many is chance."""
    arguments = [f"--model={harness.DEMO_MODEL}", "--listen=127.0.0.1:0"]
    if program == "blockserve-gateway":
        arguments += ["--block-services=127.0.0.1:1", "--token-services=127.0.0.1:1"]
    ends = set()
    for mib in range(80, 280, 10):
        with subprocess.Popen([*with_memory(mib << 20, program), *arguments], text=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as server:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if "listening on" in line:
                    server.terminate()
            ends.add(server.wait() == 0)
            said = re.search("no (memory|thread)|Cannot allocate memory", "".join(lines))
            assert said or server.returncode == 0, (mib, server.returncode, lines)
            # jemalloc's, each time that it tries to start a thread that it can do without.
            assert sum("background thread creation" in line for line in lines) < 100, (mib, lines[:3])
    assert False in ends
