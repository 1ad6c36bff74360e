"""Rows of the plain base in a batch with adapters, on vLLM's CPU build.

vLLM marks such rows with the index -1. Its PyTorch kernels (``bgmv_shrink`` in ``vllm.lora.ops.torch_ops``, which the CPU
build uses) read that index as Python does, as the last adapter slot, so that the base answers with an adapter that
belongs to another request. In 0.32.0, the newest CPU wheel, this is so; pull requests 48421 and 49656 of vLLM mend it,
and neither is in a release that we know. ``install`` therefore asks the kernel itself, and leaves one alone that is right.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger("vllm.promptlora")
Shrink = Callable[..., None]


def wrong(shrink: Shrink) -> bool:
    """Whether a kernel gives rows of the base an adapter's update."""
    found = torch.zeros(2, 1)
    shrink(torch.ones(2, 3), torch.ones(2, 1, 1, 3), found, torch.tensor([0, -1]), 1.0)
    return bool(found[1].any())


def masked(shrink: Shrink) -> Shrink:
    """The kernel with rows of the base at zero: they read slot 0, and their result is dropped.

    Args:
        shrink: ``(inputs [n, in], weights [slots, 1, rank, in], output [n, rank], indices [n], scaling)``; fills the output.
    """

    @functools.wraps(shrink)
    def shrunk(inputs: Any, weights: Any, output: Any, indices: Any, scaling: float = 1.0) -> None:
        shrink(inputs, weights, output, indices.clamp(min=0), scaling)
        output.masked_fill_((indices < 0).unsqueeze(1), 0)

    return shrunk


def install() -> bool:
    """Replace the kernel where it is wrong; whether it was.

    Raises:
        RuntimeError: It is wrong and cannot be replaced; the engine must not start then.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return False  # the kernels of GPUs leave these rows out
    from vllm import __version__
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    if not wrong(lora_ops.bgmv_shrink):
        return False
    right = masked(lora_ops.bgmv_shrink)
    for module in (lora_ops, torch_ops, punica_cpu):
        module.bgmv_shrink = right
    if wrong(punica_cpu.bgmv_shrink) or wrong(lora_ops.bgmv_shrink):
        raise RuntimeError(
            f"vLLM {__version__}: rows of the base read an adapter. Expected the mask of promptlora-vllm to hold. "
            "Fix: a newer promptlora-vllm, or serve no base requests beside adapters."
        )
    log.info("vLLM %s: rows of the base are masked in bgmv_shrink", __version__)
    return True
