"""scripts/run_gpu_checks on a machine without a GPU: with programs that only pretend."""

import io
import json
import os
import shutil
import subprocess
import tarfile

import pytest

from harness import ROOT

TESTS = ("cuda_runtime_test cuda_matmul_test cuda_matmul_tiles_test cuda_row_kernels_test cuda_attention_test "
         "cuda_sample_test cuda_sampler_test engine_cuda_test engine_golden_cuda_test").split()
PRETENDED_TEST = """#!/bin/bash
if [[ -n "${NO_GPU:-}" ]]; then echo 'no CUDA device: no driver'; echo '[  SKIPPED ] 3 tests'; exit 0; fi
if [[ -n "${EARLY_FAILS:-}" && "$*" != *filter=-*EarlyLaunch* ]]; then echo '[  FAILED  ] 1 test'; exit 1; fi
echo '[  PASSED  ] 3 tests.'
"""
PRETENDED_BENCH = """#!/bin/bash
[[ "$1" == --version ]] && { echo 'blockserve-bench 0'; exit 0; }
echo "$@" >&2
if [[ -n "${HANGS:-}" && "$*" == *--tiers* ]]; then
  bash -c 'trap "" TERM; while :; do sleep 1; done' &   # a server that drains for ever
  echo $! >"$HANGS"
  wait
fi
if [[ -n "${NO_ALGORITHM:-}" && "$*" != *cuda-bf16-own* ]]; then
  echo 'cuBLASLt has no algorithm for products of up to 16384 rows, k = 768' >&2; exit 1
fi
printf '{\\n "output_tokens_per_s": 100.5,\\n "p50_ms": 0.5,\\n "share_of_peak": 0.25,\\n "share_of_bandwidth": 0.5\\n}\\n'
"""
PRETENDED_MODEL = """#!/bin/bash
mkdir -p "${@: -1}"
"""
PRETENDED_NCU = """#!/bin/bash
if [[ -n "${NO_COUNTERS:-}" ]]; then echo '==ERROR== LibraryNotLoaded' >&2; exit 9; fi
echo "libraries of ncu: ${LD_LIBRARY_PATH:-none}"
while [[ "$1" != env ]]; do shift; done
"$@"
"""


@pytest.fixture
def bundle(tmp_path):
    if shutil.which("xz") is None:
        pytest.skip("xz is not on this machine")

    def make(library):
        files = {f"bin/{name}": PRETENDED_TEST for name in TESTS}
        files |= {"bin/blockserve-bench": PRETENDED_BENCH, "bin/blockserve-random-model": PRETENDED_MODEL,
                  "bin/cuda_kernel_benchmark": "#!/bin/bash\necho \"Gelu 4.6 ${1:-} $LD_LIBRARY_PATH\"\n", "lib/none": "",
                  "cublaslt_name": library + "\n"}
        with tarfile.open(tmp_path / "payload.tar.xz", "w:xz") as tar:
            for name, text in files.items():
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(text), 0o755
                tar.addfile(info, io.BytesIO(text.encode()))
        (tmp_path / "xz").mkdir()
        (tmp_path / "xz/xz").symlink_to(shutil.which("xz"))
        (tmp_path / "tmp").mkdir()
        (tmp_path / "tools").mkdir()
        (tmp_path / "tools/ncu").write_text(PRETENDED_NCU)
        (tmp_path / "tools/ncu").chmod(0o755)
        shutil.copy(ROOT / "scripts/run_gpu_checks", tmp_path)

    def run(*arguments, **environment):
        variables = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), **environment}
        variables["PATH"] = f"{tmp_path / 'tools'}:{variables['PATH']}"
        result = subprocess.run([tmp_path / "run_gpu_checks", *arguments], text=True, capture_output=True, timeout=100,
                                env=variables)
        report = json.loads((tmp_path / "results/results.json").read_text())
        parts = {part["name"]: part for part in (*report["checks"], *report["benchmarks"])}
        return result, parts

    # What the loader has everywhere stands for cuBLASLt.
    make("libc.so.6")
    run.folder = tmp_path
    return run


