"""What a trained hypernetwork stores about its training prompts, so that new prompts can be called near or far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from promptlora.host import Host
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.distance import TrainingPrompts, describe
from promptlora.text import PromptStates

_TOGETHER = 32


def training_prompts(
    trained: Sequence[str], heldout: Sequence[str], base: Host, config: HyperNetworkConfig, states: PromptStates
) -> TrainingPrompts | None:
    """Descriptions of the prompts of a run, and the distances of the held-out tasks' prompts from them.

    Args:
        trained: The own prompt of each training task.
        heldout: The prompts of the held-out tasks.
        base: The frozen base.
        config: The configuration of the hypernetwork.
        states: The states of prompts that it reads.

    Returns:
        None for a run without held-out tasks, because nothing then determines which distance is far.
    """
    if len(trained) < 2 or not heldout:
        return None
    if config.two_parts:  # the base's part takes most of the time and is not in a description
        own = replace(config, source="embedder", reader=False, prompt_format="text")
        states = base.prompt_states(own, states.folder, states.fingerprint)
    return TrainingPrompts.fit(_described(trained, states), _described(heldout, states))


@torch.no_grad()
def _described(prompts: Sequence[str], states: PromptStates) -> Tensor:
    parts = [prompts[start : start + _TOGETHER] for start in range(0, len(prompts), _TOGETHER)]
    return torch.cat([describe(*states.batch(part), two_parts=False).float().cpu() for part in parts])
