"""Pads rows of different lengths and combines them into one tensor.

It knows integers; it knows nothing of tokenizers, models or labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def on_device(values: Sequence[Any], device: torch.device | None = None) -> Tensor:
    """A tensor of integers on a device, by default the CPU, created without waiting for the device."""
    given = torch.tensor(values, dtype=torch.long)
    if device is None or device.type == "cpu":
        return given
    return given.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else given.to(device)


def pad_rows(
    rows: Sequence[Sequence[int]], value: int, *, left: bool = False, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Padded rows ``[rows, longest]`` and their mask, 1 for a token and 0 for padding, in one transfer to the device.

    Args:
        rows: Token ids, or labels.
        value: The padding value.
        left: Whether to pad on the left, which generation needs. Padding on the right needs no mask in a causal model,
            because no real token attends to it.
        device: The device of the tensors, by default the CPU.
    """
    longest = max(map(len, rows), default=0)
    gaps = [longest - len(row) for row in rows]
    if left:
        filled = [[*[value] * gap, *row] for gap, row in zip(gaps, rows, strict=True)]
        real = [[*[0] * gap, *[1] * len(row)] for gap, row in zip(gaps, rows, strict=True)]
    else:
        filled = [[*row, *[value] * gap] for gap, row in zip(gaps, rows, strict=True)]
        real = [[*[1] * len(row), *[0] * gap] for gap, row in zip(gaps, rows, strict=True)]
    both = on_device([filled, real], device).view(2, len(rows), longest)
    return both[0], both[1]
