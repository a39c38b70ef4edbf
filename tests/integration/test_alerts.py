"""The alerts, played through by Prometheus' own promtool: each fires in its case with the words that whoever is
woken reads, not before its time, and none while all is well."""

import shutil
import subprocess

import harness
import pytest
import yaml

RULES = harness.ROOT / "k8s" / "components" / "monitoring" / "alerts.yaml"
HERE = 'namespace="blockserve"'
POD = f'{HERE},pod="gateway-0"'

# What a deployment under some load tells, a sample a minute: two gateways' worth of requests, half a
# batch for each of the two token workers.
WELL = {
    f"blockserve_gateway_streams{{{POD}}}": "40+0x60",
    f'blockserve_block_busy_ratio{{{HERE},pod="block-0"}}': "0.5+0x60",
    f'blockserve_token_busy_ratio{{{HERE},pod="token-0"}}': "1+0x60",
    f'blockserve_token_busy_ratio{{{HERE},pod="token-1"}}': "1+0x60",
    f'blockserve_gateway_workers{{{POD},tier="block"}}': "1+0x60",
    f'blockserve_gateway_workers{{{POD},tier="token"}}': "2+0x60",
    f"blockserve_gateway_rows{{{POD}}}": "48+0x60",
    f'blockserve_gateway_requests_total{{{POD},method="generate",outcome="ok"}}': "0+600x60",
    f'blockserve_gateway_requests_total{{{POD},method="generate",outcome="cancelled"}}': "0+60x60",
    f'blockserve_gateway_requests_total{{{POD},method="generate",outcome="unavailable"}}': "0+1x60",
    # Whoever comes with a wrong key or nonsense, however often, is not counted in the shares below.
    f'blockserve_gateway_requests_total{{{POD},method="generate",outcome="unauthenticated"}}': "0+60000x60",
    f'blockserve_gateway_requests_total{{{POD},method="score",outcome="invalid_argument"}}': "0+60000x60",
    f'blockserve_gateway_requests_refused_total{{{POD},reason="limit"}}': "0+600x60",
    f'blockserve_gateway_requests_refused_total{{{POD},reason="room"}}': "0+6x60",
    f'blockserve_gateway_time_to_first_token_seconds_bucket{{{POD},le="1"}}': "0+600x60",
    f'blockserve_gateway_time_to_first_token_seconds_bucket{{{POD},le="5"}}': "0+600x60",
    f'blockserve_gateway_time_to_first_token_seconds_bucket{{{POD},le="+Inf"}}': "0+600x60",
    f'blockserve_block_kv_pages{{{HERE},pod="block-0",state="used"}}': "600+0x60",
    f'blockserve_block_kv_pages{{{HERE},pod="block-0",state="free"}}': "100+0x60",
    f'blockserve_block_kv_pages{{{HERE},pod="block-0",state="cached"}}': "300+0x60",
    f"process_start_time_seconds{{{POD}}}": "1000+0x60",
    f"kube_pod_container_status_restarts_total{{{POD}}}": "3+0x60",
    f"blockserve_gateway_workers_condemned_total{{{POD}}}": "0+0x60",
    f'blockserve_build_info{{{POD},commit="a"}}': "1+0x60",
}

