"""What each program holds while it runs: memory, descriptors, threads, and what its metrics say."""

from __future__ import annotations

import collections
import csv
import dataclasses
import os
import pathlib
import threading
import time
from typing import Optional

import history
import lab

EVERY_S = 10.0
# What is 0 when nobody asks for anything.
IDLE_GAUGES = {
    "gateway": ("streams", "requests_queued", "requests_starting", "live_choices", "rows",
                "rows_waiting", "worker_rows_in_flight", "sequences_waiting"),
    "block": ("rows_waiting", "sequences", "kv_pages{used}"),
    "token": ("rows_waiting", "rows_running"),
}
# Of a run: memory grows at first, while pools and caches fill.
WARM_UP = 1 / 3
SLOPE_AFTER_S = 600


@dataclasses.dataclass
class Sample:
    at: float  # time.monotonic
    process: int
    rss_mib: float
    descriptors: int
    threads: int


def look_at(program: lab.Program) -> Optional[Sample]:
    """None where there is no process, or it is not the program yet (lab.Network.inside)."""
    process = program.process
    if process is None:
        return None
    folder = pathlib.Path("/proc") / str(process.pid)
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        if not status["Name"].strip().startswith("blockserve"):
            return None
        return Sample(time.monotonic(), process.pid, int(status["VmRSS"].split()[0]) / 1024,
                      len(os.listdir(folder / "fd")), int(status["Threads"]))
    except (OSError, KeyError):  # it ends at this moment
        return None


def warm(samples: list[Sample]) -> list[Sample]:
    """Those after the warm-up."""
    since = samples[0].at + WARM_UP * (samples[-1].at - samples[0].at)
    return [sample for sample in samples if sample.at >= since]


def slope_per_hour(samples: list[Sample]) -> float:
    """Of memory, by least squares, MiB per hour."""
    if len(samples) < 3:
        return 0.0
    middle = sum(sample.at for sample in samples) / len(samples)
    mean = sum(sample.rss_mib for sample in samples) / len(samples)
    above = sum((sample.at - middle) * (sample.rss_mib - mean) for sample in samples)
    below = sum((sample.at - middle) ** 2 for sample in samples)
    return 3600 * above / below


def gauges(program: lab.Program) -> dict[str, int]:
    metrics = program.metrics()
    prefix = f"blockserve_{program.tier}_"
    return {name: int(metrics[prefix + name]) for name in IDLE_GAUGES[program.tier]}


def leftovers(deployment) -> list[history.Leftover]:
    """What the services hold now that no client is there."""
    found = []
    for program in filter(lab.Program.is_alive, deployment.programs):
        found += [history.Leftover(program.name, name, count)
                  for name, count in gauges(program).items()]
        if program.tier != "gateway":
            streams = int(program.metrics()[f"blockserve_{program.tier}_streams"])
            found.append(history.Leftover(program.name, "streams",
                                          max(0, streams - len(deployment.gateways))))
    return found


class Watch:
    """Looks at every program again and again, in a thread, and writes it down."""

    def __init__(self, deployment, file: pathlib.Path):
        self._deployment = deployment
        self._file = file
        self._stop = threading.Event()
        # Of each process: a program that was started again is another one.
        self._samples: dict[tuple[str, int], list[Sample]] = collections.defaultdict(list)
        # Of each tier, when all were connected and nothing had been asked: the most of any program.
        self._descriptors: dict[str, int] = {}
        for program in deployment.programs:
            now = look_at(program)
            self._descriptors[program.tier] = max(now.descriptors,
                                                  self._descriptors.get(program.tier, 0))
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Also where it was never started."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        begin = time.monotonic()
        with open(self._file, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["seconds", "program", "process", "rss_mib", "descriptors", "threads",
                          "gauges"])
            while True:
                for program in self._deployment.programs:
                    now = look_at(program)
                    if now is None:
                        continue
                    self._samples[program.name, now.process].append(now)
                    out.writerow([f"{now.at - begin:.1f}", program.name, now.process,
                                  f"{now.rss_mib:.2f}", now.descriptors, now.threads,
                                  self._gauges(program)])
                file.flush()
                if self._stop.wait(EVERY_S):
                    return

    @staticmethod
    def _gauges(program: lab.Program) -> str:
        try:
            return " ".join(f"{name}={count}" for name, count in gauges(program).items())
        except (OSError, KeyError):  # frozen, cut off, or not yet there
            return ""

    def text(self) -> str:
        """A line for each process that is there now."""
        lines = [f"{'process':12}{'minutes':>8}{'MiB at first':>14}{'a third later':>15}{'now':>8}"
                 f"{'MiB/hour since':>16}{'descriptors':>13}{'at the start':>14}{'threads':>9}"]
        for program in self._deployment.programs:
            now = look_at(program)
            if now is None:
                continue
            samples = [*self._samples[program.name, now.process], now]
            life = now.at - samples[0].at
            later = warm(samples)
            slope = f"{slope_per_hour(later):.2f}" if life > SLOPE_AFTER_S else "-"
            lines.append(
                f"{program.name:12}{life / 60:8.1f}{samples[0].rss_mib:14.1f}"
                f"{later[0].rss_mib:15.1f}{now.rss_mib:8.1f}{slope:>16}"
                f"{now.descriptors:13}{self._descriptors[program.tier]:14}{now.threads:9}")
        return "\n".join(lines)

    def grown(self) -> list[history.Leftover]:
        """Descriptors beyond those of before the first request."""
        found = []
        for program in self._deployment.programs:
            now = look_at(program)
            if now is not None:
                found.append(history.Leftover(
                    program.name, "descriptors",
                    max(0, now.descriptors - self._descriptors[program.tier])))
        return found
