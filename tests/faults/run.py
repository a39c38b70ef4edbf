"""Real programs under load while everything about them fails, one fault after another; then every
token that any client saw is compared with the undisturbed run. Exit status 0: all equal, nothing
lost, nothing left behind, and every kind of fault had its turn."""

from __future__ import annotations

import argparse
import functools
import pathlib
import random
import shutil
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "client" / "python"), str(pathlib.Path(__file__).resolve().parent)]

import clients  # noqa: E402
import faults  # noqa: E402
import history  # noqa: E402
import lab  # noqa: E402
import report  # noqa: E402
import resources  # noqa: E402
import visitors  # noqa: E402

# The lease of a lost stream's sequences is 10 s; a half-open connection is found within 15 s.
SETTLE_S = 40


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/fault_test", description=__doc__.split(";")[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="how long (default 2)")
    parser.add_argument("--seed", type=int, default=1, help="of the schedule and the requests")
    parser.add_argument("--clients", type=int, default=16, help="requests at a time (default 16)")
    parser.add_argument("--templates", type=int, default=36, help="different requests (default 36)")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer (default 64)")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models" / "demo-block")
    parser.add_argument("--visitors", type=int, default=2,
                        help="requests of other manners at a time: HTTP, slow readers, … (default 2)")
    parser.add_argument("--think", type=float, default=0.0, metavar="SECONDS",
                        help="mean pause between two requests of a client (default 0)")
    parser.add_argument("--fault-pause", type=float, default=0.75, metavar="SECONDS",
                        help="mean pause between two faults (default 0.75)")
    parser.add_argument("--steady", action="store_true",
                        help="never end the first program of a tier: what grows in it shows")
    parser.add_argument("--only", default="", help="kinds of fault whose name has this text")
    parser.add_argument("--check-goals", action="store_true",
                        help="fail also for stalls beyond those of docs/failures.md")
    parser.add_argument("--keep", type=pathlib.Path, help="folder that logs are copied to")
    return parser.parse_args()


def undisturbed(deployment, made) -> None:
    """The answers that every later one is compared with, from the first gateway."""
    kept = history.History()
    client = clients.Client([deployment.gateways[0].address], deployment.keys["tester"], kept, seed=0)

    def ask(template) -> None:
        template.expected = history.Expected()
        record = client.ask(template, disturb=False)
        if record.outcomes != [history.FINISHED]:
            raise AssertionError(f"undisturbed: {record.outcomes}")
        template.expected = history.expected_of(record)

    for template in made:
        ask(template)
        if template.kind == "stop string":
            clients.choose_stop_string(template)
            ask(template)
    client.close()


def undisturbed_errands(deployment, errands) -> None:
    kept = history.History()
    visitor = visitors.Visitor(deployment.gateways[:1], deployment.keys, kept, seed=0)
    for errand in errands:
        errand.expected = history.Expected()
        record = visitor.ask(errand, patient=True)
        if record.outcomes not in ([history.FINISHED], [history.REFUSED]):
            raise AssertionError(f"undisturbed: {errand.kind}: {record.outcomes}")
        errand.expected = history.expected_of(record)
    visitor.close()


def settle(deployment, watch) -> list[history.Leftover]:
    deadline = time.monotonic() + SETTLE_S
    pause = threading.Event()
    while True:
        found = resources.leftovers(deployment) + watch.grown()
        if all(left.count == 0 for left in found) or time.monotonic() > deadline:
            return found
        pause.wait(0.5)


def connected(deployment) -> None:
    """Every gateway sees every worker."""
    import grpc
    from blockserve.v1 import generation_pb2 as pb
    from blockserve.v1 import generation_pb2_grpc

    def seen(gateway) -> bool:
        with grpc.insecure_channel(gateway.address) as channel:
            model = generation_pb2_grpc.GenerationStub(channel).GetModel(
                pb.GetModelRequest(), timeout=5,
                metadata=[("authorization", f"Bearer {deployment.keys['tester']}")])
        return (model.block_services, model.token_workers) == (
            len(deployment.blocks), len(deployment.tokens))

    for gateway in deployment.gateways:
        lab.wait_until(lambda: seen(gateway), f"{gateway.name} is connected to all", 60)


