"""Clients of other manners than those of clients.py: over HTTP, unary, slow, in a hurry, rude."""

from __future__ import annotations

import dataclasses
import http.client
import json
import random
import socket
import struct
import threading
import time
from typing import Optional, Sequence

import clients
import grpc
import history
from blockserve.v1 import generation_pb2 as pb
from blockserve.v1 import generation_pb2_grpc

# Gateways cut off who does not read for so long.
UNREAD_S = 5
LONG_PROMPT_WORDS = 1200


@dataclasses.dataclass
class Errand:
    kind: str
    outcomes: tuple[str, ...]
    body: dict = dataclasses.field(default_factory=dict)  # over HTTP
    request: Optional[object] = None                      # over gRPC
    expected: history.Expected = dataclasses.field(default_factory=history.Expected)


def errands(seed: int) -> list[Errand]:
    draw = random.Random(seed)

    def body(**fields) -> dict:
        if fields.get("stream"):
            fields["stream_options"] = {"include_event_id": True, **fields.get("stream_options", {})}
        return {"prompt": draw.choice(clients.STARTS) + " and" * draw.randrange(0, 8),
                "seed": draw.getrandbits(53), "temperature": 0.9, "ignore_eos": True, "logprobs": 0,
                "return_token_ids": True, "max_tokens": draw.randrange(16, 48), **fields}

    def generate(**fields) -> pb.GenerateRequest:
        return pb.GenerateRequest(
            text=draw.choice(clients.STARTS), seed=draw.getrandbits(53) + (1 << 20), logprobs=0,
            stop=pb.StopConditions(max_tokens=32, ignore_eos=True), **fields)

    long_text = " and".join(draw.choice(clients.STARTS) for _ in range(LONG_PROMPT_WORDS // 4))
    done = (history.FINISHED,)
    made = [
        Errand("HTTP stream", done, body(stream=True)),
        Errand("HTTP stream, n=3", done, body(stream=True, n=3)),
        Errand("HTTP stream, stop string", done, body(stream=True, stop=["e", "zz"], ignore_eos=False)),
        Errand("HTTP stream, larger events", done,
               body(stream=True, n=2, stream_options={"stream_interval": 10})),
        Errand("HTTP, whole", done, body(n=2)),
        Errand("HTTP, echo", done, body(echo=True, max_tokens=0, prompt=long_text[:2000])),
        Errand("HTTP, two prompts", done, body(prompt=clients.STARTS[:2])),
        Errand("HTTP, long prompt", done, body(stream=True, prompt=long_text)),
        Errand("HTTP, slow reader", done, body(stream=True, n=4, logprobs=5, max_tokens=48)),
        Errand("HTTP, stops reading", (history.LEFT,),
               body(stream=True, n=8, logprobs=5, max_tokens=160)),
        Errand("HTTP, resets", (history.LEFT,), body(stream=True, n=2, max_tokens=200)),
        Errand("HTTP, bad request", (history.REFUSED,), body(n=0)),
        Errand("HTTP, no HTTP", (history.REFUSED,)),
        Errand("HTTP, limited key", (history.FINISHED, history.REFUSED), body()),
        Errand("score", done, request=pb.ScoreRequest(
            context_text=clients.STARTS[0], continuation_text=long_text[:600])),
        Errand("score, long text", done, request=pb.ScoreRequest(continuation_text=long_text)),
        Errand("score, short deadline", (history.FINISHED, history.EXPIRED, history.REFUSED),
               request=pb.ScoreRequest(continuation_text=long_text)),
        Errand("short deadline", (history.FINISHED, history.EXPIRED, history.REFUSED),
               request=generate()),
        Errand("stops reading", (history.FINISHED, history.LEFT), request=pb.GenerateRequest(
            text=clients.STARTS[1], seed=1 << 21, logprobs=10, n=8,
            stop=pb.StopConditions(max_tokens=160, ignore_eos=True))),
        Errand("limited key", (history.FINISHED, history.REFUSED), request=generate()),
        Errand("bad request", (history.REFUSED,),
               request=generate(sampling=pb.SamplingParameters(temperature=-1))),
        Errand("tokenize", done, request=pb.TokenizeRequest(text=long_text[:3000])),
    ]
    return made


class Elsewhere(Exception):
    """The gateway is lost, or leaves: another one goes on."""


class Visitor:
    """One errand at a time, at any of the gateways."""

    def __init__(self, gateways: Sequence, keys: dict[str, str], kept: history.History, seed: int):
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500),
                   ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.enable_retries", 0)]
        self._http = [gateway.http_address for gateway in gateways]
        self._channels = [grpc.insecure_channel(gateway.address, options) for gateway in gateways]
        self._stubs = [generation_pb2_grpc.GenerationStub(channel) for channel in self._channels]
        self._keys = keys
        self._history = kept
        self._draw = random.Random(seed)
        self._seed = seed
        self._serial = 0
        self._manner = ""

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def ask(self, errand: Errand, patient: bool = False) -> history.Record:
        """`patient`: reads to the end at once, with a key and a deadline that let it."""
        self._serial += 1
        self._manner = "" if patient else errand.kind
        record = self._history.begin(f"v{self._seed}-{self._serial}", errand.kind, errand.expected,
                                     errand.outcomes)
        which = self._draw.randrange(len(self._http))
        end = time.monotonic() + clients.DEADLINE_S
        events = Events(record)
        while True:
            try:
                if errand.request is not None:
                    outcome = self._grpc(errand, record, which)
                elif errand.body.get("stream"):
                    outcome = self._stream(errand, record, which, events)
                else:
                    outcome = self._whole(errand, record, which)
                break
            except Elsewhere as error:
                if time.monotonic() > end:
                    outcome = f"unavailable until its deadline: {error}"
                    break
            which = (which + 1) % len(self._http)
            record.resumes += 1
            threading.Event().wait(self._draw.uniform(0.01, 0.1))
        record.outcomes.append(outcome)
        self._history.end(record)
        return record

    def _key(self) -> str:
        return self._keys["limited" if "limited" in self._manner else "tester"]

    # Over gRPC.

    def _grpc(self, errand: Errand, record: history.Record, which: int) -> str:
        stub, request = self._stubs[which], errand.request
        short = "short deadline" in self._manner
        timeout = self._draw.uniform(0.005, 0.4) if short else clients.DEADLINE_S
        call = {pb.ScoreRequest: stub.Score, pb.GenerateRequest: stub.Generate,
                pb.TokenizeRequest: stub.Tokenize}[type(request)]
        metadata = [("authorization", f"Bearer {self._key()}")]
        try:
            answer = call(request, timeout=timeout, metadata=metadata)
            if isinstance(request, pb.GenerateRequest):
                self._read(answer, record, 1.6 * UNREAD_S if "stops" in self._manner else 0)
            elif isinstance(request, pb.ScoreRequest):
                for position, (token, scored) in enumerate(zip(answer.tokens, answer.logprobs)):
                    record.piece(0, position, token,
                                 scored.logprob if scored.HasField("logprob") else None)
                record.finished[0] = [("scored",)]
            else:
                for position, token in enumerate(answer.tokens):
                    record.piece(0, position, token, None)
                record.finished[0] = [("tokenized",)]
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code == grpc.StatusCode.DEADLINE_EXCEEDED and short:
                return history.EXPIRED
            if code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT):
                return history.REFUSED if history.REFUSED in errand.outcomes else f"{code}: {details}"
            if code == grpc.StatusCode.ABORTED and "stops" in self._manner:
                return history.LEFT
            if clients.Client.may_go_on(code, details):
                if short:
                    return history.EXPIRED
                if record.pieces:  # whoever wants the rest resumes: that is clients.Client's part
                    record.restart()
                raise Elsewhere(details) from None
            return f"{code.name}: {details}"
        return history.FINISHED

    @staticmethod
    def _read(call, record: history.Record, pause_s: float) -> None:
        prompt_tokens = 0
        for response in call:
            event = response.WhichOneof("event")
            if event == "started":
                prompt_tokens = response.started.prompt_tokens
                if pause_s:
                    threading.Event().wait(pause_s)
            elif event == "output":
                output = response.output
                for offset, token in enumerate(output.tokens):
                    record.piece(output.choice, output.position - prompt_tokens + offset, token,
                                 output.logprobs[offset].logprob)
                record.text[output.choice] = record.text.get(output.choice, "") + output.text
            elif event == "finished":
                done = response.finished
                record.finished.setdefault(done.choice, []).append((done.reason,))
                record.text[done.choice] = record.text.get(done.choice, "") + done.text

    # Over HTTP.

    def _connect(self, which: int, small_buffer: bool = False) -> http.client.HTTPConnection:
        host, port = self._http[which].rsplit(":", 1)
        connection = http.client.HTTPConnection(host, int(port), timeout=clients.DEADLINE_S)
        connection.sock = socket.socket()
        connection.sock.settimeout(clients.DEADLINE_S)
        if small_buffer:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            connection.sock.connect((host, int(port)))
        except OSError as error:
            connection.close()
            raise Elsewhere(str(error)) from None
        return connection

    def _post(self, connection, errand: Errand, last_id: Optional[str] = None):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key()}"}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        connection.request("POST", "/v1/completions", json.dumps(errand.body), headers)
        return connection.getresponse()

    def _whole(self, errand: Errand, record: history.Record, which: int) -> str:
        connection = self._connect(which)
        try:
            if errand.kind == "HTTP, no HTTP":
                connection.sock.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
                answer = connection.sock.recv(64)
                if not answer:
                    raise Elsewhere("closed")
                return history.REFUSED if b" 400 " in answer else f"answered {answer!r}"
            response = self._post(connection, errand)
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            raise Elsewhere(repr(error)) from None
        finally:
            connection.close()
        if response.status != 200:
            return self._refused(errand, response.status, answer)
        for choice in answer["choices"]:
            index = choice["index"]
            logprobs = choice["logprobs"]["token_logprobs"]
            tokens = [*choice["prompt_token_ids"], *choice["token_ids"]] \
                if errand.body.get("echo") else choice["token_ids"]
            for position, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
                record.piece(index, position, token, logprob)
            record.text[index] = choice["text"]
            record.finished[index] = [(choice["finish_reason"], choice["stop_reason"])]
        return history.FINISHED

    @staticmethod
    def _refused(errand: Errand, status: int, answer: dict) -> str:
        message = answer["error"]["message"]
        if status in (400, 429) and history.REFUSED in errand.outcomes:
            return history.REFUSED
        if status == 503 and "worker is" not in message and "service is" not in message:
            raise Elsewhere(message)
        return f"HTTP {status}: {message}"

    def _stream(self, errand: Errand, record: history.Record, which: int, events: "Events") -> str:
        slow = "slow" in self._manner
        stops = "stops" in self._manner
        connection = self._connect(which, small_buffer=slow or stops)
        own = connection.sock
        try:
            response = self._post(connection, errand, events.last_id)
            if response.status != 200:
                return self._refused(errand, response.status, json.loads(response.read()))
            for line in response:
                outcome = events.line(line.decode().rstrip("\n"))
                if outcome is not None:
                    return outcome
                if slow:
                    threading.Event().wait(0.004)
                if stops and events.count == 3:
                    threading.Event().wait(1.6 * UNREAD_S)
                    return history.LEFT
                if "resets" in self._manner and events.count == 9:
                    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return history.LEFT
            raise Elsewhere("the stream broke off")
        except (OSError, http.client.HTTPException) as error:
            raise Elsewhere(repr(error)) from None
        finally:
            connection.close()
            own.close()


class Events:
    """What a stream of server-sent events told so far, over all its connections."""

    def __init__(self, record: history.Record):
        self._record = record
        self.last_id: Optional[str] = None
        self.count = 0
        self._next: dict[int, int] = {}

    def line(self, line: str) -> Optional[str]:
        """One line; the outcome, where it is the last one."""
        if line.startswith("id: "):
            self._id = line.removeprefix("id: ")
        if not line.startswith("data: "):
            return None
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            return history.FINISHED
        event = json.loads(data)
        if "error" in event:
            if event["error"]["code"] == 503:
                raise Elsewhere(event["error"]["message"])
            return f"error event: {event['error']}"
        self.last_id = self._id
        self.count += 1
        for choice in event["choices"]:
            index = choice["index"]
            for token, logprob in zip(choice["token_ids"], choice["logprobs"]["token_logprobs"],
                                      strict=True):
                position = self._next.get(index, 0)
                self._record.piece(index, position, token, logprob)
                self._next[index] = position + 1
            self._record.text[index] = self._record.text.get(index, "") + choice["text"]
            if choice["finish_reason"] is not None:
                self._record.finished.setdefault(index, []).append(
                    (choice["finish_reason"], choice.get("stop_reason")))
        return None
