"""Rolling upgrades under load: no request fails, none sees another token, and none is served by the parts of
two models."""

import pathlib
import random
import re
import shutil
import subprocess
import sys

import blockserve
import harness
import pytest
from answers import ask
from scraping import scrape
from steady_load import SteadyLoad

sys.path.append(str(harness.ROOT / "tools"))
import safetensors_io  # noqa: E402

MODEL = harness.GOLDEN / "concat_l4"
VOCAB = 512
CLIENTS = 6
METRICS = "--metrics-listen=127.0.0.1:0"


def make_requests(count):
    """Long enough that a process is replaced in the middle of some."""
    draw = random.Random(3)
    return [{
        "prompt": [draw.randrange(1, VOCAB) for _ in range(draw.choice((1, 5, 17, 40)))],
        "max_tokens": draw.randrange(120, 200), "ignore_eos": True, "logprobs": 0,
        "seed": draw.getrandbits(64), "temperature": 0.0 if index % 3 == 0 else 0.9,
        "alignment": ("end", "start", "none")[index % 3], "n": 2 if index % 4 == 0 else 1,
    } for index in range(count)]


def commit_of(program):
    shown = subprocess.run([program, "--version"], text=True, capture_output=True, check=True).stdout
    return re.search(r"commit (\w+)", shown).group(1)


@pytest.fixture
def other_build(tmp_path):
    """The same programs with another commit in them."""
    folder = tmp_path / "other"
    folder.mkdir()
    for name in ("blockserve-gateway", "blockserve-block", "blockserve-token"):
        program = pathlib.Path(harness.program(name))
        commit = commit_of(program)
        text = program.read_bytes()
        assert text.count(commit.encode()) == 1
        copy = folder / name
        copy.write_bytes(text.replace(commit.encode(), commit[::-1].upper().encode()))
        copy.chmod(0o755)
        assert commit_of(copy) == commit[::-1].upper() != commit
    return folder


@pytest.fixture
def other_model(tmp_path):
    """Weights of the same shapes: of each part one matrix has its rows in the opposite order."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    path = folder / "model.safetensors"
    reader = safetensors_io.Reader(path)
    data = bytearray(path.read_bytes())
    for name in ("block_decoder.gpt_neox.layers.0.mlp.dense_h_to_4h.weight",
                 "token_decoder.embed_out.weight"):
        begin, end = (reader.base + offset for offset in reader.entries[name]["data_offsets"])
        size = (end - begin) // reader.shape(name)[0]
        rows = [data[at:at + size] for at in range(begin, end, size)]
        data[begin:end] = b"".join(reversed(rows))
    path.write_bytes(data)
    return folder


class Cluster:
    """Two gateways, and workers that are replaced at their addresses."""

    def __init__(self, launcher, model, blocks, tokens):
        self.launcher = launcher
        self.blocks = [launcher.block(model, f"--name=block-{i}", METRICS) for i in range(blocks)]
        self.tokens = [launcher.token(model, f"--name=token-{i}") for i in range(tokens)]
        self.gateways = [launcher.gateway(model, self.blocks, self.tokens) for _ in range(2)]
        # As people use it: with both addresses, and with retries.
        self.client = blockserve.Client([gateway.address for gateway in self.gateways], timeout=120)
        self._clients = [blockserve.Client(gateway.address, timeout=120)
                         for gateway in self.gateways]
        self.wait_until_connected()

    def close(self):
        for client in (self.client, *self._clients):
            client.close()

    def wait_until_connected(self):
        """Each gateway to every worker."""
        for gateway, client in zip(self.gateways, self._clients):
            gateway.wait_until_ready()

            def connected():
                model = client.model()
                return (model.block_services, model.token_workers) == (
                    len(self.blocks), len(self.tokens))

            harness.wait_until(connected, "a gateway is connected to every worker")

    def replace(self, tier, index, model, programs=None):
        """SIGTERM, exit status 0, and another process at the same address, connected to both gateways."""
        group = {"block": self.blocks, "token": self.tokens, "gateway": self.gateways}[tier]
        old = group[index]
        old.stop()
        port = int(old.address.rsplit(":", 1)[1])
        name = f"blockserve-{tier}"
        program = str(programs / name) if programs else name
        flags = [f"--model={model}"]
        if tier == "gateway":
            flags += ["--block-services=" + ",".join(server.address for server in self.blocks),
                      "--token-services=" + ",".join(server.address for server in self.tokens)]
        else:
            flags += ["--threads=1", f"--name=new-{tier}-{index}"]
            flags += [METRICS] if tier == "block" else []
        group[index] = self.launcher.start(program, flags, port=port)
        self.wait_until_connected()


@pytest.fixture
def cluster_of(tmp_path):
    launcher = harness.Launcher(tmp_path)
    made = []

    def make(*arguments):
        made.append(Cluster(launcher, *arguments))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()
    launcher.close()


def test_another_build_takes_over_process_by_process_and_nobody_notices(cluster_of, other_build):
    cluster = cluster_of(MODEL, 2, 3)
    requests = make_requests(12)
    expected = [ask(cluster.client, request) for request in requests]
    load = SteadyLoad(cluster.client, requests, CLIENTS)
    try:
        for tier, count in (("token", 3), ("block", 2), ("gateway", 2)):
            for index in range(count):
                load.wait_until_in_mid_stream()
                cluster.replace(tier, index, MODEL, other_build)
                load.wait_for_answers(2 * CLIENTS)
    finally:
        load.stop()
    assert load.failures == []
    for index, _, answer in load.answers:
        assert answer == expected[index], requests[index]
    assert load.workers >= {f"token-{i}" for i in range(3)} | {f"new-token-{i}" for i in range(3)}
    for replica in cluster.blocks:
        assert scrape(replica).total("blockserve_block_blocks_total") > 0


def test_another_model_takes_over_and_no_request_has_parts_of_both(cluster_of, other_model):
    cluster = cluster_of(MODEL, 3, 3)
    requests = make_requests(12)
    old_id = cluster.client.model().model_id
    expected = {old_id: [ask(cluster.client, request) for request in requests]}
    load = SteadyLoad(cluster.client, requests, CLIENTS)
    try:
        # The new model has fewer workers of each tier than the old one, then more.
        for index in range(2):
            load.wait_until_in_mid_stream()
            cluster.replace("block", index, other_model)
            load.wait_for_answers(CLIENTS)
            load.wait_until_in_mid_stream()
            cluster.replace("token", index, other_model)
            load.wait_for_answers(CLIENTS)
        new_id = cluster.client.model().model_id
        assert new_id != old_id
        # The old one's last pair stays until its streams have ended.
        load.wait_for(lambda: load.answers[-1].model_id == new_id, "requests begin on the new model")
        harness.wait_until(
            lambda: scrape(cluster.blocks[2]).value("blockserve_block_sequences") == 0,
            "the old model's streams have ended")
        load.wait_until_in_mid_stream()
        cluster.replace("block", 2, other_model)
        cluster.replace("token", 2, other_model)
        load.wait_for_answers(2 * CLIENTS)
    finally:
        load.stop()
    assert load.failures == []
    expected[new_id] = [ask(cluster.client, request) for request in requests]
    for index, (old, new) in enumerate(zip(expected[old_id], expected[new_id])):
        assert old.tokens != new.tokens, requests[index]
    for index, model_id, answer in load.answers:
        assert answer == expected[model_id][index], (requests[index], model_id)
    assert {answered.model_id for answered in load.answers} == {old_id, new_id}
