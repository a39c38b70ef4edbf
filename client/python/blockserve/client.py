"""Synchronous client of a blockserve gateway."""

from __future__ import annotations

from typing import Iterator, Mapping, Optional, Sequence, Union

import grpc

from blockserve import types
from blockserve.v1 import generation_pb2 as pb
from blockserve.v1 import generation_pb2_grpc

Prompt = Union[str, Sequence[int]]

_ALIGNMENTS = {
    None: pb.ALIGNMENT_UNSPECIFIED,
    "end": pb.ALIGNMENT_END,
    "start": pb.ALIGNMENT_START,
    "none": pb.ALIGNMENT_NONE,
}
_ALIGNMENT_NAMES = {value: name or "" for name, value in _ALIGNMENTS.items()}
_PRIORITIES = {
    None: pb.PRIORITY_UNSPECIFIED,
    "high": pb.PRIORITY_HIGH,
    "normal": pb.PRIORITY_NORMAL,
    "batch": pb.PRIORITY_BATCH,
}
_FINISH_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
}
# A long Score with 20 best ids per token, or a long text's ids, pass gRPC's default of 4 MiB.
_MAX_MESSAGE_BYTES = 64 << 20


def _lookup(table: Mapping[Optional[str], int], name: Optional[str], field: str) -> int:
    if name not in table:
        known = ", ".join(sorted(key for key in table if key))
        raise ValueError(f"{field} is {name!r}: use one of {known}")
    return table[name]


def _error(error: grpc.RpcError, request_id: str,
           started: Optional[types.Started] = None) -> types.Error:
    return types.Error(error.code(), error.details() or "", request_id, started)


def _read_logprobs(
    entries: Sequence[pb.TokenLogprobs],
) -> tuple[list[Optional[float]], list[list[types.TopLogprob]]]:
    own = [entry.logprob if entry.HasField("logprob") else None for entry in entries]
    top = [[types.TopLogprob(best.token, best.logprob) for best in entry.top] for entry in entries]
    return own, top


def _read_usage(usage: pb.Usage) -> types.Usage:
    return types.Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens)


class Stream:
    """The events of one generation, in their order; iterate over it. Also a context manager, which
    cancels what is left of the generation when the block is left."""

    def __init__(self, call: grpc.Call, request_id: str):
        self._call = call
        self._request_id = request_id
        self.started: Optional[types.Started] = None

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *unused: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[types.Event]:
        try:
            for response in self._call:
                event = self._read(response)
                if event is not None:
                    yield event
        except grpc.RpcError as error:
            request_id = self.started.request_id if self.started else self._request_id
            raise _error(error, request_id, self.started) from None

    def cancel(self) -> None:
        """The server stops working on the generation; iterating ends with Error CANCELLED."""
        self._call.cancel()

    def _read(self, response: pb.GenerateResponse) -> Optional[types.Event]:
        kind = response.WhichOneof("event")
        if kind == "started":
            message = response.started
            self.started = types.Started(
                message.request_id, message.model_id, message.block_numeric_id,
                message.token_numeric_id, message.seed, _ALIGNMENT_NAMES[message.alignment],
                message.prompt_tokens)
            return self.started
        if kind == "output":
            output = response.output
            logprobs, top = _read_logprobs(output.logprobs)
            return types.Output(output.choice, output.position, list(output.tokens), output.text,
                                logprobs, top, output.worker)
        if kind == "finished":
            done = response.finished
            return types.Finished(
                done.choice, _FINISH_REASONS.get(done.reason, ""), done.text,
                done.stop_token if done.HasField("stop_token") else None,
                done.stop_string if done.HasField("stop_string") else None)
        if kind == "usage":
            return _read_usage(response.usage)
        return None  # an event of a newer server


