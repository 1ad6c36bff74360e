"""Scores answers: sums of log-probabilities of given tokens, for many rows at once.

It knows ``Host`` and token ids; it knows nothing of text or hypernetworks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from promptlora.host import Host
from promptlora.lora import LoRAWeights
from promptlora.text import pad_rows


def score_rows(
    host: Host,
    starts: Sequence[Sequence[int]],
    ends: Sequence[Sequence[int]],
    lora: LoRAWeights | None = None,
    adapter_index: Sequence[int] | None = None,
    *,
    batch_size: int = 32,
) -> list[float]:
    """The log-probability of each end given its start, in nats.

    Args:
        host: The host that runs the model.
        starts: Token ids of each context, at least one token.
        ends: Token ids of each scored continuation.
        lora: The adapters; None uses the base.
        adapter_index: Row i uses adapter ``adapter_index[i]``.
        batch_size: The number of rows per batch; rows of similar length are batched together.
    """
    scores = [0.0] * len(starts)
    order = sorted(range(len(starts)), key=lambda i: len(starts[i]) + len(ends[i]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        if adapter_index is not None:  # sorted by adapter, so hooks need no gather
            chosen.sort(key=lambda i: adapter_index[i])
        ids, _ = pad_rows([[*starts[i], *ends[i]] for i in chosen], host.pad, device=host.device)
        with host.evaluating(lora, None if adapter_index is None else [adapter_index[i] for i in chosen]):
            logits: Tensor = host.model(input_ids=ids, use_cache=False).logits
        for at, i in enumerate(chosen):
            span = logits[at, len(starts[i]) - 1 : len(starts[i]) + len(ends[i]) - 1].float().log_softmax(-1)
            wanted = torch.tensor(list(ends[i]), device=span.device)[:, None]
            scores[i] = float(span.gather(1, wanted).sum())
    return scores
