"""What a server's answers are read into. The fields are those of blockserve/v1/generation.proto."""

from __future__ import annotations

import dataclasses
from typing import Mapping, NamedTuple, Optional, Sequence, TypedDict, Union

import grpc


class GenerateParameters(TypedDict, total=False):
    """What a generation may be given beside its prompt. What is left out, or None, has the server's
    default (generation.proto)."""

    max_tokens: Optional[int]
    temperature: Optional[float]
    top_k: Optional[int]
    top_p: Optional[float]
    min_p: Optional[float]
    repetition_penalty: Optional[float]
    presence_penalty: Optional[float]
    frequency_penalty: Optional[float]
    logit_bias: Optional[Mapping[int, float]]
    stop: Optional[Union[str, Sequence[str]]]
    stop_token_ids: Optional[Sequence[int]]
    min_tokens: Optional[int]
    ignore_eos: Optional[bool]
    include_stop_string: Optional[bool]  # the text ends with the stop string that ended it
    n: Optional[int]
    seed: Optional[int]
    alignment: Optional[str]  # "end", "start" or "none"
    logprobs: Optional[int]  # each token's log-probability, and the so many best: 0 to 20
    priority: Optional[str]  # "high", "normal" or "batch"
    cache_salt: Optional[str]  # KV is shared with requests of the same salt alone
    stream_interval: Optional[int]  # tokens of a choice that come together, but for its first block
    model: Optional[str]
    request_id: Optional[str]


class Error(Exception):
    """A call that failed: the gRPC status code, the server's message, and the request's id.

    `started` is the first message of the stream where one had come. UNAVAILABLE, and
    RESOURCE_EXHAUSTED with a `retry_after`, are worth another try; no other code is. `retry_after`:
    the seconds after which the gateway wants to be asked again, where it tells.
    """

    def __init__(self, code: grpc.StatusCode, message: str, request_id: str = "",
                 started: Optional["Started"] = None, retry_after: Optional[float] = None):
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.request_id = request_id
        self.started = started
        self.retry_after = retry_after


class ArgumentError(Error, TypeError, ValueError):
    """An argument that cannot be sent: INVALID_ARGUMENT, told before anything is."""

    def __init__(self, message: str):
        super().__init__(grpc.StatusCode.INVALID_ARGUMENT, message)


class ClosedError(Error):
    """A call of a client that has been closed: FAILED_PRECONDITION."""

    def __init__(self) -> None:
        super().__init__(grpc.StatusCode.FAILED_PRECONDITION, "the client is closed")


class TopLogprob(NamedTuple):
    token: int
    logprob: float  # natural, raw, over the whole vocabulary


@dataclasses.dataclass(frozen=True)
class Started:
    """First event of a stream: with the tokens received since, all that a resume needs."""

    request_id: str
    model_id: str
    block_numeric_id: str
    token_numeric_id: str
    seed: int
    alignment: str  # "end", "start" or "none"
    prompt_tokens: int


@dataclasses.dataclass(frozen=True)
class Output:
    """Consecutive tokens of one choice: a block, or several of one worker."""

    choice: int
    position: int  # text position of the first token; the prompt begins at 0
    tokens: list[int]
    text: str  # whole characters; held back while they may begin a stop string
    logprobs: list[Optional[float]]  # one per token where asked for, else empty
    top_logprobs: list[list[TopLogprob]]
    worker: str  # the token worker that wrote them


@dataclasses.dataclass(frozen=True)
class Finished:
    choice: int
    reason: str  # "stop" or "length"
    text: str  # what was held back and belongs to the text
    stop_token: Optional[int]
    stop_string: Optional[str]


@dataclasses.dataclass(frozen=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0


Event = Union[Started, Output, Finished, Usage]


@dataclasses.dataclass
class Choice:
    index: int
    text: str = ""
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[Optional[float]] = dataclasses.field(default_factory=list)
    top_logprobs: list[list[TopLogprob]] = dataclasses.field(default_factory=list)
    finish_reason: str = ""
    stop_token: Optional[int] = None
    stop_string: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class Completion:
    started: Started
    choices: list[Choice]
    usage: Usage


@dataclasses.dataclass(frozen=True)
class Score:
    request_id: str
    model_id: str
    tokens: list[int]
    logprobs: list[Optional[float]]  # None where a token has no score
    top_logprobs: list[list[TopLogprob]]
    usage: Usage


@dataclasses.dataclass(frozen=True)
class Model:
    model_id: str
    name: str
    kind: str  # "block_transformer" or "gpt_neox"
    block_length: int
    vocab_size: int
    max_tokens: int  # longest text in tokens; 0: no limit
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    default_alignment: str
    has_tokenizer: bool
    block_numeric_id: str
    token_numeric_id: str
    block_services: int  # connected
    token_workers: int  # connected
