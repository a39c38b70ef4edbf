"""Two builds that compute other bits serve at the same time, as half-way through an upgrade: a call over HTTP has
the answer of one of them, in all of its parts, also when its stream is taken up again."""

import concurrent.futures
import contextlib
import json
import shutil
import signal

import harness
import http_tools
import pytest
from scraping import scrape

PROMPT = "Once upon a time"
OLD, NEW = "--arithmetic=f32", "--arithmetic=bf16"


class HalfUpgraded:
    """A gateway of one old worker of each tier; the new ones, which are more, come when they are asked for."""

    def __init__(self, launcher, model):
        self._launcher, self._model = launcher, model
        self._old = [launcher.block(model, OLD), launcher.token(model, OLD)]
        self._places = {tier: [harness.free_port(), harness.free_port()] for tier in ("block", "token")}
        self._port = harness.free_port()

        def addresses(tier, old):
            return ",".join([old.address, *(f"127.0.0.1:{port}" for port in self._places[tier])])

        self._gateway = launcher.start("blockserve-gateway", [
            f"--model={model}", f"--http-listen=127.0.0.1:{self._port}", "--max-starting-requests=1",
            "--tier-wait=2s", "--progress-bound=2m", "--metrics-listen=127.0.0.1:0",
            f"--block-services={addresses('block', self._old[0])}",
            f"--token-services={addresses('token', self._old[1])}"])
        self.client = launcher.connected_client(self._gateway, 1, 1)
        self.http = http_tools.HttpServer(self._gateway, self._port)

    def bring_new(self):
        for tier, ports in self._places.items():
            for port in ports:
                self._launcher.start(f"blockserve-{tier}", [f"--model={self._model}", "--threads=1", NEW], port=port)
        self._launcher.connected_client(self._gateway, 3, 3)

    @contextlib.contextmanager
    def frozen_block(self):
        process = self._old[0].process
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def wait_until_a_request_runs(self):
        harness.wait_until(lambda: scrape(self._gateway).value("blockserve_gateway_requests_starting") == 1,
                           "a request waits for its first block")

    def take_old_away(self):
        for server in self._old:
            server.stop()


@pytest.fixture
def deployment(tmp_path, demo_model):
    launcher = harness.Launcher(tmp_path)
    yield HalfUpgraded(launcher, demo_model)
    launcher.close()


def test_a_stream_is_taken_up_by_the_workers_that_began_it(deployment):
    fields = {"prompt": PROMPT, "max_tokens": 60, "ignore_eos": True, "n": 2, "seed": 3,
              "stream_options": {"include_event_id": True}}
    old = deployment.http.events(**fields)
    deployment.bring_new()
    assert deployment.http.events(**fields) != old, "new calls begin on the new workers, which are more"

    def resume(event_id):
        return deployment.http.request("POST", "/v1/completions", {**fields, "stream": True},
                                       {"Last-Event-ID": event_id})

    status, _, text = resume(old[40][0])
    assert status == 200, text
    for choice in range(2):
        texts = [[data["choices"][0]["text"] for _, data in part if data["choices"][0]["index"] == choice]
                 for part in (old[41:], list(http_tools.parse_events(text)))]
        assert texts[0] == texts[1]
    deployment.take_old_away()
    status, _, answer = resume(old[40][0])
    assert status == 412 and "is not served here" in answer["error"]["message"]


@pytest.mark.parametrize("echo", [False, True], ids=["prompts", "echo"])
def test_all_of_a_call_is_served_by_the_workers_of_its_first_part(deployment, echo):
    """Each prompt is a request of its own for the tiers, and so is the scoring of what is echoed. The first is held
    up in its block service, the others behind it, until most workers are new."""
    fields = {"prompt": [PROMPT, "The little dog", "Tom and Lily"], "max_tokens": 24, "ignore_eos": True, "seed": 5,
              "logprobs": 1, "echo": echo}
    old = deployment.http.complete(**fields)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with deployment.frozen_block():
            answer = pool.submit(deployment.http.complete, **fields)
            deployment.wait_until_a_request_runs()
            deployment.bring_new()
        across = answer.result()
    assert across["system_fingerprint"] == old["system_fingerprint"]
    assert across["choices"] == old["choices"]
    new = deployment.http.complete(**fields)
    assert new["system_fingerprint"] != old["system_fingerprint"] and new["choices"] != old["choices"]


def test_a_stream_is_not_taken_up_where_the_prompt_has_other_tokens(tmp_path, launcher, demo_model):
    """The same weights and tokenizer, and another chat format: neither the model's id nor the numeric ids tell."""
    block, token = launcher.block(demo_model), launcher.token(demo_model)
    gateways = []
    for name in ("Tom", "Lily and her friend"):
        folder = tmp_path / name
        shutil.copytree(demo_model, folder)
        (folder / "chat_format.json").write_text(json.dumps(
            {"roles": {"user": {"before": f"{name} said: ", "after": "\n"}}, "answer": "Mia said: "}))
        gateways.append(http_tools.gateway(launcher, folder, [block], [token], "--model-name=one"))
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "seed": 3,
            "stream_options": {"include_event_id": True}}
    events = gateways[0].events("/v1/chat/completions", **chat)

    def resume(gateway, **changed):
        return gateway.request("POST", "/v1/chat/completions", {**chat, "stream": True, **changed},
                               {"Last-Event-ID": events[9][0]})

    status, _, text = resume(gateways[0])
    assert status == 200
    assert [data["choices"] for _, data in http_tools.parse_events(text)] == [
        data["choices"] for _, data in events[10:]]
    for status, _, answer in (resume(gateways[1]),
                              resume(gateways[0], messages=[{"role": "user", "content": "Good night"}])):
        assert status == 412 and "other tokens" in answer["error"]["message"]
