"""``Host``: the one place that runs a base model, for answers, prompt states and training alike.

It holds the model, the tokenizer, the injector, and the model's turn: a call from any thread waits until no other call
uses the model, so that no caller meets the adapter of another. It knows token ids and LoRA; nothing of hypernetworks,
losses or text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from promptlora.errors import ConfigError, ModelError, PromptLoRAError, one_line
from promptlora.injection import HookBasedLoRAInjector, PreparedLoRA, turn_of
from promptlora.lora import LoRAWeights
from promptlora.models import base_fingerprint
from promptlora.projections import Projection, find_projections, layer_of
from promptlora.text import PromptStates, decoder_layers, encode_chat, render_chat
from promptlora.text.states import StatesConfig


def float32_head(
    model: PreTrainedModel, otherwise: str = "use `promptlora teach --backend vllm` for it"
) -> Callable[[Tensor], Tensor]:
    """The model's language-model head in float32: hidden states ``[n, d]`` to logits ``[n, vocabulary]``.

    Args:
        model: The model.
        otherwise: What to say of a model whose logits are more than that.

    Raises:
        ModelError: A model without a head, or one that scales or caps its logits after it.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output embeddings; expected a causal language model")
    weight = head.weight.detach().float()
    bias = None if getattr(head, "bias", None) is None else head.bias.detach().float()

    def apply(hidden: Tensor) -> Tensor:
        return F.linear(hidden.float(), weight, bias)

    ids = torch.tensor([[1, 2, 3]], device=weight.device)
    with torch.no_grad():
        ours = apply(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state)
        theirs = model(input_ids=ids, use_cache=False).logits.float()
    coarse = 0.05 if model.dtype in (torch.bfloat16, torch.float16) else 1e-3
    if not torch.allclose(ours, theirs, atol=coarse * float(theirs.abs().max()), rtol=coarse):
        raise ModelError(f"{type(model).__name__} changes its logits after the head; {otherwise}")
    return apply


@contextmanager
def option_errors() -> Iterator[None]:
    """What transformers raises about settings and unknown keywords, as a :class:`ConfigError`."""
    try:
        yield
    except PromptLoRAError:
        raise
    except ValueError as error:
        raise ConfigError(f"generation options: {one_line(error)}") from error


