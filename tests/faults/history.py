"""What clients saw of every request, and whether that is what an undisturbed system shows them."""

from __future__ import annotations

import dataclasses
import struct
import threading
import time
from typing import Optional, Sequence

# How a request ended, as its client saw it.
FINISHED = "finished"
CANCELLED = "cancelled"  # by the client
# By the gateway, where the request itself kills workers: two die with it alone, then it is given up.
GIVEN_UP = "given up"
# What some clients are after (visitors.py): turned away, out of time, gone in the middle.
REFUSED = "refused"
EXPIRED = "expired"
LEFT = "left"


def bits(logprob: Optional[float]) -> Optional[bytes]:
    """A log-probability is compared bit for bit."""
    return None if logprob is None else struct.pack("<f", logprob)


@dataclasses.dataclass
class Piece:
    """One token as it came."""

    choice: int
    position: int  # counted from the first generated token
    token: int
    logprob: Optional[float]


@dataclasses.dataclass
class Expected:
    """What the undisturbed system answers to a request; of each choice."""

    tokens: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    logprobs: dict[int, list[Optional[float]]] = dataclasses.field(default_factory=dict)
    text: dict[int, str] = dataclasses.field(default_factory=dict)
    finished: dict[int, tuple] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Record:
    """One request, from its first call to its last, resumes included."""

    name: str
    kind: str
    expected: Expected
    expected_outcomes: tuple[str, ...] = (FINISHED,)
    pieces: list[Piece] = dataclasses.field(default_factory=list)
    text: dict[int, str] = dataclasses.field(default_factory=dict)
    finished: dict[int, list[tuple]] = dataclasses.field(default_factory=dict)
    outcomes: list[str] = dataclasses.field(default_factory=list)
    resumes: int = 0
    begun: float = 0.0  # time.monotonic
    arrivals: list[float] = dataclasses.field(default_factory=list)  # of outputs
    tokens: int = 0
    violations: Optional[list["Violation"]] = None  # once it has been checked

    def piece(self, choice: int, position: int, token: int, logprob: Optional[float]) -> None:
        self.pieces.append(Piece(choice, position, token, logprob))
        self.tokens += 1

    def restart(self) -> None:
        """Its client asks again from the beginning."""
        self.pieces.clear()
        self.text.clear()
        self.finished.clear()

    @property
    def failed(self) -> bool:
        return any(outcome not in self.expected_outcomes for outcome in self.outcomes)

    def stalls(self) -> list[tuple[float, float]]:
        """(begin, length) of the times between two outputs, the first counted from the call."""
        times = [self.begun, *self.arrivals]
        return [(a, b - a) for a, b in zip(times, times[1:])]


def expected_of(record: Record) -> Expected:
    """What later records of the same request are compared with."""
    expected = Expected(text=dict(record.text),
                        finished={choice: ends[0] for choice, ends in record.finished.items()})
    for piece in record.pieces:
        expected.tokens.setdefault(piece.choice, []).append(piece.token)
        expected.logprobs.setdefault(piece.choice, []).append(piece.logprob)
    return expected


@dataclasses.dataclass
class Violation:
    what: str  # gap, repeat, wrong token, swapped choice, ...
    where: str

    def __str__(self) -> str:
        return f"{self.what}: {self.where}"


def check_record(record: Record) -> list[Violation]:
    found: list[Violation] = []

    def report(what: str, detail: str) -> None:
        found.append(Violation(what, f"{record.name} ({record.kind}): {detail}"))

    next_position: dict[int, int] = {}
    for piece in record.pieces:
        wanted = next_position.get(piece.choice, 0)
        where = f"choice {piece.choice}, position {piece.position}"
        if piece.position > wanted:
            report("gap", f"{where}, after {wanted - 1}")
        elif piece.position < wanted:
            report("repeat", where)
        next_position[piece.choice] = max(wanted, piece.position + 1)
        tokens = record.expected.tokens.get(piece.choice)
        if tokens is None:
            report("unknown choice", where)
            continue
        if piece.position >= len(tokens):
            report("too long", where)
            continue
        if tokens[piece.position] != piece.token:
            others = [choice for choice, theirs in record.expected.tokens.items()
                      if choice != piece.choice and piece.position < len(theirs)
                      and theirs[piece.position] == piece.token]
            if others:
                report("swapped choice", f"{where}: token {piece.token} is of choice {others[0]}")
            else:
                report("wrong token",
                       f"{where}: {piece.token} instead of {tokens[piece.position]}")
            continue
        logprob = record.expected.logprobs[piece.choice][piece.position]
        if bits(logprob) != bits(piece.logprob):
            report("wrong log-probability", f"{where}: {piece.logprob!r} instead of {logprob!r}")

    if not record.outcomes:
        report("missing outcome", "it never ended")
    if len(record.outcomes) > 1:
        report("several outcomes", ", ".join(record.outcomes))
    if record.failed:
        report("failed", ", ".join(record.outcomes))
    if record.outcomes == [FINISHED]:
        for choice, tokens in record.expected.tokens.items():
            if next_position.get(choice, 0) < len(tokens):
                report("gap", f"choice {choice} ends after {next_position.get(choice, 0)} of "
                              f"{len(tokens)} tokens")
            if record.finished.get(choice) != [record.expected.finished[choice]]:
                report("wrong finish", f"choice {choice}: {record.finished.get(choice)}")
            if record.text.get(choice, "") != record.expected.text.get(choice, ""):
                report("wrong text", f"choice {choice}")
    return found


@dataclasses.dataclass
class Leftover:
    """What a program still holds when every client has gone and every lease has run out."""

    program: str
    what: str  # "KV pages", "rows", "streams", ...
    count: int


def check_leftovers(leftovers: Sequence[Leftover]) -> list[Violation]:
    return [Violation(f"leaked {left.what}", f"{left.program} holds {left.count}")
            for left in leftovers if left.count != 0]


class History:
    """Records of many clients. Thread-safe."""

    def __init__(self, keep_pieces: bool = True) -> None:
        """Without `keep_pieces` a record is checked when it ends, and what it held let go: a run of
        hours has more tokens than fit into memory."""
        self._lock = threading.Lock()
        self._keep_pieces = keep_pieces
        self.records: list[Record] = []

    def begin(self, name: str, kind: str, expected: Expected,
              outcomes: tuple[str, ...] = (FINISHED,)) -> Record:
        record = Record(name, kind, expected, outcomes, begun=time.monotonic())
        with self._lock:
            self.records.append(record)
        return record

    def end(self, record: Record) -> None:
        if not self._keep_pieces:
            record.violations = check_record(record)
            record.restart()

    def check(self, leftovers: Sequence[Leftover] = ()) -> list[Violation]:
        with self._lock:
            records = list(self.records)
        found = [violation for record in records
                 for violation in (check_record(record) if record.violations is None
                                   else record.violations)]
        return found + check_leftovers(leftovers)
