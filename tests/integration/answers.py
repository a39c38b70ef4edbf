"""What two runs of a request are compared by, and requests of every kind to compare."""

from __future__ import annotations

import dataclasses
import random
from typing import Callable, Optional

import blockserve


@dataclasses.dataclass
class Answer:
    """Everything of a stream that must not differ between runs, choice by choice."""

    tokens: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    logprobs: dict[int, list[Optional[float]]] = dataclasses.field(default_factory=dict)
    top_logprobs: dict[int, list] = dataclasses.field(default_factory=dict)
    text: dict[int, str] = dataclasses.field(default_factory=dict)
    finished: dict[int, tuple] = dataclasses.field(default_factory=dict)
    # Not compared: who did the work, and what it could take from the prefix cache.
    workers: set[str] = dataclasses.field(default_factory=set, compare=False)
    cached_prompt_tokens: int = dataclasses.field(default=0, compare=False)


def read_answer(stream: blockserve.Stream,
                on_output: Callable[[blockserve.Output], None] = lambda output: None) -> Answer:
    """Reads a stream to its end. Checks that every position comes once and in order, that every
    choice finishes once and that nothing follows its end."""
    answer = Answer()
    next_position: dict[int, int] = {}
    usage: Optional[blockserve.Usage] = None
    for number, event in enumerate(stream):
        assert usage is None, f"{event} after the stream's usage"
        if isinstance(event, blockserve.Started):
            assert number == 0, "a stream starts once, and first"
            continue
        assert number > 0, f"{event} before the stream has started"
        if isinstance(event, blockserve.Usage):
            usage = event
            continue
        choice = event.choice
        assert choice not in answer.finished, f"{event} after the end of its choice"
        if isinstance(event, blockserve.Finished):
            answer.finished[choice] = (event.reason, event.stop_token, event.stop_string)
            answer.text[choice] = answer.text.get(choice, "") + event.text
            continue
        expected = next_position.get(choice, stream.started.prompt_tokens)
        assert event.position == expected, f"choice {choice}: position {event.position}, not {expected}"
        next_position[choice] = event.position + len(event.tokens)
        answer.tokens.setdefault(choice, []).extend(event.tokens)
        answer.logprobs.setdefault(choice, []).extend(event.logprobs)
        answer.top_logprobs.setdefault(choice, []).extend(event.top_logprobs)
        answer.text[choice] = answer.text.get(choice, "") + event.text
        answer.workers.add(event.worker)
        on_output(event)
    assert usage is not None, "the stream ended without usage"
    assert usage.completion_tokens == sum(map(len, answer.tokens.values()))
    answer.cached_prompt_tokens = usage.cached_prompt_tokens
    return answer


def ask(client: blockserve.Client, request: dict) -> Answer:
    return read_answer(client.stream(**request))


def mixed_requests(count: int, vocab: int, seed: int = 1) -> list[dict]:
    """Requests of every kind: greedy and sampled, every parameter, alignment and number of choices;
    several prompts begin alike."""
    draw = random.Random(seed)
    common = [draw.randrange(1, vocab) for _ in range(60)]
    requests = []
    for index in range(count):
        own = [draw.randrange(1, vocab) for _ in range(draw.choice((1, 2, 3, 5, 8, 17, 40, 90)))]
        prompt = common[: draw.randrange(20, 60)] + own if index % 3 == 0 else own
        request = {
            "prompt": prompt,
            "max_tokens": draw.randrange(5, 50),
            "logprobs": draw.choice((0, 0, 3)),
            "alignment": ("end", "start", "none")[index % 3 if index % 2 else 0],
            "ignore_eos": index % 4 != 0,
            "seed": draw.getrandbits(64),
        }
        if index % 4 == 0:
            request["temperature"] = 0.0
        else:
            request["temperature"] = draw.choice((0.5, 1.0, 1.5))
            request.update(draw.choice((
                {}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 50, "top_p": 0.8},
                {"repetition_penalty": 1.3}, {"presence_penalty": 0.5, "frequency_penalty": 0.25},
                {"logit_bias": {7: 3.0, 11: -100.0}}, {"min_tokens": 4})))
        if index % 5 == 0:
            request["n"] = 2 + index % 2
        requests.append(request)
    return requests
