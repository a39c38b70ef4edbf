"""Clients that ask, read, give up and go on elsewhere, and write everything down."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from typing import Callable, Iterator, Optional, Sequence

import grpc
import history
from blockserve.v1 import generation_pb2 as pb
from blockserve.v1 import generation_pb2_grpc

# A request with this seed kills the token worker that decodes it (--inject-crash-seed).
CRASH_SEED = 0xDEAD
DEADLINE_S = 120
STARTS = ["Once upon a time", "The little girl", "One day, a dog", "There was a big", "Tom and Sue",
          "In the forest", "The sun was", "A small bird"]


@dataclasses.dataclass
class Template:
    kind: str
    request: pb.GenerateRequest
    expected: history.Expected = dataclasses.field(default_factory=history.Expected)


def templates(count: int, max_tokens: int, seed: int) -> list[Template]:
    """Requests of every kind, all with log-probabilities; their answers are long enough to be hit."""
    draw = random.Random(seed)
    made = []
    for index in range(count):
        kind = ("greedy", "sampled", "n=2", "penalties", "stop string", "start-aligned")[index % 6]
        request = pb.GenerateRequest(
            text=STARTS[index % len(STARTS)] + " and" * draw.randrange(0, 12),
            seed=draw.getrandbits(63) + (1 << 20), logprobs=0,
            sampling=pb.SamplingParameters(temperature=0.0 if kind == "greedy" else 0.9),
            stop=pb.StopConditions(max_tokens=draw.randrange(max_tokens // 2, max_tokens),
                                   ignore_eos=True))
        if kind == "n=2":
            request.n = 2
        if kind == "penalties":
            request.sampling.repetition_penalty = 1.2
            request.sampling.frequency_penalty = 0.3
            request.sampling.top_p = 0.95
        if kind == "start-aligned":
            request.alignment = pb.ALIGNMENT_START
            request.sampling.top_k = 40
        made.append(Template(kind, request))
    return made


def choose_stop_string(template: Template) -> None:
    """A piece of the request's own text, late in it, so that a part of it is held back now and then."""
    text = template.expected.text[0]
    for begin in range(2 * len(text) // 3, len(text) - 6):
        piece = text[begin:begin + 6]
        if text.find(piece) == begin:
            template.request.stop.strings.append(piece)
            return
    template.request.stop.strings.append("\x00never")


class Client:
    """One at a time, over and over, at any of the gateways; what it sees goes to `history`."""

    def __init__(self, addresses: Sequence[str], key: str, kept: history.History, seed: int):
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500),
                   ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.enable_retries", 0)]
        self._channels = [grpc.insecure_channel(address, options) for address in addresses]
        self._stubs = [generation_pb2_grpc.GenerationStub(channel) for channel in self._channels]
        self._metadata = [("authorization", f"Bearer {key}")]
        self._history = kept
        self._draw = random.Random(seed)
        self._serial = 0
        self._seed = seed
        self.current: Optional[grpc.Call] = None

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def ask(self, template: Template, disturb: bool = True) -> history.Record:
        """Reads the answer to its end. Now and then gives it up in the middle, or breaks its own
        stream and goes on at another gateway; when a gateway is lost, that too."""
        self._serial += 1
        manner = self._draw.choice(("read",) * 8 + ("cancel", "resume")) if disturb else "read"
        outcomes = (history.FINISHED,)
        if manner == "cancel":
            outcomes = (history.FINISHED, history.CANCELLED)
        if template.request.seed == CRASH_SEED:
            manner, outcomes = "read", (history.GIVEN_UP,)
        kind = template.kind if manner == "read" else f"{template.kind}, {manner}"
        record = self._history.begin(f"c{self._seed}-{self._serial}", kind, template.expected,
                                     outcomes)
        leave_after = self._draw.randrange(1, 8) if manner != "read" else -1
        end = time.monotonic() + DEADLINE_S
        which = self._draw.randrange(len(self._stubs))
        started: Optional[pb.Started] = None
        choices = template.request.n or 1
        received: list[list[int]] = [[] for _ in range(choices)]
        while True:
            request = pb.GenerateRequest()
            request.CopyFrom(template.request)
            request.request_id = record.name
            if disturb and self._draw.random() < 0.3:  # the answer is the same, in other pieces
                request.stream_interval = self._draw.choice((2, 9, 40))
            if started is not None:
                record.resumes += 1
                request.resume.started.CopyFrom(started)
                for choice in range(choices):
                    request.resume.choices.add(tokens=received[choice],
                                               finished=choice in record.finished)
            outcome, first, left = self._read(self._stubs[which], request, record, received,
                                              started is not None, leave_after,
                                              max(1.0, end - time.monotonic()))
            started = started or first
            if left and manner == "resume":
                leave_after, outcome = -1, None
            if outcome is None and time.monotonic() > end:
                outcome = "UNAVAILABLE until its deadline"
            if outcome is not None:
                record.outcomes.append(outcome)
                self._history.end(record)
                return record
            # The gateway is gone or leaves, or the client broke off: another one goes on.
            which = (which + 1) % len(self._stubs)
            threading.Event().wait(self._draw.uniform(0.01, 0.1))

    def _read(self, stub, request, record, received, resumed, leave_after, timeout):
        """(outcome or None for "go on elsewhere", Started, whether the client itself left)."""
        started = None
        prompt_tokens = request.resume.started.prompt_tokens if resumed else 0
        call = stub.Generate(request, timeout=timeout, metadata=self._metadata)
        self.current = call
        outputs = 0
        usage = False
        try:
            for response in call:
                event = response.WhichOneof("event")
                if event == "started":
                    started = response.started
                    prompt_tokens = started.prompt_tokens
                elif event == "output":
                    output = response.output
                    record.arrivals.append(time.monotonic())
                    for offset, token in enumerate(output.tokens):
                        record.piece(output.choice, output.position - prompt_tokens + offset, token,
                                     output.logprobs[offset].logprob)
                        received[output.choice].append(token)
                    record.text[output.choice] = record.text.get(output.choice, "") + output.text
                    outputs += 1
                    if outputs == leave_after:
                        call.cancel()
                        return history.CANCELLED, started, True
                elif event == "finished":
                    done = response.finished
                    record.finished.setdefault(done.choice, []).append(
                        (done.reason, done.stop_token if done.HasField("stop_token") else None,
                         done.stop_string if done.HasField("stop_string") else None))
                    record.text[done.choice] = record.text.get(done.choice, "") + done.text
                elif event == "usage":
                    usage = True
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if request.seed == CRASH_SEED and code == grpc.StatusCode.INTERNAL:
                if "died while they decoded" in details or "fell silent" in details:
                    return history.GIVEN_UP, started, False
            if self.may_go_on(code, details):
                return None, started, False
            return f"{code.name}: {details}", started, False
        return (history.FINISHED if usage else "ended without usage"), started, False

    @staticmethod
    def may_go_on(code: grpc.StatusCode, details: str) -> bool:
        """A gateway that is lost or leaves; not one that says that a tier is gone. gRPC's server tells
        CANCELLED to a call that reaches it in the moment in which it stops listening."""
        if code == grpc.StatusCode.CANCELLED:  # not by this client: that was returned before
            return True
        if code != grpc.StatusCode.UNAVAILABLE:
            return False
        return "worker is" not in details and "service is" not in details


def drawn(made: Sequence, draw: random.Random) -> Iterator:
    """One of them after another, each as likely as the others."""
    while True:
        yield draw.choice(made)


def dealt(made: Sequence, draw: random.Random) -> Iterator:
    """All of them before any comes again."""
    while True:
        yield from draw.sample(made, len(made))


class Crowd:
    """Clients or visitors in threads, until told to stop; `work`: what each asks."""

    def __init__(self, members: Sequence, work: Callable[[random.Random], Iterator], seed: int,
                 think_s: float):
        self._stop = threading.Event()
        self._think_s = think_s
        self.failures: list[BaseException] = []
        self._members = members
        self._threads = [
            threading.Thread(target=self._run, args=(member, work, random.Random(seed * 77 + i)))
            for i, member in enumerate(members)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _run(self, member, work: Callable[[random.Random], Iterator], draw: random.Random) -> None:
        try:
            for asked in work(draw):
                if self._stop.is_set():
                    return
                member.ask(asked)
                self._stop.wait(draw.uniform(0, 2 * self._think_s))
        except BaseException as error:  # told by the main thread
            self.failures.append(error)

    def stop(self) -> None:
        """Every request that has begun comes to its end."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for member in self._members:
            member.close()
