"""What the manifests of k8s/ ask of metrics: alerts, autoscalers, dashboards, and who may ask. The metrics are
those that the programs show."""

import json
import re
import shutil
import subprocess
import sys
import urllib.request

import grpc
import harness
import pytest
import yaml
from manifests import K8S, TIERS, arguments, asked_of, built, built_from, of_kind

METRIC = re.compile(r"\b(?:blockserve|process)_[a-z_]+\b")
# What prometheus-adapter makes of ours, by the name that it gives.
ADAPTER_RULES = K8S / "components" / "hpa" / "prometheus-adapter-rules.yaml"


@pytest.fixture(scope="module")
def metrics(launcher):
    """Tier -> names of the metrics that the program shows, labels included."""
    model = harness.GOLDEN / "concat_l4"
    ports = {tier: harness.free_port() for tier in TIERS}
    flag = {tier: f"--metrics-listen=127.0.0.1:{port}" for tier, port in ports.items()}
    block = launcher.block(model, flag["block"])
    token = launcher.token(model, flag["token"])
    gateway = launcher.gateway(model, [block], [token], flag["gateway"])
    client = launcher.connected_client(gateway, 1, 1)
    client.generate([1, 2, 3], max_tokens=8, ignore_eos=True)
    shown = {}
    for tier, port in ports.items():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
            shown[tier] = page.read().decode()
    return shown


def families(text):
    found = set()
    for name, kind in re.findall(r"(?m)^# TYPE (\S+) (\S+)$", text):
        found |= {name + end for end in ("_bucket", "_sum", "_count")} if (
            kind == "histogram") else {name}
    return found


def queries():
    """(where, PromQL) of everything that asks Prometheus."""
    for overlay in ("cpu", "keda"):
        for rule in (rule for d in of_kind(overlay, "PrometheusRule")
                     for group in d["spec"]["groups"] for rule in group["rules"]):
            yield rule["alert"], rule["expr"]
        for scaled in of_kind(overlay, "ScaledObject"):
            for trigger in scaled["spec"]["triggers"]:
                yield scaled["metadata"]["name"], trigger["metadata"]["query"]
    rules = yaml.safe_load(ADAPTER_RULES.read_text())["rules"]
    for rule in rules["custom"] + rules["external"]:
        yield "adapter", rule["seriesQuery"] + " " + rule["metricsQuery"]


def test_metrics_that_are_asked_for_exist(metrics):
    known = set().union(*map(families, metrics.values()))
    for where, query in queries():
        names = set(METRIC.findall(query))
        assert names or "kube_pod_" in query, (where, query)
        assert names <= known, (where, names - known)


def test_states_and_outcomes_that_are_asked_for_exist(metrics):
    everything = "\n".join(metrics.values())
    for state in ("used", "free", "cached"):
        assert re.search(rf'blockserve_block_kv_pages{{[^}}]*state="{state}"', everything)
    assert re.search(r'blockserve_gateway_requests_total{[^}]*outcome="ok"', everything)
    for reason in ("limit", "room"):
        assert re.search(rf'requests_refused_total{{[^}}]*reason="{reason}"', everything)


def test_outcomes_in_alerts_are_status_codes():
    codes = {code.name.lower() for code in grpc.StatusCode}
    asked = {outcome for _, query in queries()
             for outcomes in re.findall(r'outcome=~?"([^"]+)"', query)
             for outcome in outcomes.split("|")}
    assert "unavailable" in asked and asked <= codes


@pytest.mark.parametrize("overlay", ["cpu", "gpu", "keda"])
def test_what_prometheus_is_asked_is_of_one_namespace_which_it_names_once(overlay):
    for query in asked_of(built(overlay)):
        assert query.count('namespace="') == 1, query
        assert re.match(r'[^"]*\{namespace="blockserve"', query), query
        # The other operands are joined by it.
        others = [name for name, labels in re.findall(r"\b(blockserve_\w+)(\{[^}]*\})?", query)
                  if "namespace=" not in labels]
        assert not others or query.count("by (namespace") >= 2, query


