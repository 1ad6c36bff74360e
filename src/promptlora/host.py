"""``Host``: the only place that runs a base model, for answers, prompt states and training.

It holds the model, the tokenizer, the injector and the model's lock. A call from any thread waits until no other call
uses the model, so no call runs with another caller's adapter. It knows token ids and LoRA; it knows nothing of
hypernetworks, losses or text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property, partial
from itertools import chain
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
    """The model's language-model head in float32; it maps hidden states ``[n, d]`` to logits ``[n, vocabulary]``.

    Args:
        model: The model.
        otherwise: The advice in the error message for a model that changes its logits after the head.

    Raises:
        ModelError: The model has no head, or it scales or caps its logits after the head.
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
    """Convert the errors that transformers raises for settings and unknown keywords into a :class:`ConfigError`."""
    try:
        yield
    except PromptLoRAError:
        raise
    except ValueError as error:
        raise ConfigError(f"generation options: {one_line(error)}") from error


class Host:
    """A base model and the only code that runs it.

    All public methods are thread-safe: a call waits until the model is free. All hosts of one model share its lock, so
    a training run and a ``PromptLoRA`` can use the same model. Only the hooks, :meth:`for_training` and the training
    options change the model; :meth:`close` reverts all changes.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        projections: The projections that adapters may change; by default all that :func:`find_projections` returns.

    Raises:
        LoRAError: The projections do not match the model.
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
        with self.turn.held():  # no other host runs the model while hooks are installed
            self.injector = HookBasedLoRAInjector(model, projections)
        self._release.callback(self.injector.remove)

    @classmethod
    def for_training(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, first_layer: int = 0) -> Host:
        """Create a host for training through the base; the base's parameters need no gradients until :meth:`close`.

        Args:
            model: The base.
            tokenizer: Its tokenizer.
            first_layer: Layers below this one, counted from 0, get no adapter.

        Raises:
            ModelError: The model has no head, it changes its logits after the head, or it has too few layers.
        """
        found = find_projections(model)
        projections = [projection for projection in found if layer_of(projection) >= first_layer]
        if not projections:
            raise ModelError(
                f"first_layer={first_layer}: {type(model).__name__} has {1 + max(map(layer_of, found))} layers; expected less"
            )
        host = cls(model, tokenizer, projections)
        try:
            _ = host.lm_head, host.fingerprint  # computed now, because a sharded base cannot give them later
        except BaseException:
            host.close()
            raise
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                host._release.callback(parameter.requires_grad_, True)
        return host

    def close(self) -> None:
        """Wait until the model is free, then remove hooks, checkpointing and noise; calling it twice is safe."""
        with self.turn.held():
            self._release.close()
            self.closed = True

    # --- what it is ----------------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> dict[str, str | int]:
        """The fingerprint of the base."""
        return base_fingerprint(self.model)

    @cached_property
    def lm_head(self) -> Callable[[Tensor], Tensor]:
        """The head in float32; it maps hidden states ``[n, d]`` to logits ``[n, vocabulary]``.

        Raises:
            ModelError: The model has no head, or it changes its logits after the head.
        """
        with self.using(None):
            return float32_head(self.model, otherwise="training it is not supported")

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
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
        """The id of the padding token."""
        return int(cast(int, self.tokenizer.pad_token_id) or 0)

    # --- the model, for a while ----------------------------------------------------------------------------

    @contextmanager
    def using(
        self, lora: LoRAWeights | PreparedLoRA | None = None, adapter_index: Sequence[int] | None = None
    ) -> Iterator[None]:
        """Lock the model inside ``with``, with a LoRA active or as the base.

        Other threads wait until the block ends. Inside the block, do not wait for a thread that uses the model, because
        neither would continue. Do not yield from a generator inside the block, because the model would stay locked
        until the generator is resumed.

        Args:
            lora: The adapters, or the result of ``injector.prepare``; None uses the base.
            adapter_index: Row i uses adapter ``adapter_index[i]``.

        Raises:
            ModelError: :meth:`close` was called.
            LoRAError: See ``HookBasedLoRAInjector.apply``.
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
        """Like :meth:`using`, but without gradients and in evaluation mode; the modules' modes are restored afterwards.

        Args:
            lora: See :meth:`using`.
            adapter_index: See :meth:`using`.
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
        self,
        config: StatesConfig,
        folder: Path | None = None,
        embedder: Mapping[str, str | int] | None = None,
        reader: LoRAWeights | None = None,
    ) -> PromptStates:
        """States of prompts in this base; they are computed while the model is locked and without a prompt's adapter.

        Args:
            config: The source of the states and the prompt limit.
            folder: A folder that stores states between runs; None caches them only in memory.
            embedder: The fingerprint that the text embedder must have; empty accepts any.
            reader: A LoRA with one adapter that is active while the base reads prompts; None reads without LoRA.

        Raises:
            LoRAError: The reader does not match the model.
        """
        base: dict[str, str | int] = self.fingerprint if folder else {}
        if reader is not None:
            reader = reader.to(self.model.dtype, self.device)
            if folder:
                values = hashlib.sha256(json.dumps([reader.scaling, *reader]).encode())
                for matrix in chain.from_iterable(reader.values()):
                    values.update(matrix.float().cpu().contiguous().numpy().tobytes())
                base = {**base, "reader": values.hexdigest()}
        return PromptStates(
            self.model,
            self.tokenizer,
            config,
            folder=folder,
            base=base,
            embedder=embedder,
            guard=partial(self.evaluating, None if reader is None else self.injector.prepare(reader)),
        )

    # --- answers -------------------------------------------------------------------------------------------

    def arguments(self, ids: Tensor, mask: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        """The arguments for ``model.generate``; by default greedy, with the tokenizer's padding id."""
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
        """Generate new ids ``[rows x returned sequences, new]`` for a left-padded batch; greedy by default.

        Args:
            ids: ``[rows, longest]``.
            mask: True or 1 where an id is not padding.
            lora: The adapters; None uses the base.
            adapter_index: Row i uses adapter ``adapter_index[i]``.
            **options: Passed to ``model.generate``.

        Raises:
            ConfigError: transformers refuses an option.
        """
        generate: Any = self.model.generate
        with self.evaluating(lora, adapter_index), option_errors():
            found = generate(**self.arguments(ids, mask, options))
        sequences: Tensor = getattr(found, "sequences", found)  # with return_dict_in_generate, an object is returned
        return sequences[:, ids.shape[1] :]

    # --- training ------------------------------------------------------------------------------------------

    def hidden(
        self,
        input_ids: Tensor,
        lora: LoRAWeights | None,
        index: Sequence[int] | None = None,
        noise: tuple[float, torch.Generator] | None = None,
    ) -> Tensor:
        """The last hidden states ``[batch, seq, d]`` of right-padded ids.

        Args:
            input_ids: The ids ``[batch, seq]``.
            lora: The adapters; None uses the base.
            index: Row i uses adapter ``index[i]``.
            noise: Size and random generator of the noise on the input embeddings.

        Raises:
            ModelError: :meth:`close` was called.
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
        """Token ids of an input with a prompt in its context, in the format of teachers and evaluations."""
        return encode_chat(self.tokenizer, [render_chat(self.tokenizer, text, prompt)])[0]

    def checkpoint_activations(self) -> None:
        """Enable activation checkpointing. Only the recomputed layers are in training mode, so dropout stays inactive.

        Raises:
            ModelError: The model computes something else in training mode.
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
        """Shard each layer's weights over the processes (FSDP2); a layer is gathered when it runs."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (torch.distributed.get_world_size(),))
        for layer in decoder_layers(self.model):
            fully_shard(layer, mesh=mesh)

    @contextmanager
    def noise(self, size: float, generator: torch.Generator) -> Iterator[None]:
        """Add uniform noise of ``size / sqrt(tokens * width)`` to the input embeddings (NEFTune, Jain et al. 2023)."""

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
