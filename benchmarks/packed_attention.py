"""Attention of a packed batch: one request at a time, as the engine does on a CPU, against one product with a mask.

    python benchmarks/packed_attention.py

One layer with SmolLM2-135M's shape computes one new token for each of 16 requests, for several context lengths. Both
ways use the same keys and values, and equal results are checked. Medians of processor time in milliseconds. Results:
``benchmarks/results/packed_attention.json``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from injection import cpu_name
from promptlora.engine.attention import attend
from runs import RESULTS, console, positive, told, write_json

HEADS, GROUPS, WIDTH = 9, 3, 64
CONTEXTS = (64, 128, 256, 464)


class _Cache:
    """Gives the keys and values that are there already."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value, self.layer_to_allocator = key, value, {0: None}

    def update(self, **_: Any) -> tuple[Tensor, Tensor]:
        return self.key, self.value


def milliseconds(run: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds + 2):
        began = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - began))
    return statistics.median(times[2:])


def measure(requests: int, context: int, rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    query = torch.randn(1, HEADS, requests, WIDTH)
    key, value = (torch.randn(1, requests * context, GROUPS, WIDTH).transpose(1, 2) for _ in range(2))
    owner = torch.arange(requests * context) // context
    mask = torch.zeros(1, 1, requests, requests * context)
    mask.masked_fill_(owner != torch.arange(requests)[:, None], torch.finfo(mask.dtype).min)
    module: Any = SimpleNamespace(layer_idx=0, num_key_value_groups=HEADS // GROUPS, is_causal=True)
    ends = torch.arange(requests + 1)

    def packed() -> Tensor:
        return sdpa_attention_forward(module, query, key, value, mask, is_causal=False)[0]

    def by_request() -> Tensor:
        lengths: dict[str, Any] = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends * context}
        return attend(module, query, key, value, None, cache=_Cache(key, value), **lengths)[0]

    torch.testing.assert_close(packed(), by_request(), atol=1e-5, rtol=1e-4)
    times = {"packed": milliseconds(packed, rounds), "by_request": milliseconds(by_request, rounds)}
    return {name: round(value, 3) for name, value in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=positive, default=16)
    parser.add_argument("--rounds", type=positive, default=40)
    parser.add_argument("--threads", type=positive, default=1, help="threads of torch (1)")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "packed_attention.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "torch": torch.__version__, "cpu": cpu_name(), "threads": options.threads, "requests": options.requests,
        "milliseconds_by_context": {},
    }  # fmt: skip
    for context in CONTEXTS:
        found = measure(options.requests, context, options.rounds)
        report["milliseconds_by_context"][str(context)] = found
        console.print(f"context {context}: {found}", highlight=False)
    write_json(options.output, report)
    return 0


if __name__ == "__main__":
    sys.exit(told(main))
