"""``FrozenBase``: the base during training. Hooks on, gradients through it but not to it, its head where wanted.

It knows the model and its injector; nothing of batches, losses or the hypernetwork.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from promptlora.errors import ModelError, TrainingError
from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import LoRAWeights
from promptlora.models import base_fingerprint
from promptlora.projections import find_projections, layer_of
from promptlora.teacher import float32_head, teacher_context
from promptlora.text import decoder_layers


class FrozenBase:
    """A frozen base with hooks; :meth:`close` takes them, and what else was switched on, off again.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        first_layer: Layers below this one, counted from 0, get no adapter.

    Raises:
        ModelError: A model without a head, one that changes its logits after it, or too few layers.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, first_layer: int = 0) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._release, self.closed = ExitStack(), False
        model.requires_grad_(False)
        self.fingerprint = base_fingerprint(model)
        self.hidden_size = int(model.config.get_text_config().hidden_size)
        found = find_projections(model)
        projections = [projection for projection in found if layer_of(projection) >= first_layer]
        if not projections:
            raise ModelError(
                f"first_layer={first_layer}: {type(model).__name__} has {1 + max(map(layer_of, found))} layers; expected less"
            )
        self.lm_head = float32_head(model, otherwise="training it is not supported")
        self.injector = HookBasedLoRAInjector(model, projections)
        self._release.callback(self.injector.remove)

    def close(self) -> None:
        """Take hooks, activation checkpointing and noise off the base; harmless when called twice."""
        self._release.close()
        self.closed = True

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        weight: Any = self.model.get_input_embeddings().weight
        device: torch.device = weight.device
        return device

    # --- forward -----------------------------------------------------------------------------------------

    def hidden(
        self,
        input_ids: Tensor,
        lora: LoRAWeights | None,
        index: Sequence[int] | None = None,
        noise: tuple[float, torch.Generator] | None = None,
    ) -> Tensor:
        """Last hidden states ``[batch, seq, d]`` of ids padded on the right, row i with adapter ``index[i]``.

        Args:
            input_ids: The ids.
            lora: The adapters; None is the base.
            index: Row to adapter.
            noise: Size and random numbers of noise on the input embeddings.

        Raises:
            TrainingError: After :meth:`close`.
        """
        if self.closed:
            raise TrainingError("this Trainer is closed, its hooks are off the base; make another")
        lora = None if lora is None else lora.to(self.model.dtype)
        with (
            self.injector.apply(lora, None if lora is None else index),
            nullcontext() if noise is None else self.noise(*noise),
        ):
            states: Tensor = self.model.get_decoder()(
                input_ids=input_ids.to(self.device), use_cache=False
            ).last_hidden_state
        return states

    def render(self, text: str, prompt: str) -> list[int]:
        """Token ids of an input with a prompt in its context, as a teacher reads it and an evaluation shows it."""
        return teacher_context(self.tokenizer, prompt, text)

    # --- options -----------------------------------------------------------------------------------------

    def checkpoint_activations(self) -> None:
        """Switch recomputation on; only the layers that do it are in training mode, so that no dropout wakes.

        Raises:
            ModelError: A model that computes otherwise in training mode.
        """
        before = {module: module.training for module in self.model.modules()}

        def restore() -> None:
            self.model.activation_checkpointing_disable()
            for module, training in before.items():
                module.training = training

        self._release.callback(restore)
        self.injector.enable_checkpointing()
        ids = torch.tensor([[1, 2, 3]], device=self.device)
        self.model.eval()
        with torch.no_grad():
            expected = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
            if not layers:
                self.model.train()
            for layer in layers:
                layer.training = True
            found = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        if not torch.equal(expected, found):
            raise ModelError(
                f"{type(self.model).__name__} computes otherwise in training mode (dropout?), which activation "
                "checkpointing needs; set the dropout in its config.json to 0, or activation_checkpointing = false"
            )

    def shard(self) -> None:
        """Keep a part of each layer's weights in each process (FSDP2); a layer is gathered when it runs."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (torch.distributed.get_world_size(),))
        for layer in decoder_layers(self.model):
            fully_shard(layer, mesh=mesh)

    @contextmanager
    def noise(self, size: float, generator: torch.Generator) -> Iterator[None]:
        """Uniform noise on the input embeddings, ``size / sqrt(tokens * width)`` an entry (NEFTune, Jain et al. 2023)."""

        def add(module: Any, args: Any, output: Tensor) -> Tensor:
            bound = size / (output.shape[-2] * output.shape[-1]) ** 0.5
            drawn = torch.rand(output.shape, generator=generator).to(output) * 2 - 1
            noisy: Tensor = output + bound * drawn
            return noisy

        handle = self.model.get_input_embeddings().register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()
