"""The manifests of k8s/ as kustomize builds them, and what tests look up in them."""

import functools
import re
import shutil
import subprocess

import harness
import pytest
import yaml

K8S = harness.ROOT / "k8s"
OVERLAYS = ["cpu", "gpu", "dev", "keda", "second-model"]
TIERS = {"gateway": "Deployment", "block": "StatefulSet", "token": "Deployment"}
# Components, images with a model and the like came with kustomize 4; grpc probes and sleep need none.
OLDEST_KUBECTL = (1, 27)


@functools.lru_cache
def kustomize_command():
    if shutil.which("kubectl"):
        shown = subprocess.run(["kubectl", "version", "--client"], text=True, capture_output=True,
                               check=False).stdout
        version = re.search(r"v(\d+)\.(\d+)", shown)
        if version and tuple(map(int, version.groups())) >= OLDEST_KUBECTL:
            return ["kubectl", "kustomize"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return None


def namespace_of(overlay):
    return "blockserve-second" if overlay == "second-model" else "blockserve"


def built_from(folder):
    command = kustomize_command()
    if command is None:
        pytest.skip("neither kubectl from 1.27 on nor kustomize is installed")
    result = subprocess.run([*command, str(folder)], text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr.lower(), result.stderr
    return [document for document in yaml.safe_load_all(result.stdout) if document]


@functools.lru_cache
def built(overlay):
    return built_from(K8S / "overlays" / overlay)


def of_kind(overlay, *kinds):
    return [document for document in built(overlay) if document["kind"] in kinds]


def workload(overlay, tier):
    (found,) = [w for w in of_kind(overlay, "Deployment", "StatefulSet")
                if w["metadata"]["name"] == f"blockserve-{tier}"]
    assert found["kind"] == TIERS[tier]
    return found


def pod(overlay, tier):
    return workload(overlay, tier)["spec"]["template"]["spec"]


def container(overlay, tier):
    (only,) = pod(overlay, tier)["containers"]
    return only


def arguments(overlay, tier):
    """Flag -> value; every flag once."""
    pairs = [argument.split("=", 1) for argument in container(overlay, tier)["args"]]
    assert all(len(pair) == 2 and pair[0].startswith("--") for pair in pairs), pairs
    flags = dict(pairs)
    assert len(flags) == len(pairs), "a flag stands twice"
    return flags


def asked_of(documents):
    """What Prometheus is asked by rules and scalers."""
    for document in documents:
        if document["kind"] == "PrometheusRule":
            yield from (rule["expr"] for group in document["spec"]["groups"]
                        for rule in group["rules"])
        if document["kind"] == "ScaledObject":
            yield from (trigger["metadata"]["query"] for trigger in document["spec"]["triggers"])


every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
every_tier = pytest.mark.parametrize("tier", TIERS)
