"""Token ids to their states in the frozen base: embeddings, what leaves one layer, or what enters each.

It knows the base's layers; nothing of text.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from promptlora.errors import ModelError


class _Reached(Exception):  # noqa: N818 (not an error: it ends a forward that has what it came for)
    """The layer was reached."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of transformer layers of a causal language model.

    Raises:
        ModelError: A model whose layers are not in one list.
    """
    count = model.config.get_text_config().num_hidden_layers
    for _, module in model.get_decoder().named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"{type(model).__name__}: no list of {count} layers; use source = 'embeddings'")


@torch.no_grad()
def prompt_states(model: PreTrainedModel, ids: Tensor, source: str, layer: int, mask: Tensor | None = None) -> Tensor:
    """States ``[prompts, tokens, hidden]`` of prompts ``[prompts, tokens]`` in the frozen base; of all layers ``[prompts, tokens, layers, hidden]``.

    Args:
        model: The base.
        ids: Token ids, padded on the right, so that a causal model sees the prompt at its own positions.
        source: ``embeddings``, the token embeddings; ``hidden``, what leaves layer ``layer`` (of the last
            one too, so before the base's final norm); or ``layers``, what enters each layer.
        layer: Counted from 1.
        mask: 1 where a token is real; None where nothing is padded.

    Raises:
        ModelError: A layer that the base does not have.
    """
    if source == "embeddings":
        embedded: Tensor = model.get_input_embeddings()(ids)
        return embedded
    layers = decoder_layers(model)
    every = source == "layers"
    if every:
        layer = len(layers)
    if not 1 <= layer <= len(layers):
        raise ModelError(f"source_layer={layer}: the base has {len(layers)} layers; expected 1 … {len(layers)}")
    caught: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])
        if module is layers[-1]:
            raise _Reached

    def catch(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    with ExitStack() as stack:
        for one in layers if every else ():
            stack.callback(one.register_forward_pre_hook(note, with_kwargs=True).remove)
        if not every:
            stack.callback(layers[layer - 1].register_forward_hook(catch).remove)
        for module in [module for module in model.modules() if module.training]:  # no dropout meanwhile
            module.training = False
            stack.callback(setattr, module, "training", True)
        with suppress(_Reached):
            model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
    return torch.stack(caught, dim=2) if every else caught[0]
