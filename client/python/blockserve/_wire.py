"""From Python to the messages of blockserve/v1/generation.proto and back."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Iterator, Mapping, Optional, Sequence, Union

import grpc

from blockserve import _connection, types
from blockserve.v1 import generation_pb2 as pb

if TYPE_CHECKING:
    from typing_extensions import Unpack

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


# Where the parameters of a generation go that are one field each: the message in the request, and
# the field in it.
_FIELDS = {
    **{name: ("", name) for name in ("request_id", "model", "n", "seed", "logprobs", "cache_salt",
                                     "stream_interval")},
    **{name: ("sampling", name) for name in (
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty")},
    **{name: ("stop", name) for name in ("max_tokens", "min_tokens", "ignore_eos")},
    "stop_token_ids": ("stop", "token_ids"),
    "include_stop_string": ("stop", "include_string"),
}


def _lookup(table: Mapping[Optional[str], int], name: Optional[str], field: str) -> int:
    if name is not None and not isinstance(name, str) or name not in table:
        known = ", ".join(sorted(key for key in table if key))
        raise types.ArgumentError(f"{field} is {name!r}: use one of {known}")
    return table[name]


@contextlib.contextmanager
def argument(name: str) -> Iterator[None]:
    """What protobuf does not take is told as this argument's."""
    try:
        yield
    except (TypeError, ValueError, AttributeError) as error:
        raise types.ArgumentError(f"{name}: {error}") from None


def _set(message, field: str, value, name: str) -> None:
    if value is None:
        return
    if isinstance(value, (bytes, bytearray)):  # protobuf takes them for text, or for ids
        raise types.ArgumentError(f"{name}: must not be {type(value).__name__}")
    with argument(name):
        if hasattr(getattr(message, field), "extend"):
            getattr(message, field).extend(value)
        else:
            setattr(message, field, value)


def make_error(error: grpc.RpcError, request_id: str,
           started: Optional[types.Started] = None) -> types.Error:
    return types.Error(error.code(), error.details() or "", request_id, started,
                       _connection.retry_after(error))


def cancelled(request_id: str, started: Optional[types.Started]) -> types.Error:
    """Of a stream that its user has cancelled between two tries."""
    return types.Error(grpc.StatusCode.CANCELLED, "cancelled by its user", request_id, started)


def _read_logprobs(
    entries: Sequence[pb.TokenLogprobs],
) -> tuple[list[Optional[float]], list[list[types.TopLogprob]]]:
    own = [entry.logprob if entry.HasField("logprob") else None for entry in entries]
    top = [[types.TopLogprob(best.token, best.logprob) for best in entry.top] for entry in entries]
    return own, top


def _read_usage(usage: pb.Usage) -> types.Usage:
    return types.Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens)


def _set_prompt(message, prompt: Prompt, text_field: str, tokens_field: str, name: str) -> None:
    if isinstance(prompt, str):
        _set(message, text_field, prompt, name)
    elif prompt is None:
        raise types.ArgumentError(f"{name}: must be a text or token ids, not None")
    else:
        getattr(message, tokens_field).SetInParent()
        _set(getattr(message, tokens_field), "ids", prompt, name)


def generate_request(prompt: Prompt,
                     **parameters: Unpack[types.GenerateParameters]) -> pb.GenerateRequest:
    unknown = parameters.keys() - types.GenerateParameters.__annotations__.keys()
    if unknown:
        raise types.ArgumentError(
            f"unknown parameters of a generation: {', '.join(sorted(unknown))}")
    get = parameters.get
    request = pb.GenerateRequest(
        alignment=_lookup(_ALIGNMENTS, get("alignment"), "alignment"),
        priority=_lookup(_PRIORITIES, get("priority"), "priority"),
        sampling=pb.SamplingParameters(), stop=pb.StopConditions())
    for name, (part, field) in _FIELDS.items():
        _set(getattr(request, part) if part else request, field, get(name), name)
    stop = get("stop")
    _set(request.stop, "strings", [stop] if isinstance(stop, str) else stop, "stop")
    with argument("logit_bias"):
        for token, bias in (get("logit_bias") or {}).items():
            request.sampling.logit_bias.add(token=token, bias=bias)
    _set_prompt(request, prompt, "text", "tokens", "prompt")
    return request


