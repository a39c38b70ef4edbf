"""What goes wrong: every kind of fault, and a seeded schedule in which each has its turn."""

from __future__ import annotations

import dataclasses
import random
import signal
import threading
import time
from typing import Callable

import clients
import history
import lab
import visitors


@dataclasses.dataclass
class Fault:
    kind: str
    victim: str
    begin: float
    end: float = 0.0


class Deployment:
    """Two gateways, two block replicas, four token workers; the last of each tier stands behind a
    proxy that can delay."""

    def __init__(self, network: lab.Network, disk: lab.LogDisk, model, folder, gateway_flags=(),
                 steady: bool = False):
        """`steady`: no fault ends the first program of a tier, so that what grows in it shows."""
        self.steady = steady
        self.network = network
        self.disk = disk
        logs = disk.folder
        common = [f"--model={model}"]
        key_file = folder / "api.keys"
        self.keys = {"tester": lab.make_key("tester", key_file),
                     "limited": lab.make_key("limited", key_file, "--requests-per-second=1")}
        compute = [*common, "--threads=1"]
        self.blocks = [lab.Program(network, f"block-{i}", "block",
                                   [*compute, f"--name=block-{i}", "--kv-pages=4096"], logs)
                       for i in range(2)]
        self.tokens = [lab.Program(network, f"token-{i}", "token",
                                   [*compute, f"--name=token-{i}", "--allow-fault-injection",
                                    f"--inject-crash-seed={clients.CRASH_SEED}"], logs)
                       for i in range(4)]
        self.proxies = {
            self.blocks[-1].name: lab.DelayProxy(network, "proxy-b", self.blocks[-1].address, folder),
            self.tokens[-1].name: lab.DelayProxy(network, "proxy-t", self.tokens[-1].address, folder),
        }

        def addresses(programs):
            return ",".join(self.proxies[p.name].address if p.name in self.proxies else p.address
                            for p in programs)

        self.gateways = [lab.Program(
            network, f"gateway-{i}", "gateway",
            [*common, f"--api-keys={key_file}", f"--slow-reader-timeout={visitors.UNREAD_S}s",
             f"--http-write-timeout={visitors.UNREAD_S}s", f"--block-services={addresses(self.blocks)}",
             f"--token-services={addresses(self.tokens)}", *gateway_flags], logs)
            for i in range(2)]
        for gateway in self.gateways:
            gateway.add_http()

    def mortal(self, programs):
        """Those of a tier that a fault may end."""
        return programs[1:] if self.steady else programs

    @property
    def programs(self):
        return [*self.blocks, *self.tokens, *self.gateways]

    def start(self) -> None:
        for program in self.programs:
            program.start()
        for program in self.programs:
            program.wait_until_ready()

    def close(self) -> None:
        for program in reversed(self.programs):
            if program.is_alive():
                program.send(signal.SIGCONT)
                program.kill()
        for proxy in self.proxies.values():
            proxy.close()


class Stage:
    """Which faults may be there together: lanes disturb side by side, but now and then one of them
    has the system to itself, from well before the fault until well after, so that what it costs
    can be told from what two cost together."""

    CLEAR_S = 1.2  # a little longer than report.AFTER_S

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False
        self._wants_alone = 0

    def enter(self, alone: bool, stop: threading.Event) -> bool:
        """Waits for its turn; False: the run is over."""
        with self._changed:
            self._wants_alone += alone
            try:
                while self._alone or (self._inside if alone else self._wants_alone):
                    if stop.is_set():
                        return False
                    self._changed.wait(0.1)
                self._inside += 1
                self._alone = alone
            finally:
                self._wants_alone -= alone
        if alone:
            stop.wait(self.CLEAR_S)
        return True

    def leave(self, alone: bool, stop: threading.Event) -> None:
        if alone:
            stop.wait(self.CLEAR_S)
        with self._changed:
            self._inside -= 1
            self._alone = False
            self._changed.notify_all()


