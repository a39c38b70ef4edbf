"""Clients that ask without a pause while a test changes the deployment under them."""

from __future__ import annotations

import contextlib
import random
import threading
from typing import Callable, Iterator, NamedTuple, Sequence

import blockserve
import harness
from answers import Answer, read_answer


class Answered(NamedTuple):
    index: int  # of the request
    model_id: str
    answer: Answer


class SteadyLoad:
    """So many clients, each with one of `requests` at a time, drawn at random. What they were answered is kept;
    the first failure of a client is kept too, and ends it."""

    def __init__(self, client: blockserve.Client, requests: Sequence[dict], clients: int):
        self._client, self._requests = client, requests
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._running: dict[int, int] = {}  # client -> outputs of its stream so far
        self.outputs = 0
        self.workers: set[str] = set()
        self.answers: list[Answered] = []
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        draw = random.Random(number)
        while not self._over.is_set():
            index = draw.randrange(len(self._requests))
            try:
                stream = self._client.stream(**self._requests[index])
                answer = read_answer(stream, lambda output: self._saw(number, output))
            except Exception as error:  # counted, and told by the test
                with self._changed:
                    self.failures.append(repr(error))
                    self._changed.notify_all()
                return
            with self._changed:
                self._running.pop(number, None)
                self.answers.append(Answered(index, stream.started.model_id, answer))
                self._changed.notify_all()

    def _saw(self, number: int, output: blockserve.Output) -> None:
        with self._changed:
            self._running[number] = self._running.get(number, 0) + 1
            self.outputs += 1
            self.workers.add(output.worker)
            self._changed.notify_all()

    def wait_for(self, holds: Callable[[], bool], what: str) -> None:
        """Until `holds`, which is asked after every output and every answer; fails with the clients."""
        with self._changed:
            assert self._changed.wait_for(lambda: holds() or self.failures,
                                          harness.START_LIMIT_S), what
            assert not self.failures, self.failures

    def wait_for_answers(self, more: int) -> None:
        wanted = len(self.answers) + more
        self.wait_for(lambda: len(self.answers) >= wanted, f"{more} more answers")

    def wait_for_outputs(self, more: int) -> None:
        wanted = self.outputs + more
        self.wait_for(lambda: self.outputs >= wanted, f"{more} more outputs")

    def wait_until_in_mid_stream(self) -> None:
        """Half of the clients have had a part of an answer."""
        self.wait_for(lambda: 2 * sum(had >= 2 for had in self._running.values()) >= len(self._threads),
                      "streams are under way")

    def stop(self) -> None:
        """Once every client has its answer."""
        self._over.set()
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def undisturbed_load(client: blockserve.Client, requests: Sequence[dict], clients: int,
                     expected: Sequence[Answer]) -> Iterator[SteadyLoad]:
    """A load that goes on for as long as the block does, no client of which may notice what happens there: none
    fails, and `expected`, one for each request, is what all are answered."""
    load = SteadyLoad(client, requests, clients)
    try:
        yield load
    finally:
        load.stop()
    assert load.failures == []
    for index, _, answer in load.answers:
        assert answer == expected[index], requests[index]
