"""The next token of each request of a batch, each with settings, random numbers and log-probabilities of its own.

transformers' continuous batching samples with one setting for the whole batch: greedy or not, one generator, and the
log-probability of the chosen token alone. So the choice is made here, with transformers' own logits processors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from promptlora.engine.requests import Sampling

_COLDEST = 1e-5  # below it the most likely token is taken: logits that are divided by less can overflow


@dataclass(frozen=True)
class Chosen:
    """A token that was chosen.

    Attributes:
        token_id: The token.
        logprob: Its log-probability in nats, where it was asked for.
        top: ``(token_id, logprob)`` of the most likely tokens, the most likely first.
        failed: Whether the model gave no number that a token could be chosen by; the token means nothing then.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    failed: bool = False


class Chooser:
    """Chooses the tokens of one request.

    Args:
        sampling: Its settings.
        device: Where its logits are.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self._warpers: list[Any] = []
        self._generator: torch.Generator | None = None
        if sampling.temperature >= _COLDEST:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(float(sampling.top_p)))
            self._generator = torch.Generator(device)
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)

    def sample(self, logits: Tensor) -> int | None:
        """A token drawn from logits ``[vocabulary]``; None where the most likely one is taken."""
        if self._generator is None:
            return None
        scores: Any = logits[None]
        for warper in self._warpers:
            scores = warper(None, scores)  # neither looks at the tokens before
        return int(torch.multinomial(torch.softmax(scores, -1), 1, generator=self._generator))

    def report(self, logits: Tensor, token: int) -> Chosen:
        """The token with the log-probabilities that were asked for."""
        count = self.sampling.logprobs
        if count is None:
            return Chosen(token)
        logprobs = torch.log_softmax(logits, -1)
        values, ids = logprobs.topk(min(count, len(logprobs)))
        return Chosen(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def choose(logits: Tensor, choosers: Sequence[Chooser]) -> list[Chosen]:
    """One token for each row of logits ``[requests, vocabulary]`` in float32; a row that is not finite fails alone."""
    best, likely = (each.tolist() for each in logits.max(-1))  # nan is larger than all numbers
    chosen = []
    for row, chooser, score, token in zip(logits, choosers, best, likely, strict=True):
        if not math.isfinite(score):
            chosen.append(Chosen(token, failed=True))
            continue
        drawn = chooser.sample(row)
        chosen.append(chooser.report(row, token if drawn is None else drawn))
    return chosen
