"""Computes the states of tokens in the frozen base: embeddings, the output of one layer, or the input of every layer.

It knows the base's layers; it knows nothing of text.
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
    """Raised when the layer was reached."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of transformer layers of a causal language model.

    Raises:
        ModelError: The model's layers are not in a single list.
    """
    count = model.config.get_text_config().num_hidden_layers
    for _, module in model.get_decoder().named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"{type(model).__name__}: no list of {count} layers; use source = 'embeddings'")


@torch.no_grad()
def prompt_states(model: PreTrainedModel, ids: Tensor, source: str, layer: int, mask: Tensor | None = None) -> Tensor:
    """The states of prompts in the frozen base, ``[prompts, tokens, hidden]``.

    With ``source="layers"`` the shape is ``[prompts, tokens, layers, hidden]``.

    Args:
        model: The base.
        ids: Token ids ``[prompts, tokens]``, padded on the right, so that padding does not change the positions of a
            prompt's tokens.
        source: ``embeddings``, the token embeddings; ``hidden``, the output of layer ``layer``, always before the
            base's final norm; or ``layers``, the input of every layer.
        layer: The layer, counted from 1.
        mask: 1 where a token is real; None if nothing is padded.

    Raises:
        ModelError: The base does not have the layer.
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
    """The states of one prompt, computed in pieces of ``size`` tokens; equal to :func:`prompt_states` up to rounding.

    Args:
        model: The base.
        ids: ``[1, tokens]``.
        source: See :func:`prompt_states`.
        layer: See :func:`prompt_states`.
        size: The number of tokens per piece.
        guard: A context manager that is entered for the computation of each piece and left before the piece is yielded.
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
    """The output of a layer, or the input of every layer, when the base reads the inputs."""
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
        for module in [module for module in model.modules() if module.training]:  # disables dropout
            module.training = False
            stack.callback(setattr, module, "training", True)
        with suppress(_Reached):
            model.get_decoder()(**inputs)
    return torch.stack(caught, dim=2) if every else caught[0]
