"""The requests that every arm of ``serving.py`` runs, and how many of them an arm can afford."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Request:
    """One request: the prompt that it belongs to, and its input."""

    prompt: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """Prompts of one length and the requests that use them."""

    texts: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    requests: tuple[Request, ...]

    def first(self, count: int) -> Workload:
        """The first requests, with the prompts that they use; request ``i`` uses prompt ``i`` modulo all prompts."""
        used = min(count, len(self.prompts))
        return Workload(self.texts[:used], self.prompts[:used], self.requests[:count])

    def read(self, request: Request) -> tuple[int, ...]:
        """What the base reads if the prompt is in its context."""
        return (*self.prompts[request.prompt], *request.ids)


def make_workload(tokenizer: Any, *, requests: int, prompts: int, length: int, input_tokens: int) -> Workload:
    """Random words as prompts of ``length`` tokens, and as inputs."""
    draw = torch.Generator().manual_seed(1000 * prompts + length)  # no two workloads share prompts
    vocabulary = [
        token
        for token in range(1000, 8000)
        if (text := tokenizer.decode([token])).startswith(" ") and text[1:].isalpha() and text.isascii()
    ]

    def words(count: int) -> tuple[int, ...]:
        chosen = torch.randint(len(vocabulary), (count,), generator=draw).tolist()
        return tuple(vocabulary[i] for i in chosen)

    drawn = tuple(words(length) for _ in range(prompts))
    texts = tuple(str(tokenizer.decode(list(ids))) for ids in drawn)
    return Workload(texts, drawn, tuple(Request(i % prompts, words(input_tokens)) for i in range(requests)))


def affordable(seconds: Callable[[int], float], most: float, requests: int, in_flight: int) -> int:
    """How many of the requests take at most ``most`` seconds: all of them, or a multiple of ``in_flight``, at least two."""
    if seconds(requests) <= most:
        return requests
    fits = (count for count in range(requests // in_flight * in_flight, 0, -in_flight) if seconds(count) <= most)
    return min(requests, max(2 * in_flight, next(fits, 0)))


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {"p50": ordered[round(0.5 * last)], "p99": ordered[round(0.99 * last)]}