def test_all_parts_run_the_first_first_and_leave_few_files(bundle):
    result, parts = bundle("--budget", "300")
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(part["result"] == "ok" for name, part in parts.items() if "sanitizer" not in name), parts
    shown = result.stdout
    assert (shown.index("engine_golden_cuda_test") < shown.index("cuda_sampler_test") <
            shown.index("85m_128_2048_groups_at_2048") < shown.index("85m_gateway_by_16_groups_2_rows_1024") <
            shown.index("engine_cuda_test ") < shown.index("counters_85m") < shown.index("vanilla160") <
            shown.index("engine_golden_cuda_test (early)") < shown.index("85m_128_512_at_1_own_early"))
    assert parts["85m_gateway_by_1_groups_2_rows_2048"]["report"]["output_tokens_per_s"] == 100.5
    written = {path.name for path in (bundle.folder / "results").iterdir()}
    assert written <= {"results.json", "table.txt", "logs.txt", "device.log", "counters.txt"}
    assert "--tiers --layouts one" in (bundle.folder / "results/logs.txt").read_text()
    # Nothing lies beside the bundle, and what was unpacked is there for the next call.
    assert {path.name for path in bundle.folder.iterdir()} == {"payload.tar.xz", "xz", "tmp", "tools", "run_gpu_checks",
                                                             "results"}
    assert [path.name for path in (bundle.folder / "tmp").glob("*/*")] == ["unpacked"]


def test_a_profiler_keeps_the_machines_libraries_and_its_failure_is_none_of_ours(bundle):
    result, parts = bundle("--only", "counters", LD_LIBRARY_PATH="/of/the/machine")
    assert result.returncode == 0 and parts["counters_85m"]["result"] == "ok", result.stdout
    counters = (bundle.folder / "results/counters.txt").read_text()
    assert "libraries of ncu: /of/the/machine\n" in counters
    assert "Gelu 4.6 --once" in counters and "unpacked/lib:/of/the/machine" in counters
    result, parts = bundle("--only", "counters", NO_COUNTERS="1")
    assert result.returncode == 0
    assert parts["counters_85m"] == {"name": "counters_85m", "result": "not run",
                                     "reason": "ncu: ERROR LibraryNotLoaded"}


def test_early_launches_fail_by_themselves(bundle):
    # Every test whose early launches are not left out, and so none before their own part.
    result, _ = bundle("--only", "tests", EARLY_FAILS="1")
    assert result.returncode == 0, result.stdout
    result, parts = bundle("--only", "early", EARLY_FAILS="1")
    assert result.returncode == 1
    assert {name: part["result"] for name, part in parts.items()} == {
        "cuda_runtime_test (early)": "FAILED", "engine_golden_cuda_test (early)": "FAILED",
        "85m_128_512_at_1_early": "ok", "85m_128_512_at_1_own_early": "ok", "85m_128_2048_groups_early_at_2048": "ok"}
    assert "--early-launch" in (bundle.folder / "results/logs.txt").read_text()


def test_where_cublaslt_refuses_a_product_own_ones_are_measured(bundle):
    result, parts = bundle("--only", "benchmarks", NO_ALGORITHM="1")
    assert result.returncode == 1
    figure = parts["85m_128_2048_groups_at_2048"]
    assert figure["result"].startswith("with cuda-bf16-own: cuBLASLt has no algorithm for products of up to 16384 rows")
    assert figure["report"]["output_tokens_per_s"] == 100.5


def test_without_a_gpu_every_part_is_told_as_not_run(bundle):
    result, parts = bundle(NO_GPU="1")
    assert result.returncode == 3 and "no GPU that can be used: no driver" in result.stderr
    assert {part["result"] for part in parts.values()} == {"not run"}


def test_without_cublaslt_what_needs_none_runs(bundle):
    bundle("--only", "sanitizer")  # unpacks it
    unpacked = next((bundle.folder / "tmp").glob("*/unpacked"))
    (unpacked / "cublaslt_name").write_text("libof-no-machine.so.1\n")
    result, parts = bundle()
    assert result.returncode == 5 and "there is no libof-no-machine.so.1" in result.stderr
    ran = {name for name, part in parts.items() if part["result"] == "ok"}
    assert {"cuda_attention_test", "engine_golden_cuda_test (*GoldenOfOwnProducts*)", "85m_128_512_at_1_own"} <= ran
    assert not {"cuda_matmul_test", "engine_golden_cuda_test", "85m_128_2048_at_2048"} & ran


def test_what_hangs_is_ended_with_the_servers_that_it_started(bundle, tmp_path):
    server = tmp_path / "tmp/server"
    result, parts = bundle("--only", "benchmarks", "--budget", "15", HANGS=str(server))
    assert result.returncode == 1
    assert parts["85m_gateway_by_1_groups_2_rows_1024"]["reason"].startswith("stopped after")
    assert not alive(int(server.read_text()))


def alive(process):
    try:
        with open(f"/proc/{process}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