class Lane:
    """Injects one fault after another, of its own kinds, until told to stop."""

    ALONE = 0.4  # share of the faults that have the system to themselves

    def __init__(self, name: str, deployment: Deployment, stage: Stage, draw: random.Random,
                 crash: Callable[[], history.Record], pause_s: float):
        """`pause_s`: the mean time between two faults."""
        self._deployment = deployment
        self._stage = stage
        self._draw = draw
        self._crash = crash
        self._pause_s = pause_s
        self._stop = threading.Event()
        self.faults: list[Fault] = []
        self.failures: list[BaseException] = []
        self.unavailable: dict[str, str] = {}  # kinds that this machine does not allow, and why
        self.kinds: dict[str, Callable[[Fault], None]] = {}
        if name == "token":
            self._add_tier("token", lambda: deployment.tokens)
            self.kinds["wrong bits"] = self._wrong_bits
            self.kinds["request that kills its worker"] = self._killer
            if deployment.steady:
                self.unavailable["request that kills its worker"] = "it may kill any of them"
        else:
            self._add_tier("block", lambda: deployment.blocks)
            self._add_programs("gateway", lambda: deployment.gateways)
            self.kinds["log disk full"] = self._disk_full
            if deployment.disk.why_not is not None:
                self.unavailable["log disk full"] = deployment.disk.why_not
        self._thread = threading.Thread(target=self._run)

    def _add_tier(self, tier: str, programs) -> None:
        """As all programs, and what the proxy of the last one does."""
        def delayed(fault):
            victim = programs()[-1]
            fault.victim = victim.name
            proxy = self._deployment.proxies[victim.name]
            proxy.delay(self._draw.randrange(100, 500))
            self._wait(1.5, 4.0)
            proxy.delay(0)

        def reset(fault):
            victim = programs()[-1]
            fault.victim = victim.name
            self._deployment.proxies[victim.name].reset()
            self._wait(1.0, 2.0)

        self._add_programs(tier, programs)
        self.kinds[f"{tier} delayed"] = delayed
        self.kinds[f"{tier} connections reset"] = reset

    def _add_programs(self, tier: str, programs) -> None:
        """The process ends and comes back; or it is frozen, or its packets are dropped, and everybody keeps the
        connections."""
        def killed(fault):
            victim = self._pick(fault, self._deployment.mortal(programs()))
            victim.kill()
            self._wait(0.2, 1.0)
            victim.start()
            victim.wait_until_ready()

        def terminated(fault):
            victim = self._pick(fault, self._deployment.mortal(programs()))
            victim.terminate()
            victim.start()
            victim.wait_until_ready()

        def frozen(fault):
            victim = self._pick(fault, programs())
            victim.send(signal.SIGSTOP)
            self._wait(1.5, 4.0)
            victim.send(signal.SIGCONT)

        def cut(direction):
            def inject(fault):
                victim = self._pick(fault, programs())
                self._deployment.network.cut(victim.name, direction)
                self._wait(1.5, 4.0)
                self._deployment.network.mend(victim.name)
            return inject

        self.kinds[f"{tier} killed"] = killed
        self.kinds[f"{tier} SIGTERM, restart"] = terminated
        self.kinds[f"{tier} frozen"] = frozen
        for direction in ("in", "out", "both"):
            kind = f"{tier} packets dropped, {direction}"
            self.kinds[kind] = cut(direction)
            if not self._deployment.network.separate:
                self.unavailable[kind] = self._deployment.network.why_not

    def _pick(self, fault: Fault, choose_from):
        victim = self._draw.choice(choose_from)
        fault.victim = victim.name
        return victim

    def _wait(self, least: float, most: float) -> None:
        self._stop.wait(self._draw.uniform(least, most))

    def _wrong_bits(self, fault: Fault) -> None:
        """A worker that is replaced by one whose bits are wrong, until it has been found."""
        victim = self._pick(fault, self._deployment.mortal(self._deployment.tokens))
        victim.terminate()
        victim.start("--inject-wrong-bits=0.5")
        victim.wait_until_ready()
        self._wait(2.0, 4.0)
        victim.kill()
        victim.start()
        victim.wait_until_ready()

    def _killer(self, fault: Fault) -> None:
        record = self._crash()
        dead = []
        for worker in self._deployment.tokens:
            # The gateway may hear of a death before the process can be waited for.
            if not worker.is_serving() and worker.has_ended(within_s=5):
                worker.reap()
                dead.append(worker)
        fault.victim = ", ".join(worker.name for worker in dead) or record.name
        for worker in dead:
            worker.start()
        for worker in dead:
            worker.wait_until_ready()

    def _disk_full(self, fault: Fault) -> None:
        """Everybody's; a gateway that starts then has a lot to log."""
        fault.victim = "every program's log"
        self._deployment.disk.fill()
        victim = self._draw.choice(self._deployment.mortal(self._deployment.gateways))
        victim.terminate()
        victim.start()
        victim.wait_until_ready()
        self._wait(0.5, 1.5)
        self._deployment.disk.empty()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The fault under way is ended in order."""
        self._stop.set()
        self._thread.join()

    def has_fired_all(self) -> bool:
        fired = {fault.kind for fault in self.faults if fault.end}
        return fired >= set(self.kinds) - set(self.unavailable)

    def _run(self) -> None:
        deck: list[str] = []
        try:
            while not self._stop.is_set():
                if not deck:
                    deck = [kind for kind in self.kinds if kind not in self.unavailable]
                    self._draw.shuffle(deck)
                kind, alone = deck.pop(), self._draw.random() < self.ALONE
                if not self._stage.enter(alone, self._stop):
                    break
                try:
                    fault = Fault(kind, "", time.monotonic())
                    self.faults.append(fault)
                    self.kinds[kind](fault)
                    fault.end = time.monotonic()
                finally:
                    self._stage.leave(alone, self._stop)
                self._wait(0.4 * self._pause_s, 1.6 * self._pause_s)
        except BaseException as error:  # told by the main thread
            self.failures.append(error)