class Host:
    """A base model and the only code that runs it.

    Every public call may come from any thread and waits its turn. All hosts of one model share that turn, so a
    training run and a ``PromptLoRA`` may stand on the same model. The model itself is changed only by the hooks, and by
    what :meth:`for_training` and the options of training say; :meth:`close` undoes all of it.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        projections: Those that adapters may change; by default all of :func:`find_projections`.

    Raises:
        LoRAError: Projections that do not fit the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        projections: Sequence[Projection] | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.turn = turn_of(model)
        self._release, self.closed = ExitStack(), False
        with self.turn.held():  # no forward pass of another host meets hooks that are being installed
            self.injector = HookBasedLoRAInjector(model, projections)
        self._release.callback(self.injector.remove)

    @classmethod
    def for_training(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, first_layer: int = 0) -> Host:
        """A host that trains through the base: its parameters need no gradients until :meth:`close`.

        Args:
            model: The base.
            tokenizer: Its tokenizer.
            first_layer: Layers below this one, counted from 0, get no adapter.

        Raises:
            ModelError: A model without a head, one that changes its logits after it, or too few layers.
        """
        found = find_projections(model)
        projections = [projection for projection in found if layer_of(projection) >= first_layer]
        if not projections:
            raise ModelError(
                f"first_layer={first_layer}: {type(model).__name__} has {1 + max(map(layer_of, found))} layers; expected less"
            )
        host = cls(model, tokenizer, projections)
        try:
            _ = host.lm_head, host.fingerprint  # now: neither can be taken from a base that is sharded
        except BaseException:
            host.close()
            raise
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                host._release.callback(parameter.requires_grad_, True)
        return host

    def close(self) -> None:
        """Wait for the turn, then take hooks, activation checkpointing and noise off the base; harmless when called twice."""
        with self.turn.held():
            self._release.close()
            self.closed = True

    # --- what it is ----------------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> dict[str, str | int]:
        """What identifies the base."""
        return base_fingerprint(self.model)

    @cached_property
    def lm_head(self) -> Callable[[Tensor], Tensor]:
        """The head in float32: hidden states ``[n, d]`` to logits ``[n, vocabulary]``.

        Raises:
            ModelError: A model without a head, or one that changes its logits after it.
        """
        with self.using(None):
            return float32_head(self.model, otherwise="training it is not supported")

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        weight: Any = self.model.get_input_embeddings().weight
        device: torch.device = weight.device
        return device

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The ids that end an answer."""
        generation: Any = self.model.generation_config
        ends = None if generation is None else generation.eos_token_id
        listed = ends if isinstance(ends, list) else [ends]
        return frozenset(int(end) for end in (*listed, self.tokenizer.eos_token_id) if end is not None)

    @property
    def pad(self) -> int:
        """The id that fills batches up."""
        return int(cast(int, self.tokenizer.pad_token_id) or 0)

    # --- the model, for a while ----------------------------------------------------------------------------

    @contextmanager
    def using(
        self, lora: LoRAWeights | PreparedLoRA | None = None, adapter_index: Sequence[int] | None = None
    ) -> Iterator[None]:
        """Hold the model inside ``with``, with a LoRA on or as the base.

        Other threads wait meanwhile. Do not wait inside for a thread that uses the model, and do not yield inside of a
        generator: it would hold the model until it is read on.

        Args:
            lora: The adapters, or what ``injector.prepare`` made of them; None is the base.
            adapter_index: Row to adapter.

        Raises:
            ModelError: After :meth:`close`.
            LoRAError: As for ``HookBasedLoRAInjector.apply``.
        """
        with self.turn.held():
            if self.closed:
                raise ModelError(
                    "this PromptLoRA, Trainer or Host is closed: its hooks are off the base. Expected an open one. Fix: make another"
                )
            with self.injector.apply(lora, adapter_index):
                yield

    @contextmanager
    def evaluating(
        self, lora: LoRAWeights | PreparedLoRA | None = None, adapter_index: Sequence[int] | None = None
    ) -> Iterator[None]:
        """As :meth:`using`, without gradients and with every module in evaluation mode; modes are restored.

        Args:
            lora: As for :meth:`using`.
            adapter_index: As for :meth:`using`.
        """
        with torch.no_grad(), self.using(lora, adapter_index):
            training = [module for module in self.model.modules() if module.training]
            for module in training:
                module.training = False
            try:
                yield
            finally:
                for module in training:
                    module.training = True

    def prompt_states(
        self, config: StatesConfig, folder: Path | None = None, embedder: Mapping[str, str | int] | None = None
    ) -> PromptStates:
        """States of prompts in this base, computed in turn and never with an adapter on.

        Args:
            config: Which states.
            folder: Where they are kept between runs; None keeps them in memory alone.
            embedder: The fingerprint that the text embedder must have; empty accepts any.
        """
        return PromptStates(
            self.model,
            self.tokenizer,
            config,
            folder=folder,
            base=self.fingerprint if folder else None,
            embedder=embedder,
            guard=self.evaluating,
        )

    # --- answers -------------------------------------------------------------------------------------------

    def arguments(self, ids: Tensor, mask: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        """What ``model.generate`` is called with; without a ``generation_config``, greedy and padded as the tokenizer is."""
        defaults = {} if "generation_config" in options else {"pad_token_id": self.pad, "do_sample": False}
        fixed = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        return {**defaults, **options, **fixed}

    def generate(
        self,
        ids: Tensor,
        mask: Tensor,
        lora: LoRAWeights | None = None,
        adapter_index: Sequence[int] | None = None,
        **options: Any,
    ) -> Tensor:
        """New ids ``[rows x returned sequences, new]`` after a batch that is padded on the left; greedy by default.

        Args:
            ids: ``[rows, longest]``.
            mask: True or 1 where an id is real.
            lora: The adapters; None is the base.
            adapter_index: Row to adapter.
            **options: Go to ``model.generate``.

        Raises:
            ConfigError: An option that transformers refuses.
        """
        generate: Any = self.model.generate
        with self.evaluating(lora, adapter_index), option_errors():
            found = generate(**self.arguments(ids, mask, options))
        sequences: Tensor = getattr(found, "sequences", found)  # an object with return_dict_in_generate
        return sequences[:, ids.shape[1] :]

    # --- training ------------------------------------------------------------------------------------------

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
            ModelError: After :meth:`close`.
        """
        lora = None if lora is None else lora.to(self.model.dtype)
        with (
            self.using(lora, None if lora is None else index),
            nullcontext() if noise is None else self.noise(*noise),
        ):
            states: Tensor = self.model.get_decoder()(
                input_ids=input_ids.to(self.device), use_cache=False
            ).last_hidden_state
        return states

    def render(self, text: str, prompt: str | None = None) -> list[int]:
        """Token ids of an input, with a prompt in its context, as a teacher reads it and an evaluation shows it."""
        return encode_chat(self.tokenizer, [render_chat(self.tokenizer, text, prompt)])[0]

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
        with self.using(None), torch.no_grad():
            self.model.eval()
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
