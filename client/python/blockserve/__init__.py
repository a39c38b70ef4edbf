"""Client of blockserve, a serving system for Block Transformers."""

from blockserve.client import Client, Stream
from blockserve.types import (
    Choice,
    Completion,
    Error,
    Event,
    Finished,
    Model,
    Output,
    Score,
    Started,
    TopLogprob,
    Usage,
)

__all__ = [
    "Choice",
    "Client",
    "Completion",
    "Error",
    "Event",
    "Finished",
    "Model",
    "Output",
    "Score",
    "Started",
    "Stream",
    "TopLogprob",
    "Usage",
]
