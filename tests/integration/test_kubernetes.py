"""The manifests of k8s/: every overlay is built by kustomize, validated against Kubernetes' own schemas, and
whatever it names of ours (flags, ports, probes, files of secrets) is looked up in the programs."""

import json
import re
import shutil
import subprocess

import harness
import kubernetes_validate
import pytest
from manifests import (
    K8S, OVERLAYS, TIERS, arguments, asked_of, built, built_from, container, every_overlay, every_tier, namespace_of,
    of_kind, pod, workload,
)

# Kinds of other projects' operators: kubernetes-validate has no schema of them.
NOT_VALIDATED = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}


# ---- against Kubernetes

def newest_schemas():
    """The newest three minor versions that the package knows."""
    major, newest, _ = kubernetes_validate.latest_version().split(".")
    return [f"{major}.{minor}" for minor in range(int(newest), int(newest) - 3, -1)]


@pytest.mark.parametrize("version", newest_schemas())
@every_overlay
def test_every_object_is_valid_in_the_strictest_reading(overlay, version):
    skipped = set()
    for document in built(overlay):
        if document["kind"] in NOT_VALIDATED:
            skipped.add(document["kind"])
            continue
        kubernetes_validate.validate(document, version, strict=True)
    assert skipped <= NOT_VALIDATED


def test_custom_resources_that_are_not_validated_are_these():
    found = {document["kind"] for overlay in OVERLAYS for document in built(overlay)
             if not re.fullmatch(r"(\w+/)?v\d\w*|[a-z]+\.k8s\.io/.*", document["apiVersion"])}
    assert found == NOT_VALIDATED


def test_the_strict_reading_sees_a_field_that_does_not_exist():
    document = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"},
                "spec": {"clusterIp": "None"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, newest_schemas()[0], strict=True)