def run(options: argparse.Namespace, folder: pathlib.Path) -> int:
    network = lab.Network()
    disk = lab.LogDisk(folder / "logs")
    for what, why in (("network namespaces", network.why_not), ("a log disk", disk.why_not)):
        if why is not None:
            print(f"NOTE: no {what} here ({why}): the faults that need it are left out")
    deployment = watch = None
    lanes = []
    problems: list[str] = []
    try:
        deployment = faults.Deployment(network, disk, options.model, folder,
                                       ["--audit-fraction=1", "--audit-hold", "--drain-time=20s"],
                                       options.steady)
        deployment.start()
        connected(deployment)
        watch = resources.Watch(deployment, folder / "resources.csv")
        made = clients.templates(options.templates, options.max_tokens, options.seed)
        undisturbed(deployment, made)
        print(f"{len(made)} undisturbed answers, "
              f"{sum(len(t) for m in made for t in m.expected.tokens.values())} tokens", flush=True)

        errands = visitors.errands(options.seed)
        undisturbed_errands(deployment, errands)

        kept = history.History(keep_pieces=False)
        key = deployment.keys["tester"]
        addresses = [gateway.address for gateway in deployment.gateways]
        killer = clients.Client(addresses, key, kept, seed=-1)
        crash = clients.templates(1, 8, options.seed)[0]
        crash.kind = "kills its worker"
        crash.request.seed = clients.CRASH_SEED
        stage = faults.Stage()
        lanes = [faults.Lane(name, deployment, stage, random.Random(f"{options.seed} {name}"),
                             lambda: killer.ask(crash), options.fault_pause) for name in ("token", "block")]
        for lane in lanes:
            lane.kinds = {kind: what for kind, what in lane.kinds.items() if options.only in kind}
        lanes = [lane for lane in lanes if lane.kinds]
        loads = [
            clients.Crowd([clients.Client(addresses, key, kept, options.seed * 1000 + i)
                           for i in range(options.clients)],
                          functools.partial(clients.drawn, made), options.seed, options.think),
            clients.Crowd([visitors.Visitor(deployment.gateways, deployment.keys, kept,
                                            options.seed * 1000 + i)
                           for i in range(options.visitors)],
                          functools.partial(clients.dealt, errands), options.seed, options.think)]
        begin = time.monotonic()
        watch.start()
        for load in loads:
            load.start()
        for lane in lanes:
            lane.start()
        # On a slow machine every kind has its turn all the same, for a while.
        pause = threading.Event()
        limit = max(60.0 * options.minutes, min(60.0 * options.minutes + 180.0,
                                                 240.0 * options.minutes))
        while True:
            passed = time.monotonic() - begin
            enough = passed >= 60.0 * options.minutes and all(l.has_fired_all() for l in lanes)
            if enough or passed >= limit or any(l.failures for l in (*lanes, *loads)):
                break
            pause.wait(0.2)
        for lane in lanes:
            lane.stop()
        for load in loads:
            load.stop()
        seconds = time.monotonic() - begin
        killer.close()

        for program in deployment.programs:
            if not program.is_alive():
                problems.append(f"{program.name} has ended by itself: its log says why (--keep)")
        left = settle(deployment, watch)
        violations = kept.check(left)
        injected = [fault for lane in lanes for fault in lane.faults if fault.end]
        result = report.Report(kept.records, injected, violations)
        print(result.text(seconds))
        print(result.longest_stalls(begin))
        watch.stop()
        print(watch.text())
        seen: dict[tuple[str, str], int] = {}
        for violation in violations:  # one of each kind for each request
            key = (violation.what, violation.where.split(" ", 1)[0])
            seen[key] = seen.get(key, 0) + 1
            if seen[key] == 1:
                problems.append(str(violation))
        for lane in lanes:
            problems += [f"a fault could not be injected: {error!r}" for error in lane.failures]
            fired = {fault.kind for fault in injected}
            problems += [f"never fired: {kind}" for kind in lane.kinds
                         if kind not in fired and kind not in lane.unavailable]
            for kind, why in lane.unavailable.items():
                print(f"NOTE: left out: {kind} ({why})")
        problems += [f"a client failed: {error!r}" for load in loads for error in load.failures]
        if options.check_goals:
            problems += result.missed_goals()
        # Gateways first: a service whose gateway is there drains longer.
        for program in reversed(deployment.programs):
            program.terminate()
        problems += [exit for program in deployment.programs for exit in program.bad_exits]
    finally:
        if watch is not None:
            watch.stop()
        if deployment is not None:
            deployment.close()
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            for log in disk.folder.glob("*.log"):
                (options.keep / log.name).write_bytes(log.read_bytes())
            if (folder / "resources.csv").exists():
                shutil.copy(folder / "resources.csv", options.keep)
        network.close()
        disk.close()
    for problem in problems[:40]:
        print(f"PROBLEM: {problem}")
    if len(problems) > 40:
        print(f"PROBLEM: and {len(problems) - 40} more")
    return 1 if problems else 0


def main() -> int:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="blockserve-faults-") as folder:
        return run(options, pathlib.Path(folder))


if __name__ == "__main__":
    sys.exit(main())
