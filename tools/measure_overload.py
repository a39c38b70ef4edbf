#!/usr/bin/env python3
"""Measures what a server does with far more requests than it can serve: its closed-loop capacity,
then an open loop at a multiple of that, and so on for --rounds. Needs the built programs alone.

  tools/measure_overload.py                                  # blockserve serve with the demo model
  tools/measure_overload.py --simulated --token-steps 4      # a gateway between simulated tiers
  tools/measure_overload.py --protocol grpc --timeout 3

Prints one JSON object: goodput is what ended in time, as a share of the capacity; refused_p99_ms is
how soon the others knew. --out FILE appends it to a file of JSON lines.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

from measure_gateway import ROOT, Processes, free_range, memory_mib


@contextlib.contextmanager
def on_cores(cores: list[int]):
    """What is started meanwhile has these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def start_server(options: argparse.Namespace, processes: Processes, port: int) -> subprocess.Popen:
    """The process whose memory is told. gRPC on `port`, HTTP on the next one."""
    if not options.simulated:
        return processes.start("blockserve", "serve", f"--model={options.model}",
                               f"--grpc-address=127.0.0.1:{port}",
                               f"--http-address=127.0.0.1:{port + 1}", "--nolog-requests",
                               *options.server_flag, wait_for="blockserve serves")
    processes.start("blockserve-simulate", f"--model={options.model}", "--block-replicas=1",
                    f"--block-listen=127.0.0.1:{port + 2}", f"--block-steps={options.block_steps}",
                    "--token-workers=1", f"--token-listen=127.0.0.1:{port + 3}",
                    f"--token-steps={options.token_steps}", wait_for="ready")
    gateway = processes.start("blockserve-gateway", f"--model={options.model}",
                              f"--listen=127.0.0.1:{port}", f"--http-listen=127.0.0.1:{port + 1}",
                              f"--block-services=127.0.0.1:{port + 2}",
                              f"--token-services=127.0.0.1:{port + 3}", "--nolog-requests",
                              *options.server_flag, wait_for="listening")
    return gateway


def load(options: argparse.Namespace, port: int, *flags: str) -> dict:
    target = (f"--grpc=127.0.0.1:{port}" if options.protocol == "grpc"
              else f"--http=http://127.0.0.1:{port + 1}")
    done = subprocess.run(
        [pathlib.Path(options.programs) / "blockserve-load", target, "--json=-", "--noprogress",
         f"--warmup={options.warmup}s", f"--prompt-tokens={options.prompt_tokens}",
         f"--output-tokens={options.output_tokens}", *flags],
        text=True, capture_output=True, check=False)
    if not done.stdout.startswith("{"):
        raise SystemExit("blockserve-load: " + done.stderr)
    return json.loads(done.stdout)


def measure(options: argparse.Namespace, processes: Processes) -> dict:
    port = free_range(4, 20000)
    cores = sorted(os.sched_getaffinity(0))
    servers_cores = loads_cores = cores
    if options.separate_cores:
        if len(cores) < 2:
            raise SystemExit("measure_overload: --separate-cores needs two cores")
        servers_cores, loads_cores = cores[:-(len(cores) // 2)], cores[-(len(cores) // 2):]
    with on_cores(servers_cores):
        server = start_server(options, processes, port)
    length = int(options.output_tokens)
    before, memory, over = memory_mib(server.pid), [], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            memory.append(memory_mib(server.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    closed, opened = [], []
    with on_cores(loads_cores):
        for _ in range(options.rounds):
            closed.append(load(options, port, f"--concurrency={options.concurrency}",
                               f"--duration={options.duration}s"))
            # From the tokens: requests end in waves.
            rate = options.factor * closed[-1]["output_tokens_per_s"] / length
            connections = [f"--connections={options.connections}"] if options.protocol == "grpc" else []
            opened.append(load(options, port, f"--rate={rate:.1f}",
                               f"--duration={options.duration}s", f"--timeout={options.timeout}s",
                               *connections))
    over.set()
    watcher.join()

    def mean(runs: list[dict], field: str) -> float:
        return sum(run[field] for run in runs) / len(runs)

    def refusals(percentile: str) -> list[float]:
        return [run["latency"]["failed_after_ms"][percentile] for run in opened]

    capacity = mean(closed, "output_tokens_per_s")
    errors: collections.Counter = collections.Counter()
    for run in opened:
        errors.update(run["errors"])
    refused = {kind: count for kind, count in errors.items()
               if kind in ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "HTTP 429", "HTTP 503")}
    others = {kind: count for kind, count in errors.items() if kind not in refused}
    return {
        "protocol": options.protocol, "simulated": options.simulated, "factor": options.factor,
        "timeout_s": options.timeout, "output_tokens": length, "rounds": options.rounds,
        "duration_s": options.duration, "separate_cores": options.separate_cores,
        "capacity_tokens_per_s": round(capacity, 1),
        "offered_requests_per_s": round(options.factor * capacity / length, 1),
        # Of requests that ended OK within the windows, and of all tokens that came within them.
        "goodput": round(mean(opened, "requests_per_s") * length / capacity, 3),
        "tokens": round(mean(opened, "output_tokens_per_s") / capacity, 3),
        "tokens_of_rounds": [round(flood["output_tokens_per_s"] / alone["output_tokens_per_s"], 3)
                             for alone, flood in zip(closed, opened)],
        "ok": sum(run["requests"]["ok"] for run in opened), "refused": refused,
        "ended_otherwise": others,
        "usage_wrong": sum(run["usage_check"]["wrong"] for run in opened),
        # Means of the rounds' percentiles; the largest of all.
        "refused_p50_ms": round(sum(refusals("p50")) / options.rounds, 3),
        "refused_p99_ms": round(sum(refusals("p99")) / options.rounds, 3),
        "refused_max_ms": max(refusals("max")),
        "ok_p99_ms": max(run["latency"]["e2e_ms"]["p99"] for run in opened),
        "rss_before_mib": round(before, 1), "rss_max_mib": round(max(memory), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", default=str(ROOT / "build" / "bin"))
    parser.add_argument("--model", default=str(ROOT / "models" / "demo-block"))
    parser.add_argument("--simulated", action="store_true", help="tiers that sleep")
    parser.add_argument("--token-steps", default="4", help="ms, or a table: blockserve-simulate")
    parser.add_argument("--block-steps", default="2")
    parser.add_argument("--protocol", choices=("grpc", "http"), default="http")
    parser.add_argument("--concurrency", type=int, default=256, help="of the closed loop")
    parser.add_argument("--factor", type=float, default=10, help="of the capacity is offered")
    parser.add_argument("--timeout", type=float, default=10, help="seconds, as servers are told")
    parser.add_argument("--connections", type=int, default=4, help="gRPC")
    parser.add_argument("--prompt-tokens", default="32")
    parser.add_argument("--output-tokens", default="128")
    parser.add_argument("--warmup", type=float, default=4)
    parser.add_argument("--duration", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=1,
                        help="closed loop and overload in turn: a machine's speed drifts")
    parser.add_argument("--separate-cores", action="store_true",
                        help="half of the cores for the load tool alone, as if it ran elsewhere")
    parser.add_argument("--server-flag", action="append", default=[])
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        processes = Processes(pathlib.Path(options.programs), pathlib.Path(name))
        try:
            result = measure(options, processes)
        finally:
            processes.stop()
    print(json.dumps(result, indent=1))
    if options.out:
        with open(options.out, "a", encoding="utf-8") as out:
            out.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
