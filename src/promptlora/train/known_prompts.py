"""What a trained hypernetwork stores about its training prompts, so that new prompts can be called near or far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from promptlora.hypernet.distance import TrainingPrompts, describe
from promptlora.text import PromptStates

_TOGETHER = 32


def training_prompts(
    trained: Sequence[str], heldout: Sequence[str], states: PromptStates, *, two_parts: bool
) -> TrainingPrompts | None:
    """Descriptions of the prompts of a run, and the distances of the held-out tasks' prompts from them.

    Args:
        trained: The own prompt of each training task.
        heldout: The prompts of the held-out tasks.
        states: The states of prompts.
        two_parts: ``HyperNetworkConfig.two_parts``.

    Returns:
        None for a run without held-out tasks, because nothing then determines which distance is far.
    """
    if len(trained) < 2 or not heldout:
        return None
    return TrainingPrompts.fit(_described(trained, states, two_parts), _described(heldout, states, two_parts))


@torch.no_grad()
def _described(prompts: Sequence[str], states: PromptStates, two_parts: bool) -> Tensor:
    parts = [prompts[start : start + _TOGETHER] for start in range(0, len(prompts), _TOGETHER)]
    return torch.cat([describe(*states.batch(part), two_parts).float().cpu() for part in parts])
