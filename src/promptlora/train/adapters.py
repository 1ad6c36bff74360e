"""Computes the adapters of a training batch from its prompts.

It knows the hypernetwork and prompt states; it knows nothing of losses or of the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from promptlora.data import Batch
from promptlora.hypernet.encoder import Encoded
from promptlora.hypernet.network import HyperNetwork
from promptlora.lora import LoRAWeights
from promptlora.losses.contrastive import contrastive_loss
from promptlora.text import PromptStates


class AdapterWriter:
    """Writes the adapters of a batch.

    Args:
        module: The hypernetwork as it is called in training; with several processes, inside the wrapper that sums
            gradients.
        plain: The hypernetwork itself, without the wrapper.
        states: The prompt states.
        dtype: Dtype of the adapters; None keeps the dtype of the parameters.
    """

    def __init__(
        self, module: nn.Module, plain: HyperNetwork, states: PromptStates, dtype: torch.dtype | None = None
    ) -> None:
        self.module, self.plain, self.states, self.dtype = module, plain, states, dtype
        self.device = next(plain.parameters()).device

    def encode(self, batch: Batch) -> Encoded:
        """Encode a batch's prompts, with gradients."""
        if not self.plain.config.generated:  # without an encoder, only the number of prompts matters
            nothing = torch.zeros(len(batch.prompts), 1, 1, device=self.device)
            return self.plain.encode(nothing, nothing[..., 0] == 0)
        return self.plain.encode(*self.states.batch(batch.prompts))

    def adapters(self, batch: Batch, encoded: Encoded) -> LoRAWeights:
        """One adapter per prompt of a batch, with gradients.

        The call goes through ``module``, so that several processes sum the gradients of all its parameters, including
        those that :meth:`encode` used.

        Args:
            batch: The batch.
            encoded: The result of :meth:`encode` for the batch.
        """
        lora: LoRAWeights = self.module(encoded, **self._options(batch))
        return lora

    @torch.no_grad()
    def of_texts(self, batch: Batch, texts: Sequence[str]) -> LoRAWeights:
        """The adapters of other texts in place of a batch's prompts, without gradients."""
        lora: LoRAWeights = self.plain(*self.states.batch(texts), **self._options(batch))
        return lora.detach()

    def contrast(self, batch: Batch, encoded: Encoded) -> Tensor:
        """The contrastive loss between the contexts of a batch's prompts and those of another wording of each task.

        Args:
            batch: The batch; its ``pairs`` are the other wordings.
            encoded: The result of :meth:`encode` for the batch.
        """
        numbers = {task: number for number, task in enumerate(dict.fromkeys(batch.tasks))}
        groups = torch.tensor([numbers[task] for task in batch.tasks] * 2, device=self.device)
        pairs = self.plain.context(*self.states.batch(batch.pairs))
        return contrastive_loss(torch.cat([encoded.context, pairs]), groups)

    def _options(self, batch: Batch) -> dict[str, Any]:
        """Further arguments of the hypernetwork: the dtype, and which prompts are in the context."""
        options: dict[str, Any] = {"dtype": self.dtype}
        if self.plain.config.context_flag:
            options["in_context"] = torch.tensor(batch.in_context, device=self.device)
        return options
