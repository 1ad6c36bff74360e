"""A prompt to its states in the frozen base, each computed once and kept.

It knows the base's layers; nothing of LoRA or hypernetworks.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.errors import ModelError, PromptError
from promptlora.files import replacing_file
from promptlora.reading import read_tensors
from promptlora.text.chat import encode_prompt


class StatesConfig(Protocol):
    """Which states are read: what :class:`PromptStates` takes from ``HyperNetworkConfig``."""

    @property
    def source(self) -> str:
        """``embeddings``, ``hidden`` or ``layers``."""

    @property
    def source_layer(self) -> int:
        """The layer of ``hidden``, counted from 1."""

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt."""


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
def prompt_states(model: PreTrainedModel, ids: Tensor, source: str, layer: int) -> Tensor:
    """States ``[1, tokens, hidden]`` of one prompt ``[1, tokens]`` in the frozen base; of all layers ``[1, tokens, layers, hidden]``.

    Args:
        model: The base.
        ids: Token ids of one prompt, unpadded.
        source: ``embeddings``, the token embeddings; ``hidden``, what leaves layer ``layer`` (of the last
            one too, so before the base's final norm); or ``layers``, what enters each layer.
        layer: Counted from 1.

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
            model.get_decoder()(input_ids=ids, use_cache=False)
    return torch.stack(caught, dim=2) if every else caught[0]


class PromptStates:
    """The states of prompts in the frozen base, each computed once and kept, the least used dropped first.

    Each prompt is run by itself, so what else is asked for never changes a state.

    Args:
        model: The base; no LoRA may be on while states are computed.
        tokenizer: Its tokenizer.
        config: Source, layer and longest prompt.
        capacity: How many prompts are kept at most.
        capacity_bytes: How much memory their states may take.
        folder: Where states are kept between runs, one file a prompt; None keeps none.
        base: What identifies the base, for the names of those files.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: StatesConfig,
        capacity: int = 8192,
        capacity_bytes: int = 1 << 31,
        folder: Path | None = None,
        base: Mapping[str, str | int] | None = None,
    ) -> None:
        self.folder = folder
        layer = config.source_layer if config.source == "hidden" else 0
        self._key = json.dumps([dict(base or {}), str(model.dtype), config.source, layer], sort_keys=True)
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.capacity, self.capacity_bytes = capacity, capacity_bytes
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget all states."""
        self._kept.clear()
        self._bytes = 0

    def one(self, prompt: str) -> Tensor:
        """States ``[tokens, hidden]`` of one prompt; of all layers ``[tokens, layers, hidden]``."""
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        ids = encode_prompt(self.tokenizer, prompt, self.config.max_prompt_tokens)
        states = self._compute(ids) if self.folder is None else self._read(ids, self.folder)
        self._kept[prompt] = states
        self._bytes += states.nbytes
        while len(self._kept) > 1 and (len(self._kept) > self.capacity or self._bytes > self.capacity_bytes):
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return states

    def _compute(self, ids: list[int]) -> Tensor:
        weight: Any = self.model.get_input_embeddings().weight
        given = torch.tensor([ids], device=weight.device)
        return prompt_states(self.model, given, self.config.source, self.config.source_layer)[0]

    def _read(self, ids: list[int], folder: Path) -> Tensor:
        """From the prompt's file; computed and written where there is none, or a damaged one."""
        name = hashlib.sha256(f"{self._key}{ids}".encode()).hexdigest()
        path = folder / name[:2] / f"{name[2:]}.safetensors"
        weight: Any = self.model.get_input_embeddings().weight
        if path.is_file():
            with suppress(PromptError, KeyError):
                kept = read_tensors(path, PromptError)[0]["states"]
                if kept.shape[0] == len(ids) and kept.shape[-1] == weight.shape[-1]:
                    return kept.to(weight.device)
        states = self._compute(ids)
        with replacing_file(path) as temporary:
            save_file({"states": states.cpu().contiguous()}, temporary)
        return states

    def batch(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States ``[prompts, longest, hidden]`` (of all layers ``[prompts, longest, layers, hidden]``) and their mask, True where a token is real.

        Raises:
            PromptError: No prompts, an empty one, or one that is too long.
        """
        if not prompts or isinstance(prompts, str):
            raise PromptError(f"prompts={prompts!r}; expected a list of at least one prompt")
        states = [self.one(prompt) for prompt in prompts]
        padded = nn.utils.rnn.pad_sequence(states, batch_first=True)
        lengths = torch.tensor([len(s) for s in states], device=padded.device)
        return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