def score_request(continuation: Prompt, *, context: Optional[Prompt], alignment: Optional[str],
                  top_logprobs: int, priority: Optional[str], cache_salt: Optional[str],
                  model: str, request_id: str) -> pb.ScoreRequest:
    request = pb.ScoreRequest(alignment=_lookup(_ALIGNMENTS, alignment, "alignment"),
                              priority=_lookup(_PRIORITIES, priority, "priority"))
    for name, value in (("top_logprobs", top_logprobs), ("cache_salt", cache_salt),
                        ("model", model), ("request_id", request_id)):
        _set(request, name, value, name)
    _set_prompt(request, continuation, "continuation_text", "continuation_tokens", "continuation")
    if context is not None:
        _set_prompt(request, context, "context_text", "context_tokens", "context")
    return request


def tokenize_request(text: str, model: str) -> pb.TokenizeRequest:
    request = pb.TokenizeRequest()
    _set(request, "text", text, "text")
    _set(request, "model", model, "model")
    return request


def detokenize_request(tokens: Sequence[int], skip_special_tokens: bool,
                       model: str) -> pb.DetokenizeRequest:
    request = pb.DetokenizeRequest()
    _set(request, "tokens", tokens, "tokens")
    _set(request, "skip_special_tokens", skip_special_tokens, "skip_special_tokens")
    _set(request, "model", model, "model")
    return request


def model_request(model: str) -> pb.GetModelRequest:
    request = pb.GetModelRequest()
    _set(request, "model", model, "model")
    return request


def read_event(response: pb.GenerateResponse) -> Optional[types.Event]:
    """None: an event of a newer server."""
    kind = response.WhichOneof("event")
    if kind == "started":
        message = response.started
        return types.Started(
            message.request_id, message.model_id, message.block_numeric_id,
            message.token_numeric_id, message.seed, _ALIGNMENT_NAMES[message.alignment],
            message.prompt_tokens)
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
    return None


def read_score(reply: pb.ScoreResponse) -> types.Score:
    logprobs, top = _read_logprobs(reply.logprobs)
    return types.Score(reply.request_id, reply.model_id, list(reply.tokens), logprobs, top,
                       _read_usage(reply.usage))


def read_model(reply: pb.GetModelResponse) -> types.Model:
    return types.Model(
        reply.model_id, reply.name, reply.kind, reply.block_length, reply.vocab_size,
        reply.max_tokens, reply.bos_token_id, reply.eos_token_id, reply.pad_token_id,
        _ALIGNMENT_NAMES[reply.default_alignment], reply.has_tokenizer, reply.block_numeric_id,
        reply.token_numeric_id, reply.block_services, reply.token_workers)


class CompletionBuilder:
    """Puts the events of a stream together."""

    def __init__(self) -> None:
        self._choices: dict[int, types.Choice] = {}
        self._usage = types.Usage()
        self._started: Optional[types.Started] = None

    def add(self, event: types.Event) -> None:
        if isinstance(event, types.Started):
            self._started = event
        elif isinstance(event, types.Output):
            choice = self._choice(event.choice)
            choice.text += event.text
            choice.tokens += event.tokens
            choice.logprobs += event.logprobs
            choice.top_logprobs += event.top_logprobs
        elif isinstance(event, types.Finished):
            choice = self._choice(event.choice)
            choice.text += event.text
            choice.finish_reason = event.reason
            choice.stop_token = event.stop_token
            choice.stop_string = event.stop_string
        elif isinstance(event, types.Usage):
            self._usage = event

    def build(self) -> types.Completion:
        if self._started is None:
            raise types.Error(grpc.StatusCode.INTERNAL, "the stream ended before it had started")
        return types.Completion(self._started,
                                [self._choices[index] for index in sorted(self._choices)],
                                self._usage)

    def _choice(self, index: int) -> types.Choice:
        return self._choices.setdefault(index, types.Choice(index))


class Received:
    """What came of a stream: with it, the stream goes on elsewhere."""

    def __init__(self, request: pb.GenerateRequest):
        self._request = request
        self._resume = pb.Resume()

    @property
    def started(self) -> bool:
        return self._resume.HasField("started")

    def take(self, response: pb.GenerateResponse) -> bool:
        """False: it repeats what came before."""
        kind = response.WhichOneof("event")
        if kind == "started":
            if self.started:
                return False
            self._resume.started.CopyFrom(response.started)
            # Not before: a server has not yet looked at `n`, which may be any number.
            for _ in range(self._request.n if self._request.HasField("n") else 1):
                self._resume.choices.add()
        elif kind == "output" and response.output.choice < len(self._resume.choices):
            self._resume.choices[response.output.choice].tokens.extend(response.output.tokens)
        elif kind == "finished" and response.finished.choice < len(self._resume.choices):
            self._resume.choices[response.finished.choice].finished = True
        return True

    def next_request(self) -> pb.GenerateRequest:
        if self.started:
            self._request.resume.CopyFrom(self._resume)
        return self._request