@every_overlay
def test_names_that_objects_refer_to_exist(overlay):
    documents = built(overlay)
    assert len({(d["kind"], d["metadata"]["name"]) for d in documents}) == len(documents)
    namespaces = {d["metadata"].get("namespace") for d in documents if d["kind"] != "Namespace"}
    assert namespaces == {namespace_of(overlay)}
    made = [d["metadata"]["name"] for d in of_kind(overlay, "Namespace")]
    assert made == [namespace_of(overlay)]
    accounts = {d["metadata"]["name"] for d in of_kind(overlay, "ServiceAccount")}
    labels = {tier: workload(overlay, tier)["spec"]["template"]["metadata"]["labels"]
              for tier in TIERS}

    def selected(selector):
        wanted = selector.get("matchLabels", selector if "matchExpressions" not in selector else {})
        return {tier for tier, have in labels.items()
                if all(have.get(k) == v for k, v in wanted.items()) and all(
                    have.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []))}

    for tier in TIERS:
        assert pod(overlay, tier)["serviceAccountName"] in accounts
        assert selected(workload(overlay, tier)["spec"]["selector"]) == {tier}
        for spread in pod(overlay, tier)["topologySpreadConstraints"]:
            assert selected(spread["labelSelector"]) == {tier}
    for service in of_kind(overlay, "Service"):
        (tier,) = selected(service["spec"]["selector"])
        ports = {p["name"]: p["containerPort"] for p in container(overlay, tier)["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    budgets = [selected(b["spec"]["selector"]) for b in of_kind(overlay, "PodDisruptionBudget")]
    assert sorted(map(tuple, budgets)) == [("block",), ("gateway",), ("token",)]
    for policy in of_kind(overlay, "NetworkPolicy"):
        tiers = selected(policy["spec"]["podSelector"])
        assert tiers
        for rule in policy["spec"].get("ingress", []):
            for port in rule["ports"]:
                for tier in tiers:
                    assert port["port"] in [p["name"] for p in container(overlay, tier)["ports"]]
    stateful = workload(overlay, "block")["spec"]["serviceName"]
    headless = {s["metadata"]["name"] for s in of_kind(overlay, "Service")
                if s["spec"].get("clusterIP") == "None"}
    assert {stateful, "blockserve-token"} <= headless


# ---- against the programs

def help_of(program):
    return subprocess.run([harness.program(program), "--helpfull"], text=True, capture_output=True,
                          check=True).stdout


def flags_of(program):
    return set(re.findall(r"(?m)^\s*(--[a-z-]+)", help_of(program)))


@every_overlay
@every_tier
def test_flags_exist_in_the_program(overlay, tier):
    assert arguments(overlay, tier).keys() <= flags_of(f"blockserve-{tier}")


@every_overlay
@every_tier
def test_variables_in_flags_are_set(overlay, tier):
    one = container(overlay, tier)
    known = {variable["name"] for variable in one.get("env", [])}
    used = set(re.findall(r"\$\((\w+)\)", " ".join(one["args"])))
    assert used <= known
    assert known <= used | {"POD_NAME"}


@every_overlay
@every_tier
def test_ports_are_those_that_the_flags_open(overlay, tier):
    flags, ports = arguments(overlay, tier), {
        port["name"]: port["containerPort"] for port in container(overlay, tier)["ports"]}
    opened = {int(value.rsplit(":", 1)[1]) for flag, value in flags.items()
              if flag.endswith(("-listen", "-address")) or flag == "--listen"}
    assert opened == set(ports.values())
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container(overlay, tier)[probe]["grpc"]["port"] == ports["health"]
        assert flags["--health-listen"].endswith(f":{ports['health']}")


@every_overlay
@every_tier
def test_why_a_container_has_failed_is_in_its_pod(overlay, tier):
    """The programs' last line says it, on standard error; nothing writes the file that is looked at by default."""
    assert container(overlay, tier)["terminationMessagePolicy"] == "FallbackToLogsOnError"


@every_tier
def test_on_a_laptop_images_that_are_there_are_used(tier):
    """An image without a tag is asked of a registry by default, each time a pod starts."""
    one = container("dev", tier)
    assert ":" not in one["image"] and one["imagePullPolicy"] == "IfNotPresent"


@every_overlay
def test_the_gateway_is_told_the_headless_services(overlay):
    services = {s["metadata"]["name"]: s["spec"] for s in of_kind(overlay, "Service")}
    for tier in ("block", "token"):
        name, port = arguments(overlay, "gateway")[f"--{tier}-services"].split(":")
        assert services[name]["clusterIP"] == "None"
        assert not services[name].get("publishNotReadyAddresses")
        assert int(port) in [p["port"] for p in services[name]["ports"]]
        assert arguments(overlay, tier)["--listen"].endswith(f":{port}")


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


@every_overlay
@every_tier
def test_the_grace_is_longer_than_the_drain(overlay, tier):
    """The tiers drain for 30 s at most and then close within 2; the gateway for its --drain-time."""
    drain = 32
    if tier == "gateway":
        drain = seconds(arguments(overlay, tier)["--drain-time"]) + 2
    before = container(overlay, tier).get("lifecycle", {}).get("preStop", {}).get("sleep", {})
    assert pod(overlay, tier)["terminationGracePeriodSeconds"] > drain + before.get("seconds", 0)


@every_overlay
def test_an_update_waits_until_gateways_have_found_the_new_pod(overlay):
    """A record's life (30 s where nobody changed it) and the gateways' --resolve-interval."""
    for tier in ("block", "token"):
        assert workload(overlay, tier)["spec"]["minReadySeconds"] > 30 + 2
    assert workload(overlay, "token")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@every_overlay
@every_tier
def test_pods_have_no_rights_that_they_do_not_need(overlay, tier):
    spec, one = pod(overlay, tier), container(overlay, tier)
    security = spec["securityContext"]
    assert security["runAsNonRoot"] and security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]}}
    assert spec["automountServiceAccountToken"] is False
    assert all(mount["readOnly"] for mount in one["volumeMounts"])
    assert {m["name"] for m in one["volumeMounts"]} == {v["name"] for v in spec["volumes"]}
    resources = one["resources"]
    assert {"cpu", "memory"} <= set(resources["requests"]) & set(resources["limits"])
    assert ("nvidia.com/gpu" in resources["limits"]) == (overlay == "gpu" and tier != "gateway")


