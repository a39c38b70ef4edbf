"""The Python package as its users have it: a source distribution, and the wheel that is built of it,
installed into an environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import harness
import pytest

PACKAGE = harness.ROOT / "client" / "python"


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], text=True, capture_output=True,
                          check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Unpacked where no checkout is around it."""
    folder = tmp_path_factory.mktemp("source")
    run(sys.executable, "-c",
        f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})", cwd=PACKAGE)
    (built,) = folder.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        archive.extractall(folder)
    (unpacked,) = folder.glob("*/")
    return unpacked


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # No protoc, no plugin: who installs a source distribution may have none.
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index",
        "--wheel-dir", folder, source, env={"PATH": "/nonexistent"})
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of an environment that has the wheel. gRPC and protobuf are those of the
    tests' own environment, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("scratch")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    with open(f"{site}/of_the_tests.pth", "w", encoding="utf-8") as paths:
        paths.write(sysconfig.get_path("purelib") + "\n")
    return python


def test_where_no_protoc_is_there_a_build_asks_for_grpcio_tools(tmp_path):
    checkout = tmp_path / "checkout"
    for folder in ("client/python", "proto"):
        shutil.copytree(harness.ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("*_pb2*", "*.egg-info", "build"))
    hooks = ("import build_backend as b; print(b.get_requires_for_build_wheel(), b.get_requires_for_build_sdist(), "
             "b.get_requires_for_build_editable())")

    def asked(path):
        return run(sys.executable, "-c", hooks, cwd=checkout / "client/python", env={"PATH": path}).count("grpcio-tools")

    assert asked("/nonexistent") == 3 and asked(os.environ["PATH"]) == 0
    # Away from its checkout it cannot be built, and says so.
    shutil.rmtree(checkout / "proto")
    failed = subprocess.run([sys.executable, "generate_stubs.py"], cwd=checkout / "client/python", text=True,
                            capture_output=True, check=False)
    assert failed.returncode == 1 and "build from a whole checkout" in failed.stderr


def test_the_wheel_holds_stubs_and_types(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("client.py", "aio.py", "py.typed", "v1/generation_pb2.py", "v1/generation_pb2.pyi",
                 "v1/generation_pb2_grpc.py"):
        assert f"blockserve/{name}" in names
    assert not [name for name in names if "test" in name]


@pytest.fixture(scope="module")
def server(demo_model, launcher):
    return launcher.serve(demo_model).wait_until_ready()


def test_the_examples_run_with_the_installed_package(python, server, tmp_path):
    where = run(python, "-c", "import blockserve; print(blockserve.__file__)", cwd=tmp_path)
    assert str(python.parent.parent) in where
    text = run(python, PACKAGE / "examples" / "generate.py", "The little dog", server.address,
               cwd=tmp_path)
    assert len(text.strip()) > 20
    lines = run(python, PACKAGE / "examples" / "many.py", server.address, "One day", "The sun",
                cwd=tmp_path)
    assert lines.startswith("One day") and "\nThe sun" in lines


def test_the_cpp_example_runs(server):
    """Also built against the installed library, by tests/install."""
    example = harness.PROGRAMS / "blockserve_example_generate"
    assert len(run(example, server.address, "The little dog").strip()) > 20


def test_what_quickstart_prints_runs(python, server, tmp_path):
    text = (harness.ROOT / "scripts" / "quickstart").read_text()
    snippet = re.search(r"(?ms)<<'PYTHON'\n(.*?)^PYTHON$", text).group(1)
    assert run(python, "-c", snippet.replace("$address", server.address), cwd=tmp_path).strip()