def test_promtool_accepts_the_alerts(tmp_path):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    (rules,) = of_kind("cpu", "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules["spec"]))
    checked = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yaml")],
                             text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_autoscalers_ask_for_what_the_adapter_makes():
    rules = yaml.safe_load(ADAPTER_RULES.read_text())["rules"]
    made = {"Pods": set(), "External": set()}
    for kind, those in (("Pods", rules["custom"]), ("External", rules["external"])):
        for rule in those:
            if "name" in rule:
                made[kind].add(rule["name"]["as"])
            else:
                made[kind].add(METRIC.search(rule["seriesQuery"]).group())
    for hpa in of_kind("cpu", "HorizontalPodAutoscaler"):
        for metric in hpa["spec"]["metrics"]:
            name = metric[metric["type"].lower()]["metric"]["name"]
            assert name in made[metric["type"]], name


def test_each_tier_scales_on_its_own_signal():
    signals = {hpa["spec"]["scaleTargetRef"]["name"]: {
        metric[metric["type"].lower()]["metric"]["name"] for metric in hpa["spec"]["metrics"]}
               for hpa in of_kind("cpu", "HorizontalPodAutoscaler")}
    assert signals == {
        "blockserve-gateway": {"blockserve_gateway_streams"},
        "blockserve-block": {"blockserve_block_kv_used_ratio", "blockserve_block_busy_ratio"},
        "blockserve-token": {"blockserve_gateway_rows"},
    }


def test_hpa_keda_and_the_simulated_day_steer_to_the_same_number_of_rows():
    (hpa,) = [d["spec"] for d in of_kind("cpu", "HorizontalPodAutoscaler")
              if d["metadata"]["name"] == "blockserve-token"]
    (keda,) = [d["spec"] for d in of_kind("keda", "ScaledObject")
               if d["metadata"]["name"] == "blockserve-token"]
    simulated = subprocess.run(
        [sys.executable, str(harness.ROOT / "tools" / "simulate_autoscaler.py"), "--help"],
        text=True, capture_output=True, check=True).stdout
    target = hpa["metrics"][0]["external"]["target"]["averageValue"]
    assert keda["triggers"][0]["metadata"]["threshold"] == target
    shown = re.search(r"--target-rows TARGET_ROWS [^(]*\(default: (\d+)\)", " ".join(simulated.split()))
    assert shown.group(1) == target


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_token_tier_is_busy_at_twice_the_rows_that_the_scaler_steers_to(overlay):
    (target,) = [float(d["spec"]["metrics"][0]["external"]["target"]["averageValue"])
                 for d in of_kind(overlay, "HorizontalPodAutoscaler")
                 if d["metadata"]["name"] == "blockserve-token"]
    (expression,) = [rule["expr"] for d in of_kind(overlay, "PrometheusRule")
                     for group in d["spec"]["groups"] for rule in group["rules"]
                     if rule["alert"] == "BlockserveTokenTierBusy"]
    assert "blockserve_gateway_rows{" in expression
    assert float(expression.rsplit(">", 1)[1]) == 2 * target


def test_alerts_of_requests_count_neither_slow_readers_nor_limits_of_keys():
    expressions = {rule["alert"]: rule["expr"] for d in of_kind("cpu", "PrometheusRule")
                   for group in d["spec"]["groups"] for rule in group["rules"]}
    assert "aborted" not in expressions["BlockserveRequestsFail"]
    assert 'blockserve_gateway_requests_refused_total{namespace="blockserve",reason="room"}' in (
        expressions["BlockserveRequestsRefused"])


def test_a_crash_while_the_model_loads_is_seen_by_what_kubernetes_counts():
    """The metrics port opens after the model is loaded."""
    expressions = [query for _, query in queries()]
    assert any("kube_pod_container_status_restarts_total" in query for query in expressions)


def test_the_label_of_the_docs_is_put_on_what_prometheus_selects_by_it(tmp_path):
    text = (harness.ROOT / "docs" / "operations.md").read_text()
    (example,) = re.findall(r"(?s)```yaml\n(labels:.*?)```", text)
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "kustomization.yaml").write_text("resources: [k8s/overlays/cpu]\n" + example)
    labelled = built_from(tmp_path)
    found = [d for d in labelled if d["kind"] in ("ServiceMonitor", "PrometheusRule")]
    assert len(found) == 3
    assert all(d["metadata"]["labels"]["release"] == "kube-prometheus-stack" for d in found)
    # And on nothing that selects: a StatefulSet's selector cannot be changed afterwards.
    specs = {(d["kind"], d["metadata"]["name"]): d.get("spec") for d in labelled}
    assert specs == {(d["kind"], d["metadata"]["name"]): d.get("spec") for d in built("cpu")}


def test_grafana_is_given_the_dashboard():
    (given,) = of_kind("cpu", "ConfigMap")
    assert given["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = given["data"].values()
    assert json.loads(text)["title"] == "blockserve"


def test_prometheus_reaches_the_metrics_port_and_nothing_else():
    monitored = []
    for monitor in of_kind("cpu", "ServiceMonitor"):
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] == "metrics"
        # Every program of this overlay has a certificate, and shows metrics under it.
        assert endpoint["scheme"] == "https"
        assert endpoint["tlsConfig"]["serverName"] == monitor["metadata"]["name"]
        selector = monitor["spec"]["selector"]
        monitored += [selector["matchLabels"].get("app.kubernetes.io/component")] if (
            "matchExpressions" not in selector) else selector["matchExpressions"][0]["values"]
    assert sorted(monitored) == sorted(TIERS)
    for tier in TIERS:
        assert "--tls-cert" in arguments("cpu", tier)
        assert "--metrics-plaintext" not in arguments("cpu", tier)
    scraped = [service["metadata"]["name"] for service in of_kind("cpu", "Service")
               if "metrics" in [port["name"] for port in service["spec"]["ports"]]]
    assert sorted(scraped) == ["blockserve-block", "blockserve-gateway-metrics", "blockserve-token"]
    from_outside = [policy for policy in of_kind("cpu", "NetworkPolicy")
                    for rule in policy["spec"].get("ingress", [])
                    if not any("podSelector" in peer for peer in rule.get("from", []))]
    assert sorted(policy["metadata"]["name"] for policy in from_outside) == [
        "blockserve-gateway", "blockserve-metrics"]