@every_overlay
@every_tier
def test_files_named_by_flags_are_mounted(overlay, tier):
    spec, one = pod(overlay, tier), container(overlay, tier)
    mounts = {mount["mountPath"]: mount["name"] for mount in one["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    named = [value for value in arguments(overlay, tier).values() if value.startswith("/")]
    assert "/model" in named
    for path in named:
        (mount,) = [m for m in mounts if path == m or path.startswith(m + "/")]
        volume = volumes[mounts[mount]]
        if "secret" in volume:
            keys = {item["key"] for item in volume["secret"]["items"]}
            assert path.rsplit("/", 1)[1] in keys, path
    secrets = [m for m, name in mounts.items() if "secret" in volumes[name]]
    for mount in secrets:
        assert any(path.startswith(mount + "/") for path in named), f"{mount} is not used"


@every_overlay
def test_the_docs_make_every_secret_that_is_mounted(overlay):
    """With the keys that are mounted of it, and the type that the component asks for."""
    text = (harness.ROOT / "docs" / "operations.md").read_text()
    made = {name: (set(re.findall(r"--from-file (\S+)=", rest)), "kubernetes.io/tls" in rest)
            for name, rest in re.findall(r"(?m)^create (\S+)((?:.*\\\n)*.*)$", text)}
    mounted = {}
    for tier in TIERS:
        for volume in pod(overlay, tier)["volumes"]:
            if "secret" in volume:
                keys = {item["key"] for item in volume["secret"]["items"]}
                mounted.setdefault(volume["secret"]["secretName"], set()).update(keys)
    assert bool(mounted) == (overlay != "dev")
    for name, keys in mounted.items():
        assert f"| `{name}` |" in text
        assert keys <= made[name][0]
        assert made[name][1] == ("tls.crt" in keys)


# ---- scaling

@every_overlay
def test_every_tier_has_exactly_one_scaler_or_a_fixed_number(overlay):
    scalers = [(d["spec"]["scaleTargetRef"]["kind"], d["spec"]["scaleTargetRef"]["name"])
               for d in of_kind(overlay, "HorizontalPodAutoscaler", "ScaledObject")]
    assert len(set(scalers)) == len(scalers), "two scalers on one workload"
    for tier, kind in TIERS.items():
        scaled = (kind, f"blockserve-{tier}") in scalers
        assert scaled == (overlay != "dev")
        # The scaler owns the number: applying the manifest again must not reset it.
        assert ("replicas" in workload(overlay, tier)["spec"]) == (not scaled)
    assert len({d["kind"] for d in of_kind(
        overlay, "HorizontalPodAutoscaler", "ScaledObject")}) <= 1


def test_hpa_and_keda_scale_within_the_same_bounds_and_just_as_gently():
    keda = {d["spec"]["scaleTargetRef"]["name"]: d["spec"] for d in of_kind("keda", "ScaledObject")}
    hpas = {d["spec"]["scaleTargetRef"]["name"]: d["spec"]
            for d in of_kind("cpu", "HorizontalPodAutoscaler")}
    assert keda.keys() == hpas.keys() and len(keda) == 3
    for name, hpa in hpas.items():
        assert keda[name]["minReplicaCount"] == hpa["minReplicas"] >= 2
        assert keda[name]["maxReplicaCount"] == hpa["maxReplicas"]
        down = hpa["behavior"]["scaleDown"]
        assert down["stabilizationWindowSeconds"] >= 120
        assert keda[name]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"][
            "scaleDown"] == down
        assert len(keda[name]["triggers"]) == len(hpa["metrics"])


def test_a_keda_query_without_a_result_is_no_zero():
    """With KEDA's default a tier whose gateways are not scraped is scaled down to the least."""
    for scaled in of_kind("keda", "ScaledObject"):
        assert scaled["spec"]["fallback"]["replicas"] > scaled["spec"]["minReplicaCount"]
        for trigger in scaled["spec"]["triggers"]:
            assert trigger["type"] == "prometheus"
            assert trigger["metadata"]["ignoreNullValues"] == "false"


# ---- another model beside the first

def of_overlay_on(base, folder):
    """Documents of overlays/second-model, built on another overlay in a copy of k8s/."""
    shutil.copytree(K8S, folder / "k8s")
    overlay = folder / "k8s" / "overlays" / "second-model"
    text = (overlay / "kustomization.yaml").read_text()
    assert text.count("  - ../cpu\n") == 1
    (overlay / "kustomization.yaml").write_text(text.replace("  - ../cpu\n", f"  - ../{base}\n"))
    return built_from(overlay)


@pytest.mark.parametrize("base", ["cpu", "gpu", "keda"])
def test_a_second_model_shares_nothing_with_the_first(base, tmp_path):
    second = of_overlay_on(base, tmp_path)
    # A kind, a namespace and a name are one object: nothing of the first is written over.
    place = {(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in second}
    assert len(place) == len(second)
    assert not place & {(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"])
                        for d in built(base)}
    for document in second:
        # Selectors, claims, secrets and names of Services hold within a namespace; a full name would not.
        assert ".blockserve" not in json.dumps(document.get("spec", {})), document["metadata"]["name"]
    first = list(asked_of(built(base)))
    assert list(asked_of(second)) == [
        query.replace('namespace="blockserve"', 'namespace="blockserve-second"') for query in first]
    assert len(first) >= 14
    dashboards = [d for d in second if d["kind"] == "ConfigMap"]
    assert not dashboards, "two of one uid"


@every_overlay
def test_gateways_audit_a_small_share_so_that_a_bad_worker_is_found(overlay):
    flags = arguments(overlay, "gateway")
    assert 0 < float(flags["--audit-fraction"]) <= 0.01
    assert 0 < float(flags["--audit-context-fraction"]) <= 0.001
    assert "--audit-hold" not in flags


@every_overlay
def test_clients_reach_grpc_and_http_of_the_gateway_and_no_other_port_of_it(overlay):
    (service,) = [s["spec"] for s in of_kind(overlay, "Service")
                  if s["metadata"]["name"] == "blockserve-gateway"]
    (policy,) = [p["spec"] for p in of_kind(overlay, "NetworkPolicy")
                 if p["metadata"]["name"] == "blockserve-gateway"]
    (rule,) = policy["ingress"]
    assert "from" not in rule
    offered = {port["targetPort"]: port["port"] for port in service["ports"]}
    assert set(offered) == {port["port"] for port in rule["ports"]} == {"grpc", "http"}
    flags = arguments(overlay, "gateway")
    assert flags["--listen"] == f"0.0.0.0:{offered['grpc']}"
    assert flags["--http-listen"] == f"0.0.0.0:{offered['http']}"
