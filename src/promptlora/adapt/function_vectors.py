"""Function vectors: what a prompt in the context adds to a layer's attention output, written as one more rank of an adapter.

A model that reads a prompt carries what is asked to the place of the answer in the outputs of its attention: a vector a
layer, much the same whatever the input is (Todd et al. 2024, "Function Vectors in Large Language Models"; Hendel et al.
2023). So once an adapter is written, the base reads the prompt with it before a few neutral inputs, and each of the inputs
alone; the mean difference of the outputs at the last token is the vector. As LoRA of the o projection: A reads a constant
off its input, B is the vector. It knows a model, its hooks and text; nothing of the hypernetwork that wrote the adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from promptlora.errors import ConfigError
from promptlora.injection import HookBasedLoRAInjector
from promptlora.lora import Free, LoRAWeights
from promptlora.lora.forms import Form
from promptlora.projections import Projection, layer_of
from promptlora.text import encode_chat, render_chat

NEUTRAL_INPUTS = (
    "The weather was nice yesterday.",
    "John gave Mary a book before she left.",
    "12 and 7",
    "What is the capital of France?",
    "mountain",
    "The food was cold, but the waiter was friendly.",
    "Sentence 1: A man is playing a guitar. Sentence 2: A person makes music.",
    "The committee met on Monday to talk about the new bridge, which is to be built by the end of next year.",
)
MIDDLE = (1 / 6, 5 / 6)  # the share of the layers that get a vector, from … to
_RIDGE = 1e-2  # of the constant's reader, in mean squares of the input


def middle_outputs(projections: Sequence[Projection], layers: tuple[float, float] = MIDDLE) -> list[Projection]:
    """The o projections of the layers from one share of the depth to another.

    Raises:
        ConfigError: There are none.
    """
    depth = 1 + max(layer_of(projection) for projection in projections)
    chosen = [p for p in projections if p.role == "o" and layers[0] * depth <= layer_of(p) < layers[1] * depth]
    if not chosen:
        raise ConfigError(
            f"no o projection from {layers[0]:.2f} to {layers[1]:.2f} of {depth} layers gets an adapter; function vectors "
            "need one: train with first_layer lower, or leave vectors at 0"
        )
    return chosen


@torch.no_grad()
def add_function_vectors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    injector: HookBasedLoRAInjector,
    lora: LoRAWeights,
    prompts: Sequence[str],
    factor: float,
    *,
    layers: tuple[float, float] = MIDDLE,
    inputs: Sequence[str] = NEUTRAL_INPUTS,
) -> LoRAWeights:
    """The adapters with the function vectors of their prompts as one more rank of the middle o projections.

    Args:
        model: The base, with the hooks of ``injector``.
        tokenizer: Its tokenizer.
        injector: Switches the adapters on.
        lora: One adapter for each prompt.
        prompts: The prompts.
        factor: How much of the vector is added; 0 adds nothing.
        layers: Share of the depth from which and up to which layers get one.
        inputs: What the prompts are read before.

    Raises:
        ConfigError: A factor that is not a finite number of 0 or more, or layers without an o projection that gets an adapter.
    """
    if not 0 <= factor < float("inf"):
        raise ConfigError(f"vectors={factor}; expected a finite number of 0 or more, 0 for none")
    if factor == 0:
        return lora
    outputs = middle_outputs([p for p in injector.projections if p.name in lora], layers)
    alone = encode_chat(tokenizer, [render_chat(tokenizer, text) for text in inputs])
    vectors: dict[str, list[Tensor]] = {p.name: [] for p in outputs}
    readers: dict[str, list[Tensor]] = {p.name: [] for p in outputs}
    for row, prompt in enumerate(prompts):
        shown = encode_chat(tokenizer, [render_chat(tokenizer, text, prompt) for text in inputs])
        with injector.apply(lora, [row] * len(inputs)):
            with_prompt, without = _attention(model, outputs, shown), _attention(model, outputs, alone)
        for projection in outputs:
            name = projection.name
            _, end_with = with_prompt[name]
            read, end_without = without[name]
            vectors[name].append((end_with - end_without).mean(0))
            readers[name].append(_constant(read))
    forms: dict[str, Form] = {name: lora.chosen(name) for name in lora}
    for projection in outputs:
        A, B = lora[projection.name]
        a = torch.stack(readers[projection.name])[:, :, None].to(A)
        b = (torch.stack(vectors[projection.name])[:, None, :] * (factor / lora.scaling)).to(B)
        forms[projection.name] = Free(torch.cat((A, a), 2), torch.cat((B, b), 1))
    return LoRAWeights(forms, lora.scaling, projections=lora.projections)


def _constant(states: Tensor) -> Tensor:
    """The direction ``[in]`` on which all states ``[tokens, in]`` have a component near 1: ridge regression of ones."""
    states = states.double()
    squares = states.T @ states
    squares.diagonal().add_(_RIDGE * squares.diagonal().mean())
    direction: Tensor = torch.linalg.solve(squares, states.sum(0))
    return direction


def _attention(
    model: PreTrainedModel, outputs: Sequence[Projection], rows: Sequence[Sequence[int]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each o projection: what it reads at all tokens ``[tokens, in]``, and what it writes at each row's last ``[rows, out]``."""
    weight: Any = model.get_input_embeddings().weight
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # on the right: nothing real sees it
    lengths = torch.tensor([len(row) for row in rows])
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    with _watching(model, outputs) as seen:
        model.get_decoder()(input_ids=ids.to(weight.device), use_cache=False)
    found = {}
    for projection in outputs:
        read, written = seen[projection.name]
        last = written[torch.arange(len(rows)), lengths - 1]
        if projection.rows is not None:
            last = torch.cat([last[:, start:stop] for start, stop in projection.rows], dim=1)
        found[projection.name] = read[real.to(read.device)].float(), last.float()
    return found


@contextmanager
def _watching(model: PreTrainedModel, outputs: Sequence[Projection]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Inputs and outputs of modules as they are with everything that is hooked on before."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    with ExitStack() as stack:
        for projection in outputs:

            def note(module: torch.nn.Module, args: tuple[Tensor], output: Tensor, name: str = projection.name) -> None:
                seen[name] = args[0], output

            stack.callback(model.get_submodule(projection.module).register_forward_hook(note).remove)
        yield seen