# Of each alert: what is then told in place of the above (None: nothing), a minute at which it does not fire
# yet, one at which it does, and its labels and words.
CASES = {
    "BlockserveGatewayGone": (
        {f"blockserve_gateway_streams{{{POD}}}": "40+0x9 _x50"}, 14, 20,
        {"namespace": "blockserve", "severity": "critical"}, "No gateway is scraped. Nobody is served."),
    "BlockserveBlockTierGone": (
        {f'blockserve_block_busy_ratio{{{HERE},pod="block-0"}}': None}, 0, 2,
        {"namespace": "blockserve", "severity": "critical"},
        "No block replica is scraped. Requests end UNAVAILABLE after the tier wait."),
    "BlockserveTokenTierGone": (
        {f'blockserve_token_busy_ratio{{{HERE},pod="token-{i}"}}': None for i in range(2)}, 0, 2,
        {"namespace": "blockserve", "severity": "critical"},
        "No token worker is scraped. Requests end UNAVAILABLE after the tier wait."),
    "BlockserveTierUnusable": (
        {f'blockserve_gateway_workers{{{POD},tier="token"}}': "2 2 2 2 2 0x50"}, 5, 7,
        {"namespace": "blockserve", "severity": "critical", "tier": "token"},
        "No gateway has a worker of the token tier that takes work. Requests end UNAVAILABLE."),
    "BlockserveRequestsFail": (
        {f'blockserve_gateway_requests_total{{{POD},method="generate",outcome="unavailable"}}': "0+30x60"},
        4, 20, {"namespace": "blockserve", "severity": "critical"},
        "4.348% of the requests fail for reasons of ours."),
    "BlockserveRequestsRefused": (
        {f'blockserve_gateway_requests_refused_total{{{POD},reason="room"}}': "0+66.1x60"}, 9, 20,
        {"namespace": "blockserve", "severity": "critical"},
        "10% of the requests are refused for want of room, and scaling out does not help."),
    "BlockserveFirstTokenSlow": (
        {f'blockserve_gateway_time_to_first_token_seconds_bucket{{{POD},le="1"}}': "0+300x60"}, 9, 20,
        {"namespace": "blockserve", "severity": "warning"},
        "One request in a hundred waits 4.92s or longer for its first token."),
    "BlockserveTokenTierBusy": (
        {f"blockserve_gateway_rows{{{POD}}}": "120+0x60"}, 9, 11,
        {"namespace": "blockserve", "severity": "warning"},
        "Token workers have 60 rows each; the scaler is at its bound or has no nodes."),
    "BlockserveBlockTierBusy": (
        {f'blockserve_block_busy_ratio{{{HERE},pod="block-0"}}': "0.95+0x60"}, 9, 11,
        {"namespace": "blockserve", "severity": "warning"},
        "Block replicas are 95% busy; the scaler is at its bound or has no nodes."),
    "BlockserveKvFull": (
        {f'blockserve_block_kv_pages{{{HERE},pod="block-0",state="used"}}': "9600+0x60"}, 9, 11,
        {"namespace": "blockserve", "severity": "warning"},
        "Sequences hold 96% of the KV pages; new ones wait."),
    "BlockserveRestarts": (
        {f"process_start_time_seconds{{{POD}}}": "1000x9 2000x4 3000x4 4000x40"}, 15, 22,
        {"namespace": "blockserve", "pod": "gateway-0", "severity": "warning"},
        "gateway-0 has started 3 times in half an hour."),
    "BlockserveCrashLoop": (
        {f"kube_pod_container_status_restarts_total{{{POD}}}": "3+0x29 3+1x30"}, 30, 40,
        {"namespace": "blockserve", "pod": "gateway-0", "severity": "warning"},
        "gateway-0 has been restarted 10 times in half an hour."),
    "BlockserveWorkerCondemned": (
        {f"blockserve_gateway_workers_condemned_total{{{POD}}}": "0x9 1x50"}, 9, 12,
        {"namespace": "blockserve", "pod": "gateway-0", "severity": "warning"},
        "A worker has computed wrong bits and is shut out by gateway-0."),
    "BlockserveSeveralBuilds": (
        {f'blockserve_build_info{{{HERE},pod="gateway-1",commit="b"}}': "1+0x200",
         f'blockserve_build_info{{{POD},commit="a"}}': "1+0x200"}, 119, 121,
        {"namespace": "blockserve", "severity": "warning"},
        "2 builds serve beside one another; an upgrade has stopped half-way."),
}


def names():
    (group,) = yaml.safe_load(RULES.read_text())["spec"]["groups"]
    return [rule["alert"] for rule in group["rules"]]


def told(changes):
    return [{"series": series, "values": values}
            for series, values in {**WELL, **changes}.items() if values is not None]


def play(tmp_path, *tests):
    if shutil.which("promtool") is None:
        pytest.skip("promtool (of Debian's package prometheus) is not installed")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(yaml.safe_load(RULES.read_text())["spec"]))
    (tmp_path / "played.yaml").write_text(yaml.safe_dump(
        {"rule_files": ["rules.yaml"], "evaluation_interval": "1m",
         "tests": [{"interval": "1m", **test} for test in tests]}))
    played = subprocess.run(["promtool", "test", "rules", "played.yaml"], cwd=tmp_path, text=True,
                            capture_output=True, check=False)
    assert played.returncode == 0, played.stdout + played.stderr


def test_every_alert_has_a_case():
    assert sorted(CASES) == sorted(names())


def test_none_fires_while_all_is_well(tmp_path):
    play(tmp_path, {"input_series": told({}),
                    "alert_rule_test": [{"eval_time": f"{minute}m", "alertname": name}
                                        for name in names() for minute in (5, 20, 59)]})


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_in_its_case_and_not_before_its_time(name, tmp_path):
    changes, quiet, fires, labels, words = CASES[name]
    play(tmp_path, {"input_series": told(changes), "alert_rule_test": [
        {"eval_time": f"{quiet}m", "alertname": name},
        {"eval_time": f"{fires}m", "alertname": name,
         "exp_alerts": [{"exp_labels": labels, "exp_annotations": {"summary": words}}]}]})
