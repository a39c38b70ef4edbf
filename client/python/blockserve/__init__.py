"""Client of blockserve, a serving system for Block Transformers."""

from blockserve._connection import Tls
from blockserve.aio import AsyncClient, AsyncStream
from blockserve.client import Client, Stream
from blockserve.types import (
    ArgumentError,
    Choice,
    ClosedError,
    Completion,
    Error,
    Event,
    Finished,
    GenerateParameters,
    Model,
    Output,
    Score,
    Started,
    TopLogprob,
    Usage,
)

__all__ = [
    "ArgumentError",
    "AsyncClient",
    "AsyncStream",
    "Choice",
    "Client",
    "ClosedError",
    "Completion",
    "Error",
    "Event",
    "Finished",
    "GenerateParameters",
    "Model",
    "Output",
    "Score",
    "Started",
    "Stream",
    "Tls",
    "TopLogprob",
    "Usage",
]
