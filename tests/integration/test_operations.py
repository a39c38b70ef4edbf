"""docs/operations.md and the calculator that it names, against the programs."""

import json
import re
import subprocess

import harness
import pytest
import size_deployment
import yaml

PAGE = (harness.ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["concat_l4", "widths_differ_l8", "vanilla"])
def test_the_calculator_knows_the_kv_of_a_token(folder):
    shown = json.loads(subprocess.run(
        [harness.program("blockserve"), "inspect", f"--model={harness.GOLDEN / folder}",
         "--format=json"], text=True, capture_output=True, check=True).stdout)
    model = size_deployment.Model.load(harness.GOLDEN / folder)
    for arithmetic in ("f32", "bf16"):
        value_bytes = size_deployment.KV_BYTES[arithmetic]
        assert model.kv_bytes_per_block(value_bytes) / model.block_length == (
            shown["kv_bytes_per_token"][arithmetic])


def test_the_calculator_reads_what_the_bench_writes(tmp_path, capsys):
    model = f"--model={harness.GOLDEN / 'concat_l4'}"
    result = subprocess.run(
        [harness.program("blockserve-bench"), model, "--prompt=16", "--generate=16",
         "--sequences=2", "--format=json"], text=True, capture_output=True, check=True).stdout
    (tmp_path / "bench.json").write_text(result)
    status = size_deployment.main([
        model, f"--bench={tmp_path / 'bench.json'}", "--prompt=16", "--output=16",
        "--requests-per-s=1", "--format=json"])
    assert status == 0
    sized = json.loads(capsys.readouterr().out)
    assert 0 < sized["token"]["busy_workers"] < 1 and 0 < sized["block"]["busy_replicas"] < 1


def test_the_page_has_every_alert_and_no_other():
    rules = yaml.safe_load((harness.ROOT / "k8s/components/monitoring/alerts.yaml").read_text())
    alerts = {rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]}
    assert set(re.findall(r"`(Blockserve\w+)`", PAGE)) == alerts


def test_the_page_has_every_overlay_and_the_graces_of_the_manifests():
    overlays = {path.name for path in (harness.ROOT / "k8s" / "overlays").iterdir()}
    assert set(re.findall(r"(?m)^\| `([\w-]+)` \| (?:a cluster|production)", PAGE)) == overlays
    for tier, grace in re.findall(r"(?m)^\| (gateway|block|token) \|[^|]*\| (\d+) s", PAGE):
        manifest = (harness.ROOT / "k8s" / "base" / f"{tier}.yaml").read_text()
        assert f"terminationGracePeriodSeconds: {grace}\n" in manifest


def test_services_of_the_health_port_are_those_of_the_code():
    header = (harness.ROOT / "rpc" / "health_server.h").read_text(encoding="utf-8")
    services = set(re.findall(r'Service\[\] = "(\w+)"', header))
    assert services == set(re.findall(r"(?m)^\| `(startup|readiness|liveness)`", PAGE))
