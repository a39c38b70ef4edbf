"""What a run showed: requests, failures, differences, latency, and the longest stall of each kind."""

from __future__ import annotations

import collections
import dataclasses
from typing import Sequence

import faults
import history

# A stall may outlast its fault: who was frozen has a queue when it wakes up.
AFTER_S = 1.0
# Longest stalls that are allowed, seconds: the goals of docs/failures.md.
GOALS = {
    "token killed": 1.0,
    "token frozen": 3.0,
    "token packets dropped, in": 3.0,
    "token packets dropped, out": 3.0,
    "token packets dropped, both": 3.0,
    "block killed": 3.0,
    "block frozen": 3.0,
    "block packets dropped, in": 3.0,
    "block packets dropped, out": 3.0,
    "block packets dropped, both": 3.0,
}


def percentile(values: Sequence[float], share: float) -> float:
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclasses.dataclass
class KindReport:
    kind: str
    times: int = 0
    hit: int = 0             # requests that were under way
    failed: int = 0
    differing: int = 0
    durations: list = dataclasses.field(default_factory=list)  # of those requests
    stalls: list = dataclasses.field(default_factory=list)     # while no other fault was there
    shared_stalls: list = dataclasses.field(default_factory=list)


def _overlap(begin, end, fault, after=0.0):
    return begin < (fault.end or float("inf")) + after and fault.begin < end


class Report:
    def __init__(self, records: Sequence[history.Record], injected: Sequence[faults.Fault],
                 violations: Sequence[history.Violation]):
        self.records = records
        self.injected = sorted(injected, key=lambda fault: fault.begin)
        self.violations = violations
        by_kind = {fault.kind: KindReport(fault.kind) for fault in injected}
        self.kinds = by_kind
        self.hit = 0
        differing = collections.Counter()
        for violation in violations:
            name = violation.where.split(" ", 1)[0]
            if violation.what in ("wrong token", "swapped choice", "wrong log-probability"):
                differing[name] += 1
        self.differing = sum(differing.values())
        self.failed = sum(record.failed or not record.outcomes for record in records)
        for fault in injected:
            by_kind[fault.kind].times += 1
        ordered = sorted(injected, key=lambda fault: fault.begin)
        for record in records:
            if not record.arrivals:
                continue
            first, last = record.arrivals[0], record.arrivals[-1]
            touched = [fault for fault in ordered if _overlap(first, last, fault)]
            self.hit += bool(touched)
            for kind in {fault.kind for fault in touched}:
                entry = by_kind[kind]
                entry.hit += 1
                entry.failed += record.failed
                entry.differing += differing[record.name]
                entry.durations.append(last - record.begun)
            for begin, length in record.stalls():
                near = {fault.kind for fault in ordered
                        if _overlap(begin, begin + length, fault, AFTER_S)}
                for kind in near:
                    target = by_kind[kind]
                    (target.stalls if len(near) == 1 else target.shared_stalls).append(length)

    def text(self, seconds: float) -> str:
        records = self.records
        resumed = sum(record.resumes > 0 for record in records)
        cancelled = sum(record.outcomes == [history.CANCELLED] for record in records)
        tokens = sum(record.tokens for record in records)
        durations = [record.arrivals[-1] - record.begun for record in records if record.arrivals]
        undisturbed = [length for record in records for begin, length in record.stalls()]
        lines = [
            f"{len(records)} requests in {seconds:.0f} s, {tokens} tokens; "
            f"{sum(kind.times for kind in self.kinds.values())} faults",
            f"hit in mid-stream {self.hit} ({100 * self.hit / max(1, len(records)):.0f} %), "
            f"resumed {resumed}, cancelled {cancelled}",
            f"failed {self.failed}, differing tokens {self.differing}, "
            f"violations {len(self.violations)}",
            f"request p50 {percentile(durations, 0.5):.2f} s, p99 {percentile(durations, 0.99):.2f} s; "
            f"longest time between two outputs {max(undisturbed, default=0.0):.2f} s",
            "",
            f"{'fault':34}{'times':>6}{'hit':>6}{'failed':>7}{'differ':>7}{'p50 s':>7}{'p99 s':>7}"
            f"{'stall s':>9}{'with another':>14}",
        ]
        for kind in sorted(self.kinds):
            entry = self.kinds[kind]
            lines.append(
                f"{kind:34}{entry.times:6}{entry.hit:6}{entry.failed:7}{entry.differing:7}"
                f"{percentile(entry.durations, 0.5):7.2f}{percentile(entry.durations, 0.99):7.2f}"
                f"{max(entry.stalls, default=0.0):9.2f}{max(entry.shared_stalls, default=0.0):14.2f}")
        lines.append("stall: the longest time between two outputs of a request, the first counted from "
                     "the call, while this fault alone was there; "
                     "with another: while other faults were, too")
        return "\n".join(lines)

    def longest_stalls(self, begin: float, count: int = 6) -> str:
        """When they were, and what was wrong then; times since `begin`."""
        all_stalls = sorted(((length, at, record) for record in self.records
                             for at, length in record.stalls()), key=lambda entry: -entry[0])
        lines = []
        told: list[float] = []
        for length, at, record in all_stalls:
            if len(lines) == count:
                break
            if any(abs(at - other) < 1.0 for other in told):
                continue  # of the same moment
            told.append(at)
            near = [f"{fault.kind} ({fault.victim}) {fault.begin - begin:.1f} to {fault.end - begin:.1f}"
                    for fault in self.injected if _overlap(at, at + length, fault, AFTER_S)]
            lines.append(f"  {length:.2f} s from {at - begin:.1f} s on, {record.name} ({record.kind}): "
                         + ("; ".join(near) or "nothing was wrong"))
        return "longest stalls:\n" + "\n".join(lines)

    def missed_goals(self) -> list[str]:
        missed = []
        for kind, goal in GOALS.items():
            stall = max(self.kinds[kind].stalls, default=0.0) if kind in self.kinds else 0.0
            if stall > goal:
                missed.append(f"{kind}: a stall of {stall:.2f} s, the goal is {goal:.0f} s")
        return missed
