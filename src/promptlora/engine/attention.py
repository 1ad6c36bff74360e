"""Attention of a packed batch on a CPU, one request at a time.

transformers computes it for the packed row as a whole: every new token is multiplied with the keys of all requests, and a mask
removes what belongs to others. For 16 answers that takes 2 to 4 times as long as each answer with its own keys, the longer the
contexts the more (``benchmarks/packed_attention.py``). On a GPU one large product is better than many small ones, so this
is used on a CPU alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

BY_REQUEST = "promptlora_by_request"


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    cache: Any,
    cu_seq_lens_q: Tensor,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' attention functions compute it, from the paged cache.

    Args:
        module: The attention layer.
        query: ``[1, heads, tokens, d]``.
        key: ``[1, key heads, tokens, d]`` of the new tokens.
        value: As ``key``.
        attention_mask: Not used: who sees whom follows from the lengths.
        scaling: Factor of the scores.
        cache: The paged cache, which keeps the new keys and values and gives all of them.
        cu_seq_lens_q: Where the tokens of each request begin and end, ``[requests + 1]``.
        softcap: Not supported.
        position_bias: Not supported.
        **options: Further arguments of the model, which the cache reads.

    Returns:
        ``[1, tokens, heads, d]``.

    Raises:
        ValueError: Scores that are capped or biased.
    """
    if softcap is not None or position_bias is not None:
        raise ValueError("attention with a softcap or a position bias is not supported")
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=options)
    window = getattr(cache.layer_to_allocator[module.layer_idx], "sliding_window", None)
    _, heads, tokens, width = query.shape
    groups = key.shape[1]
    output = query.new_empty(1, tokens, heads, value.shape[-1])
    starts, key_starts = cu_seq_lens_q.tolist(), options["cu_seq_lens_k"].tolist()
    for i in range(len(starts) - 1):
        first, last = starts[i], starts[i + 1]
        own = slice(key_starts[i], key_starts[i + 1])
        keys, values = key[:, :, own], value[:, :, own]
        if last - first == 1:  # the heads of a group are the rows of one product
            rows = query[:, :, first].view(1, groups, heads // groups, width)
            answer = scaled_dot_product_attention(rows, keys, values, scale=scaling)
            output[0, first] = answer.view(heads, -1)
            continue
        mask = _visible(last - first, keys.shape[2], window, query.device)
        answer = scaled_dot_product_attention(
            query[:, :, first:last],
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=True,
        )
        output[0, first:last] = answer[0].transpose(0, 1)
    return output, None


def _visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys each query sees, ``[queries, keys]``; None where it is those up to its own and no others come before."""
    if queries == keys and (window is None or keys <= window):
        return None
    before = keys - queries
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril_(before)
    return seen if window is None else seen.triu_(before - window + 1)


@contextmanager
def by_request(config: Any) -> Iterator[None]:
    """Have a model of this configuration compute attention by :func:`attend` inside ``with``.

    The model is shared, so hold its turn meanwhile.
    """
    before = config._attn_implementation
    config._attn_implementation = BY_REQUEST
    try:
        yield
    finally:
        config._attn_implementation = before


AttentionInterface.register(BY_REQUEST, attend)
