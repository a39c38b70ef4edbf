"""From Python to the messages of blockserve/v1/generation.proto and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping, Optional, Sequence, Union

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


def _lookup(table: Mapping[Optional[str], int], name: Optional[str], field: str) -> int:
    if name not in table:
        known = ", ".join(sorted(key for key in table if key))
        raise ValueError(f"{field} is {name!r}: use one of {known}")
    return table[name]


def make_error(error: grpc.RpcError, request_id: str,
           started: Optional[types.Started] = None) -> types.Error:
    return types.Error(error.code(), error.details() or "", request_id, started,
                       _connection.retry_after(error))


def _read_logprobs(
    entries: Sequence[pb.TokenLogprobs],
) -> tuple[list[Optional[float]], list[list[types.TopLogprob]]]:
    own = [entry.logprob if entry.HasField("logprob") else None for entry in entries]
    top = [[types.TopLogprob(best.token, best.logprob) for best in entry.top] for entry in entries]
    return own, top


def _read_usage(usage: pb.Usage) -> types.Usage:
    return types.Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens)


def _set_prompt(message, prompt: Prompt, text_field: str, tokens_field: str) -> None:
    if isinstance(prompt, str):
        setattr(message, text_field, prompt)
    else:
        getattr(message, tokens_field).SetInParent()
        getattr(message, tokens_field).ids.extend(prompt)


def generate_request(prompt: Prompt,
                     **parameters: Unpack[types.GenerateParameters]) -> pb.GenerateRequest:
    unknown = parameters.keys() - types.GenerateParameters.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown parameters of a generation: {', '.join(sorted(unknown))}")
    get = parameters.get
    stop = get("stop") or ()
    request = pb.GenerateRequest(
        request_id=get("request_id"), model=get("model"), n=get("n"), seed=get("seed"),
        logprobs=get("logprobs"), alignment=_lookup(_ALIGNMENTS, get("alignment"), "alignment"),
        priority=_lookup(_PRIORITIES, get("priority"), "priority"), cache_salt=get("cache_salt"),
        stream_interval=get("stream_interval"),
        sampling=pb.SamplingParameters(
            temperature=get("temperature"), top_k=get("top_k"), top_p=get("top_p"),
            min_p=get("min_p"), repetition_penalty=get("repetition_penalty"),
            presence_penalty=get("presence_penalty"), frequency_penalty=get("frequency_penalty"),
            logit_bias=[pb.LogitBias(token=token, bias=bias)
                        for token, bias in (get("logit_bias") or {}).items()]),
        stop=pb.StopConditions(
            max_tokens=get("max_tokens"), min_tokens=get("min_tokens"),
            strings=[stop] if isinstance(stop, str) else stop, token_ids=get("stop_token_ids") or (),
            ignore_eos=get("ignore_eos")))
    _set_prompt(request, prompt, "text", "tokens")
    return request


def score_request(continuation: Prompt, *, context: Optional[Prompt], alignment: Optional[str],
                  top_logprobs: int, priority: Optional[str], cache_salt: Optional[str],
                  model: str, request_id: str) -> pb.ScoreRequest:
    request = pb.ScoreRequest(
        request_id=request_id, model=model, top_logprobs=top_logprobs,
        alignment=_lookup(_ALIGNMENTS, alignment, "alignment"),
        priority=_lookup(_PRIORITIES, priority, "priority"), cache_salt=cache_salt)
    _set_prompt(request, continuation, "continuation_text", "continuation_tokens")
    if context is not None:
        _set_prompt(request, context, "context_text", "context_tokens")
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
        for _ in range(request.n if request.HasField("n") else 1):
            self._resume.choices.add()

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
        elif kind == "output" and response.output.choice < len(self._resume.choices):
            self._resume.choices[response.output.choice].tokens.extend(response.output.tokens)
        elif kind == "finished" and response.finished.choice < len(self._resume.choices):
            self._resume.choices[response.finished.choice].finished = True
        return True

    def next_request(self) -> pb.GenerateRequest:
        if self.started:
            self._request.resume.CopyFrom(self._resume)
        return self._request
