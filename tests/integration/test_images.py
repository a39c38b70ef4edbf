"""The Containerfile and what is installed in its images. scripts/image_check builds and runs them; it takes
minutes, so these tests hold together what would make it fail."""

import functools
import os
import re
import subprocess

import harness
import pytest

TARGETS = {"gateway": 7070, "block": 7071, "token": 7072, "block-cuda": 7071, "token-cuda": 7072}
PROGRAMS = ["blockserve-gateway", "blockserve-block", "blockserve-token"]
# Of every Debian system.
ALWAYS_THERE = {"libc6", "libgcc-s1", "libstdc++6"}


def containerfile():
    return (harness.ROOT / "Containerfile").read_text(encoding="utf-8")


@functools.lru_cache
def stages():
    """Name -> (base, instructions)."""
    found = {}
    for part in re.split(r"(?m)^FROM ", containerfile())[1:]:
        head, _, rest = part.partition("\n")
        base, _, name = head.partition(" AS ")
        found[name.strip()] = (base.strip(), rest)
    return found


@functools.lru_cache
def runtime_packages():
    lines = (harness.ROOT / "scripts" / "runtime_packages.txt").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


@functools.lru_cache
def files_of(package):
    """Names of a package's files, without their folders."""
    result = subprocess.run(["dpkg", "-L", package], text=True, capture_output=True, check=False)
    if result.returncode != 0:
        pytest.skip(f"{package} is not installed here")
    return {os.path.basename(path) for path in result.stdout.splitlines()}


@functools.lru_cache
def linked_by(program):
    dynamic = subprocess.run(["readelf", "-d", harness.program(program)], text=True,
                             capture_output=True, check=True).stdout
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_library_that_a_program_links_is_in_the_list(program):
    there = set().union(*map(files_of, runtime_packages() | ALWAYS_THERE))
    assert linked_by(program) <= there


def test_nothing_in_the_list_is_unused():
    """Small images: no compiler, no headers, nothing that no program loads."""
    loaded = set()
    for program in PROGRAMS:
        shown = subprocess.run(["ldd", harness.program(program)], text=True, capture_output=True,
                               check=True).stdout
        loaded |= set(re.findall(r"(\S+) => ", shown))
    for package in runtime_packages():
        assert files_of(package) & loaded, package


@pytest.mark.parametrize("target, port", TARGETS.items())
def test_targets_are_not_root_have_labels_and_expose_their_ports(target, port):
    base, text = stages()[target]
    assert base == ("runtime-cuda" if target.endswith("-cuda") else "runtime")
    program = "blockserve-" + target.removesuffix("-cuda")
    assert f"/build/bin/{program} /usr/bin/" in text
    assert f'ENTRYPOINT ["/usr/bin/{program}"]' in text
    http = " 8080" if target == "gateway" else ""
    assert f"EXPOSE {port} 7080 7090{http}\n" in text
    assert f'image.title="blockserve-{target}"' in text
    assert re.findall(r"(?m)^USER (.*)$", stages()[base][1])[-1] == "65532:65532"
    assert "USER" not in text
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in stages()["runtime"][1]


def test_only_the_cuda_targets_need_cuda_and_the_gateway_has_none():
    assert "cuda" not in stages()["runtime"][1].lower()
    assert "gateway-cuda" not in stages()
    assert "BLOCKSERVE_CUDA=off" in stages()["build"][1]
    assert "BLOCKSERVE_CUDA=on" in stages()["build-cuda"][1]


def test_stages_that_are_copied_from_exist():
    for stage in re.findall(r"--from=(\S+)", containerfile()):
        assert stage in stages(), stage
    for base, _ in stages().values():
        assert base == "scratch" or base.startswith("${") or base in stages(), base
    for path in re.findall(r"(?m)^COPY (?!--from)(\S+) ", containerfile()):
        assert (harness.ROOT / path).exists(), path


def test_docker_podman_and_buildah_leave_out_the_same_files():
    """docker does not read .containerignore; podman and buildah read .dockerignore where there is no other."""
    assert not (harness.ROOT / ".containerignore").exists()
    lines = (harness.ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    left_out = {line for line in lines if line and not line.startswith("#")}
    assert {".git", "build*", "dist", "bench/results"} <= left_out
    folders = {folder.name for folder in harness.ROOT.iterdir() if (folder / "CMakeLists.txt").exists()}
    assert not {name for name in folders - {"tests"} if name in left_out}
    for path in re.findall(r"(?m)^COPY (?!--from)(\S+) ", containerfile()):
        assert path == "." or path.split("/")[0] not in left_out, path


def test_the_manifests_run_images_that_the_containerfile_makes():
    names = set()
    for path in (harness.ROOT / "k8s").rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        names |= set(re.findall(r"(?:image|newName|reference): (blockserve-[a-z-]+)", text))
    assert names == {"blockserve-" + name for name in (*TARGETS, "demo-model")}
