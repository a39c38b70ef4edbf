#!/usr/bin/env python3
"""Measures a gateway between simulated tiers: throughput, its CPU, how evenly it spreads, and what a
lost process of token workers costs. Needs the built programs alone.

  tools/measure_gateway.py --token-workers 100 --block-replicas 4 --concurrency 1000
  tools/measure_gateway.py --token-workers 1 --token-steps 0 --protocol http      # overhead
  tools/measure_gateway.py --token-workers 20 --processes 2 --kill-after 4        # a loss
  tools/measure_gateway.py --token-workers 3 --processes 3 --scale                # 1 -> 3 -> 1
  tools/measure_gateway.py --width 768 --max-rows 1024 --concurrency 1024 --output-tokens 512
                                                  # what each thread takes at a GPU's batch sizes
  tools/measure_gateway.py --one-card --token-in-flight 2 --block-in-flight 2 --block-steps FILE …
                                                  # how much of a GPU's time the tiers use

Prints one JSON object; --out FILE appends it to a file of JSON lines.
"""

import argparse
import glob
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")


def free_range(count: int, start: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    first = start
    while first + count < 65000:
        for port in range(first, first + count):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    break
        else:
            return first
        first = port + 1
    raise SystemExit("measure_gateway: no free ports")


def cpu_seconds(folder: pathlib.Path) -> float:
    """CPU of a process (/proc/PID) or of a thread (/proc/PID/task/ID)."""
    fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def thread_cpu_seconds(pid: int) -> dict:
    """CPU of each thread that lives, by id: (name, seconds). In gVisor none of a process that has ended."""
    threads = {}
    for task in map(pathlib.Path, glob.glob(f"/proc/{pid}/task/*")):
        schedstat = task / "schedstat"  # not in gVisor
        try:
            name = (task / "comm").read_text().strip()
            seconds = (int(schedstat.read_text().split()[0]) / 1e9 if schedstat.exists()
                       else cpu_seconds(task))
            threads[task.name] = (name, seconds)
        except OSError:  # it has ended
            continue
    return threads


def cpu_by_thread(before: dict, after: dict, wall: float, tokens_per_s: float) -> dict | None:
    """CPU seconds per million tokens of the threads of each name, the largest first; None: it cannot be told."""
    if not after:
        return None
    seconds = {}
    for task, (name, used) in after.items():
        seconds[name] = seconds.get(name, 0.0) + used - before.get(task, (name, 0.0))[1]
    million = wall * tokens_per_s / 1e6
    shares = {name: round(used / million, 3) for name, used in seconds.items()}
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return {"all": round(sum(seconds.values()) / million, 3),
            **{name: share for name, share in ordered if share >= 0.005}}


def memory_mib(pid: int) -> float:
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def shaped_model(model: pathlib.Path, width: int, folder: pathlib.Path) -> pathlib.Path:
    """The model's tokenizer and configuration, with context rows of another width."""
    config = json.loads((model / "config.json").read_text())
    for part in ("block_decoder", "token_decoder"):
        config[part]["hidden_size"] = width
    config["embedder"]["hidden_size"] = width // config["block_length"]
    made = folder / "shaped"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (model / name).exists():
            shutil.copy(model / name, made / name)
    return made


class Processes:
    def __init__(self, programs: pathlib.Path, folder: pathlib.Path):
        self.programs, self.folder, self.started = programs, folder, []

    def start(self, name: str, *arguments: str, wait_for: str = "") -> subprocess.Popen:
        log = open(self.folder / f"{len(self.started)}-{name}.log", "w+", encoding="utf-8")
        process = subprocess.Popen([self.programs / name, *arguments], stdout=log,
                                   stderr=subprocess.STDOUT)
        self.started.append(process)
        deadline = time.monotonic() + 60
        while wait_for and wait_for not in pathlib.Path(log.name).read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name}: {pathlib.Path(log.name).read_text()}")
            time.sleep(0.05)
        return process

    def stop(self) -> None:
        for process in reversed(self.started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def spread(values: list) -> dict:
    mean = sum(values) / len(values)
    return {"min": min(values), "mean": round(mean, 1), "max": max(values),
            "max_to_mean": round(max(values) / mean, 3) if mean else None}


def measure(options: argparse.Namespace, processes: Processes, folder: pathlib.Path) -> dict:
    model = pathlib.Path(options.model)
    if options.width:
        model = shaped_model(model, options.width, folder)
    block_length = json.loads((model / "config.json").read_text())["block_length"]
    groups = [options.token_workers // options.processes] * options.processes
    groups[0] += options.token_workers - sum(groups)
    tokens, stats = [], []
    # By hand, below the ephemeral range, so that no outgoing connection takes one of them.
    next_port = free_range(options.block_replicas, 20000)
    blocks = [f"127.0.0.1:{next_port + i}" for i in range(options.block_replicas)]
    stats.append(folder / "blocks.json")
    block_flags = [f"--block-replicas={options.block_replicas}", f"--block-listen={blocks[0]}",
                   f"--block-steps={options.block_steps}", f"--block-in-flight={options.block_in_flight}",
                   f"--groups={options.groups}"]
    replicas = None if options.one_card else processes.start(
        "blockserve-simulate", f"--model={model}", *block_flags, f"--stats={stats[0]}",
        wait_for="ready")
    workers, commands = [], []
    for index, count in enumerate(groups):
        next_port = free_range(count, next_port + options.block_replicas + 1)
        tokens += [f"127.0.0.1:{next_port + i}" for i in range(count)]
        stats.append(folder / f"tokens{index}.json")
        commands.append(["blockserve-simulate", f"--model={model}", f"--token-workers={count}",
                         f"--token-listen=127.0.0.1:{next_port}",
                         f"--token-steps={options.token_steps}", f"--max-rows={options.max_rows}",
                         f"--token-in-flight={options.token_in_flight}", f"--stats={stats[-1]}",
                         *(["--one-card", *block_flags] if options.one_card else [])])
        if index == 0 or not options.scale:
            workers.append(processes.start(*commands[-1], wait_for="ready"))
        next_port += count
    port = free_range(2, next_port + 1)
    flags = [f"--model={model}", f"--listen=127.0.0.1:{port}",
             "--block-services=" + ",".join(blocks), "--token-services=" + ",".join(tokens)]
    if options.protocol == "http":
        flags.append(f"--http-listen=127.0.0.1:{port + 1}")
    gateway = processes.start("blockserve-gateway", *flags, *options.gateway_flag,
                              wait_for="listening")
    # Connections to all workers: the load that follows finds them.
    time.sleep(1 + options.token_workers / 500)

    out = folder / "load.json"
    target = (f"--grpc=127.0.0.1:{port}" if options.protocol == "grpc"
              else f"--http=http://127.0.0.1:{port + 1}")
    rate = ([f"--rate={options.rate}"] if options.rate
            else [f"--concurrency={options.concurrency}"])
    load = processes.start("blockserve-load", target, *rate,
                           f"--warmup={options.warmup}s", f"--duration={options.duration}s",
                           f"--prompt-tokens={options.prompt_tokens}",
                           f"--stream-interval={options.stream_interval}",
                           f"--output-tokens={options.output_tokens}", f"--json={out}",
                           "--noprogress")
    time.sleep(options.warmup)
    tiers = ({"both tiers": workers[0]} if options.one_card
             else {"block replicas": replicas, "token workers": workers[0]})
    measured = {"gateway": gateway, **tiers, "load": load}
    proc = pathlib.Path(f"/proc/{gateway.pid}")
    begin_threads = {name: thread_cpu_seconds(process.pid) for name, process in measured.items()}
    begin_cpu, begin = cpu_seconds(proc), time.monotonic()
    if options.kill_after:
        time.sleep(options.kill_after)
        workers[-1].kill()
    if options.scale:  # a third of the time each
        time.sleep(options.duration / 3)
        workers += [processes.start(*command, wait_for="ready") for command in commands[1:]]
        time.sleep(max(0.0, options.duration * 2 / 3 - (time.monotonic() - begin)))
        for worker in workers[1:]:
            worker.send_signal(signal.SIGTERM)
    time.sleep(max(0.0, options.duration - (time.monotonic() - begin)))
    cpu, wall = cpu_seconds(proc) - begin_cpu, time.monotonic() - begin
    threads = {name: thread_cpu_seconds(process.pid) for name, process in measured.items()}
    memory = memory_mib(gateway.pid)
    load.wait(180)
    if not out.exists():
        raise SystemExit("blockserve-load: " + (folder / "load.log").read_text()
                         if (folder / "load.log").exists() else "blockserve-load failed")
    result = json.loads(out.read_text())
    processes.stop()
    counted = [json.loads(path.read_text()) for path in stats if path.exists()]
    engines = {tier: [one for part in counted for one in part[tier]]
               for tier in ("token_workers", "block_replicas")}
    rows, steps = ([one["rows"] for one in parts] for parts in engines.values())
    tokens_per_s = result["output_tokens_per_s"]
    return {
        "token_workers": options.token_workers, "block_replicas": options.block_replicas,
        "protocol": options.protocol, "concurrency": options.concurrency, "rate": options.rate,
        "token_steps": options.token_steps, "block_steps": options.block_steps,
        "one_card": options.one_card, "token_in_flight": options.token_in_flight,
        "block_in_flight": options.block_in_flight, "groups": options.groups,
        "width": options.width, "stream_interval": options.stream_interval, "output_tokens": options.output_tokens,
        "tokens_per_s": tokens_per_s, "requests_per_s": result["requests_per_s"],
        "failed": result["requests"]["failed"], "errors": result["errors"],
        "usage_wrong": result["usage_check"]["wrong"],
        "gateway_cores": round(cpu / wall, 3),
        "gateway_cpu_s_per_million_tokens":
            round(cpu / wall / tokens_per_s * 1e6, 2) if tokens_per_s else None,
        # A thread of its own can do no more than one million tokens in so many seconds.
        "cpu_s_per_million_tokens":
            {name: cpu_by_thread(begin_threads[name], threads[name], wall, tokens_per_s)
             for name in measured} if tokens_per_s else None,
        "gateway_rss_mib": round(memory, 1),
        "ttft_ms": {key: result["latency"]["ttft_ms"][key] for key in ("p50", "p99", "max")},
        "inter_block_ms": {key: result["latency"]["inter_block_ms"][key]
                           for key in ("p50", "p99", "max")},
        "rows_of_workers": spread(rows) if rows else None,
        "blocks_of_replicas": spread(steps) if steps else None,
        "rows_of_a_step": {tier: round(sum(one["rows"] for one in parts) /
                                       max(1, sum(one["steps"] for one in parts)), 1)
                           for tier, parts in engines.items()},
        # What the tokens of a second took of the engines' time, over both tiers.
        "engine_seconds_per_s":
            round(sum(one["busy_s"] for parts in engines.values() for one in parts)
                  / (sum(rows) * block_length) * tokens_per_s, 3) if sum(rows) else None,
        "tokens_each_second": [second["output_tokens"] for second in result["seconds"]],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", default=str(ROOT / "build" / "bin"))
    parser.add_argument("--model", default=str(ROOT / "models" / "demo-block"))
    parser.add_argument("--width", type=int, default=0, help="of context rows; 0: the model's")
    parser.add_argument("--token-workers", type=int, default=1)
    parser.add_argument("--block-replicas", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="that host the token workers")
    parser.add_argument("--token-steps", default="0", help="ms, or a table: blockserve-simulate")
    parser.add_argument("--block-steps", default="0")
    parser.add_argument("--max-rows", type=int, default=64)
    parser.add_argument("--one-card", action="store_true",
                        help="both tiers in one process, their steps one after another")
    parser.add_argument("--token-in-flight", type=int, default=1,
                        help="batches that a worker's engine takes at a time: 2 as on a GPU")
    parser.add_argument("--block-in-flight", type=int, default=1,
                        help="steps that a replica's engine takes at a time: 2 as on a GPU")
    parser.add_argument("--stream-interval", type=int, default=0,
                        help="tokens of a choice that are sent together; 0: every block")
    parser.add_argument("--groups", type=int, default=2, help="of sequences, in the block tier")
    parser.add_argument("--protocol", choices=("grpc", "http"), default="grpc")
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--rate", type=float, default=0, help="open loop instead")
    parser.add_argument("--prompt-tokens", default="32")
    parser.add_argument("--output-tokens", default="128")
    parser.add_argument("--warmup", type=float, default=2)
    parser.add_argument("--duration", type=float, default=6)
    parser.add_argument("--kill-after", type=float, default=0,
                        help="seconds into the measurement: kill -9 of the last process of workers")
    parser.add_argument("--scale", action="store_true",
                        help="start with the first process of workers, add the others, end them")
    parser.add_argument("--gateway-flag", action="append", default=[])
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    if options.processes < 1 or options.processes > options.token_workers:
        parser.error("--processes must be 1 to --token-workers")
    if options.one_card and options.processes > 1:
        parser.error("--one-card is one process: without --processes")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        processes = Processes(pathlib.Path(options.programs), folder)
        try:
            result = measure(options, processes, folder)
        finally:
            processes.stop()
    print(json.dumps(result, indent=1))
    if options.out:
        with open(options.out, "a", encoding="utf-8") as out:
            out.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