class Client:
    """Speaks to one gateway at `address` (host:port, or any gRPC target).

    timeout: seconds that a call may take where it does not say otherwise; None leaves it to the
    server (10 minutes). Safe to use from many threads.
    """

    def __init__(self, address: str, *, timeout: Optional[float] = None,
                 credentials: Optional[grpc.ChannelCredentials] = None,
                 options: Sequence[tuple[str, object]] = ()):
        channel_options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            *options,
        ]
        if credentials is None:
            self._channel = grpc.insecure_channel(address, channel_options)
        else:
            self._channel = grpc.secure_channel(address, credentials, channel_options)
        self._stub = generation_pb2_grpc.GenerationStub(self._channel)
        self._timeout = timeout

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: Optional[int] = None,
        temperature: Optional[float] = None,
        top_k: Optional[int] = None,
        top_p: Optional[float] = None,
        min_p: Optional[float] = None,
        repetition_penalty: Optional[float] = None,
        presence_penalty: Optional[float] = None,
        frequency_penalty: Optional[float] = None,
        logit_bias: Optional[Mapping[int, float]] = None,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        min_tokens: int = 0,
        ignore_eos: bool = False,
        n: Optional[int] = None,
        seed: Optional[int] = None,
        alignment: Optional[str] = None,
        logprobs: Optional[int] = None,
        priority: Optional[str] = None,
        model: str = "",
        request_id: str = "",
        timeout: Optional[float] = None,
    ) -> Stream:
        """Starts a generation after `prompt`, a text or token ids. What is left out has the server's
        default (generation.proto). `logprobs` k in 0..20 reports each token's log-probability and
        the k best."""
        request = pb.GenerateRequest(
            request_id=request_id, model=model, n=n, seed=seed, logprobs=logprobs,
            alignment=_lookup(_ALIGNMENTS, alignment, "alignment"),
            priority=_lookup(_PRIORITIES, priority, "priority"),
            sampling=pb.SamplingParameters(
                temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                logit_bias=[pb.LogitBias(token=token, bias=bias)
                            for token, bias in (logit_bias or {}).items()]),
            stop=pb.StopConditions(
                max_tokens=max_tokens, min_tokens=min_tokens, strings=list(stop),
                token_ids=list(stop_token_ids), ignore_eos=ignore_eos))
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.tokens.SetInParent()
            request.tokens.ids.extend(prompt)
        return Stream(self._stub.Generate(request, timeout=self._limit(timeout)), request_id)

    def generate(self, prompt: Prompt, **parameters) -> types.Completion:
        """As `stream`, with the same parameters, but returns the whole answer."""
        stream = self.stream(prompt, **parameters)
        choices: dict[int, types.Choice] = {}
        usage = types.Usage()
        for event in stream:
            if isinstance(event, types.Output):
                choice = choices.setdefault(event.choice, types.Choice(event.choice))
                choice.text += event.text
                choice.tokens += event.tokens
                choice.logprobs += event.logprobs
                choice.top_logprobs += event.top_logprobs
            elif isinstance(event, types.Finished):
                choice = choices.setdefault(event.choice, types.Choice(event.choice))
                choice.text += event.text
                choice.finish_reason = event.reason
                choice.stop_token = event.stop_token
                choice.stop_string = event.stop_string
            elif isinstance(event, types.Usage):
                usage = event
        if stream.started is None:
            raise types.Error(grpc.StatusCode.INTERNAL, "the stream ended before it had started")
        return types.Completion(stream.started, [choices[index] for index in sorted(choices)], usage)

    def score(self, continuation: Prompt, *, context: Optional[Prompt] = None,
              alignment: Optional[str] = None, top_logprobs: int = 0,
              priority: Optional[str] = None, model: str = "", request_id: str = "",
              timeout: Optional[float] = None) -> types.Score:
        """Log-probabilities of `continuation` after `context`, or of a text by itself."""
        request = pb.ScoreRequest(
            request_id=request_id, model=model, top_logprobs=top_logprobs,
            alignment=_lookup(_ALIGNMENTS, alignment, "alignment"),
            priority=_lookup(_PRIORITIES, priority, "priority"))
        if isinstance(continuation, str):
            request.continuation_text = continuation
        else:
            request.continuation_tokens.SetInParent()
            request.continuation_tokens.ids.extend(continuation)
        if isinstance(context, str):
            request.context_text = context
        elif context is not None:
            request.context_tokens.SetInParent()
            request.context_tokens.ids.extend(context)
        try:
            reply = self._stub.Score(request, timeout=self._limit(timeout))
        except grpc.RpcError as error:
            raise _error(error, request_id) from None
        logprobs, top = _read_logprobs(reply.logprobs)
        return types.Score(reply.request_id, reply.model_id, list(reply.tokens), logprobs, top,
                           _read_usage(reply.usage))

    def tokenize(self, text: str, *, model: str = "",
                 timeout: Optional[float] = None) -> list[int]:
        request = pb.TokenizeRequest(model=model, text=text)
        try:
            return list(self._stub.Tokenize(request, timeout=self._limit(timeout)).tokens)
        except grpc.RpcError as error:
            raise _error(error, "") from None

    def detokenize(self, tokens: Sequence[int], *, skip_special_tokens: bool = False,
                   model: str = "", timeout: Optional[float] = None) -> str:
        request = pb.DetokenizeRequest(model=model, tokens=tokens,
                                       skip_special_tokens=skip_special_tokens)
        try:
            return self._stub.Detokenize(request, timeout=self._limit(timeout)).text
        except grpc.RpcError as error:
            raise _error(error, "") from None

    def model(self, *, model: str = "", timeout: Optional[float] = None) -> types.Model:
        """What is served."""
        try:
            reply = self._stub.GetModel(pb.GetModelRequest(model=model),
                                        timeout=self._limit(timeout))
        except grpc.RpcError as error:
            raise _error(error, "") from None
        return types.Model(
            reply.model_id, reply.name, reply.kind, reply.block_length, reply.vocab_size,
            reply.max_tokens, reply.bos_token_id, reply.eos_token_id, reply.pad_token_id,
            _ALIGNMENT_NAMES[reply.default_alignment], reply.has_tokenizer, reply.block_numeric_id,
            reply.token_numeric_id, reply.block_services, reply.token_workers)

    def _limit(self, timeout: Optional[float]) -> Optional[float]:
        return self._timeout if timeout is None else timeout
