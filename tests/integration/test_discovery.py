"""Workers found through a real name server, whose records change as those of a Kubernetes headless service
do: a worker is in them while its readiness probe succeeds."""

import itertools
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.request

import blockserve
import harness
import pytest

NETWORK = "127.77.7"  # loopback; each worker has an address of its own and all have one port
TTL_S = 1
NAMES = {"block": "blockserve-block.test", "token": "blockserve-token.test"}
REQUEST = {"prompt": "Once upon a time", "max_tokens": 96, "ignore_eos": True, "seed": 3,
           "temperature": 0.9, "logprobs": 0}
CLIENTS = 4

# The programs ask the C library, which asks the server of /etc/resolv.conf: in a mount namespace of its
# own a process sees ours.
WITH_RESOLV_CONF = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
                    'file="$1"; shift; mount --bind "$file" /etc/resolv.conf && exec "$@"', "sh"]


class Service:
    """A headless service and what keeps its records: probes every pod and publishes those that are ready."""

    def __init__(self, folder):
        self.hosts = folder / "hosts"
        self.hosts.write_text("")
        self.resolv_conf = folder / "resolv.conf"
        self.resolv_conf.write_text(f"nameserver {NETWORK}.253\noptions timeout:1 attempts:1\n")
        self.published_at = {}  # ip -> when it came into the records
        self._name_server_log = folder / "dnsmasq.log"
        self._pods = {}  # ip -> (tier, health address)
        self._hidden = set()
        self._records = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.start_name_server()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def start_name_server(self):
        with open(self._name_server_log, "wb") as log:
            started = subprocess.Popen(
                ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root",
                 "--pid-file=", "--no-resolv", "--no-hosts", f"--addn-hosts={self.hosts}",
                 f"--listen-address={NETWORK}.253", "--bind-interfaces", "--local=/test/",
                 f"--local-ttl={TTL_S}", "--cache-size=0", "--log-facility=-"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        # One that has not begun ends by the signal that tells it of new records.
        harness.wait_until(lambda: started.poll() is not None or self._name_server_answers(),
                           "the name server answers")
        log = self._name_server_log.read_text()
        if started.poll() is not None and "netlink" in log:  # gVisor's kernel
            pytest.skip(f"dnsmasq cannot run here: {log.strip()}")
        assert started.poll() is None, f"dnsmasq ended: {log}"
        self.name_server = started

    @staticmethod
    def _name_server_answers():
        """To a question of the type A, class IN (RFC 1035, section 4); any answer will do."""
        labels = b"".join(bytes([len(label)]) + label.encode() for label in NAMES["block"].split("."))
        question = struct.pack(">6H", 1, 0, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(1)
            asking.connect((f"{NETWORK}.253", 53))
            try:
                asking.send(question)
                return len(asking.recv(512)) > 0
            except OSError:  # nobody listens yet, or no answer
                return False

    def add_pod(self, ip, tier, health):
        with self._lock:
            self._pods[ip] = (tier, health)

    def hide(self, ip):
        """Its record goes while it lives: what happens when a node is cut off from the control plane."""
        with self._lock:
            self._hidden.add(ip)

    def _run(self):
        while not self._stop.wait(0.05):
            with self._lock:
                pods = dict(self._pods)
            ready = {ip: tier for ip, (tier, health) in pods.items() if harness.is_healthy(health, "readiness")}
            with self._lock:
                records = {ip: tier for ip, tier in ready.items() if ip not in self._hidden}
            if records == self._records:
                continue
            self._records = records
            self.hosts.write_text("".join(f"{ip} {NAMES[tier]}\n" for ip, tier in records.items()))
            self.name_server.send_signal(signal.SIGHUP)
            for ip in records:
                self.published_at.setdefault(ip, time.monotonic())

    def close(self):
        self._stop.set()
        self._thread.join()
        self.name_server.kill()
        self.name_server.wait()


class Load:
    """Clients that ask without a pause. Every answer must be the undisturbed one."""

    def __init__(self, client, expected):
        self._client, self._expected = client, expected
        self._changed = threading.Condition()
        self._recent = []  # names of the workers that wrote the last blocks, the newest last
        self._blocks = 0
        self.first_block_at = {}
        self.finished, self.failures = 0, []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self):
        while not self._over.is_set():
            tokens = []
            try:
                for event in self._client.stream(**REQUEST):
                    if isinstance(event, blockserve.Output):
                        tokens += event.tokens
                        self._saw(event.worker)
                assert tokens == self._expected
                with self._changed:
                    self.finished += 1
            except Exception as error:  # counted, and told at the end
                self.failures.append(repr(error))
                self._over.set()

    def _saw(self, worker):
        with self._changed:
            self._blocks += 1
            self.first_block_at.setdefault(worker, time.monotonic())
            self._recent = self._recent[-199:] + [worker]
            self._changed.notify_all()

    def wait_for_block_of(self, worker):
        with self._changed:
            assert self._changed.wait_for(
                lambda: worker in self.first_block_at or self.failures, harness.START_LIMIT_S)
        assert not self.failures, self.failures

    def wait_until_none_of(self, worker):
        """Until 200 blocks in a row came from others."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: (len(self._recent) == 200 and worker not in self._recent) or self.failures,
                harness.START_LIMIT_S)
        assert not self.failures, self.failures

    def stop(self):
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def service(tmp_path):
    if shutil.which("dnsmasq") is None:
        pytest.skip("dnsmasq is not installed: scripts/install_packages --tests")
    probe = subprocess.run([*WITH_RESOLV_CONF, "/etc/hosts", "true"], capture_output=True,
                           check=False)
    if probe.returncode != 0:
        pytest.skip(f"no mount namespace can be made here: {probe.stderr.decode().strip()}")
    made = Service(tmp_path)
    yield made
    made.close()


class Cluster:
    """Pods behind the service's names, and a gateway that knows nothing but the names."""

    # So few pages that the load of this file is a share of them that routing heeds.
    FLAGS = {"block": ["--kv-pages=32"], "token": []}

    def __init__(self, service, model, launcher):
        self.service, self.model, self.launcher = service, model, launcher
        self.ports = {tier: harness.free_port() for tier in NAMES}
        self._next = itertools.count(1)
        self.add("block", "block-0")

    def add(self, tier, name):
        ip = f"{NETWORK}.{next(self._next)}"
        health = f"{ip}:{self.ports[tier] + 1}"
        pod = self.launcher.start_at(
            f"{ip}:{self.ports[tier]}", f"blockserve-{tier}",
            [f"--model={self.model}", "--threads=1", f"--name={name}", f"--health-listen={health}",
             f"--metrics-listen={ip}:{self.ports[tier] + 2}", *self.FLAGS[tier]])
        self.service.add_pod(ip, tier, health)
        return ip, pod

    def decoded_blocks(self, ip):
        """Of a block replica, as its metrics say."""
        with urllib.request.urlopen(f"http://{ip}:{self.ports['block'] + 2}/metrics",
                                    timeout=60) as page:
            text = page.read().decode()
        found = re.search(r'(?m)^blockserve_block_blocks_total{[^}]*"decode"[^}]*} (\S+)$', text)
        return float(found.group(1)) if found else 0

    def gateway(self, *flags):
        targets = [f"--{tier}-services={name}:{self.ports[tier]}" for tier, name in NAMES.items()]
        return self.launcher.start_at(
            f"127.0.0.1:{harness.free_port()}", "blockserve-gateway",
            [f"--model={self.model}", *targets, *flags],
            [*WITH_RESOLV_CONF, str(self.service.resolv_conf)])


def test_token_workers_scale_from_1_to_3_and_back_under_load(service, demo_model, tmp_path, note):
    launcher = harness.Launcher(tmp_path)
    try:
        cluster = Cluster(service, demo_model, launcher)
        cluster.add("token", "token-0")
        client = launcher.connected_client(cluster.gateway(), 1, 1)
        answer = client.generate(**REQUEST)
        load = Load(client, answer.choices[0].tokens)
        try:
            added = {}
            for name in ("token-1", "token-2"):
                added[name] = cluster.add("token", name)
                load.wait_for_block_of(name)
                ip, _ = added[name]
                note("seconds from a worker's DNS record to its first block",
                     load.first_block_at[name] - service.published_at[ip])

            # Its record goes while it is alive: it gets no new rows, and nothing breaks.
            ip, pod = added["token-2"]
            service.hide(ip)
            load.wait_until_none_of("token-2")
            assert pod.is_alive()
            pod.stop()

            # SIGTERM: it drains and leaves with 0, and says so itself, sooner than any record could.
            ip, pod = added["token-1"]
            pod.stop()
            load.wait_until_none_of("token-1")
        finally:
            load.stop()
        assert load.failures == []
        assert load.finished > CLIENTS
        assert set(load.first_block_at) == {"token-0", "token-1", "token-2"}
    finally:
        launcher.close()


def test_block_replicas_scale_from_1_to_2_and_back_under_load(service, demo_model, tmp_path):
    launcher = harness.Launcher(tmp_path)
    try:
        cluster = Cluster(service, demo_model, launcher)
        cluster.add("token", "token-0")
        client = launcher.connected_client(cluster.gateway(), 1, 1)
        answer = client.generate(**REQUEST)
        load = Load(client, answer.choices[0].tokens)
        try:
            ip, pod = cluster.add("block", "block-1")
            pod.wait_until_ready()
            harness.wait_until(lambda: cluster.decoded_blocks(ip) > 0 or load.failures,
                               "the new replica has sequences")
            # It leaves with sequences in hand: they go on at the other.
            pod.stop()
            load.wait_until_none_of("nobody")
        finally:
            load.stop()
        assert load.failures == []
    finally:
        launcher.close()


def test_a_name_server_that_is_away_costs_nothing(service, demo_model, tmp_path):
    """Connections tell better than records who is alive: the workers that are known are kept."""
    launcher = harness.Launcher(tmp_path)
    try:
        cluster = Cluster(service, demo_model, launcher)
        cluster.add("token", "token-0")
        gateway = cluster.gateway("--resolve-interval=20ms")
        client = launcher.connected_client(gateway, 1, 1)
        expected = client.generate(**REQUEST).choices[0].tokens
        service.name_server.kill()
        service.name_server.wait()
        gateway.wait_for_log("cannot be resolved")
        assert client.generate(**REQUEST).choices[0].tokens == expected
        service.start_name_server()
        cluster.add("token", "token-1")
        harness.wait_until(lambda: client.model().token_workers == 2, "names are resolved again")
        assert client.generate(**REQUEST).choices[0].tokens == expected
    finally:
        launcher.close()


def test_names_may_come_after_the_gateway(service, demo_model, tmp_path):
    launcher = harness.Launcher(tmp_path)
    try:
        cluster = Cluster(service, demo_model, launcher)
        gateway = cluster.gateway("--resolve-interval=20ms")
        client = launcher.client(gateway.wait_until_ready())
        gateway.wait_for_log("blockserve-token.test")
        cluster.add("token", "token-0")
        harness.wait_until(lambda: client.model().token_workers == 1, "the worker is found")
        assert client.generate(**REQUEST).choices[0].tokens
    finally:
        launcher.close()
