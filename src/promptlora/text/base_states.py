"""Token ids to their states in the frozen base: embeddings, what leaves one layer, or what enters each.

It knows the base's layers; nothing of text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

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
    return _caught(model, source, layer, {"input_ids": ids, "attention_mask": mask, "use_cache": False})


def prompt_states_in_pieces(
    model: PreTrainedModel,
    ids: Tensor,
    source: str,
    layer: int,
    size: int,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Tensor]:
    """The states of one prompt as of :func:`prompt_states`, so many tokens at a time; equal to them but for rounding.

    Args:
        model: The base.
        ids: ``[1, tokens]``.
        source: As for :func:`prompt_states`.
        layer: As for :func:`prompt_states`.
        size: Tokens of one piece.
        guard: Entered around each piece, and left before it is given out.
    """
    past = DynamicCache(config=model.config.get_text_config())
    for start in range(0, ids.shape[1], size):
        piece = ids[:, start : start + size]
        with guard(), torch.no_grad():
            if source == "embeddings":
                states = prompt_states(model, piece, source, layer)
            else:
                mask = ids.new_ones(1, start + piece.shape[1])
                inputs = {"input_ids": piece, "attention_mask": mask, "past_key_values": past, "use_cache": True}
                states = _caught(model, source, layer, inputs)
        yield states


def _caught(model: PreTrainedModel, source: str, layer: int, inputs: dict[str, Any]) -> Tensor:
    """What leaves a layer, or enters each, when the base reads the inputs."""
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
            model.get_decoder()(**inputs)
    return torch.stack(caught, dim=2) if every else caught[0]
