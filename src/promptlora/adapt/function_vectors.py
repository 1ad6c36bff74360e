"""Function vectors: the change that a prompt in the context makes to attention outputs, as one more rank of an adapter.

When a model reads a prompt, its attention outputs carry the task to the position of the answer: one vector per layer,
almost independent of the input (Todd et al. 2024, "Function Vectors in Large Language Models"; Hendel et al. 2023).
With the generated adapter active, the base therefore reads a neutral input twice, with the prompt before it and without
it. The vector is the difference of the outputs at the last token. It becomes a LoRA of the o projection: A maps the
input to a constant and is the same for every prompt, and B is the vector. This file knows a host and text; it knows
nothing of the hypernetwork that generated the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress

import torch
from torch import Tensor, nn

from promptlora.errors import ConfigError
from promptlora.host import Host
from promptlora.lora import Free, LoRAWeights
from promptlora.lora.forms import Form
from promptlora.projections import Projection, layer_of
from promptlora.text import pad_rows

NEUTRAL_INPUT = "..."  # follows a prompt; more inputs gave the same loss (docs/log.md)
VARIED_INPUTS = (  # what a constant reader must be constant on
    "The weather was nice yesterday.",
    "John gave Mary a book before she left.",
    "12 and 7",
    "What is the capital of France?",
    "mountain",
    "The food was cold, but the waiter was friendly.",
    "Sentence 1: A man is playing a guitar. Sentence 2: A person makes music.",
    "The committee met on Monday to talk about the new bridge, which is to be built by the end of next year.",
)
MIDDLE = (1 / 6, 5 / 6)  # the range of the layers that get a vector, as fractions of the depth
_RIDGE = 1e-2  # regularisation of the constant's reader, relative to the mean square of the input
_TOKENS = 8192  # tokens per forward pass, including padding; a longer row runs alone

_Note = Callable[[Projection, Tensor, Tensor], None]  # input [rows, tokens, in] and output of its module


class _Reached(Exception):  # noqa: N818 (not an error: it ends a forward pass that has what it came for)
    """Raised after the last of the projections has run."""


def middle_outputs(projections: Sequence[Projection], layers: tuple[float, float] = MIDDLE) -> list[Projection]:
    """The o projections of the layers in a range of the depth, given as two fractions.

    Raises:
        ConfigError: There are no such projections.
    """
    depth = 1 + max(layer_of(projection) for projection in projections)
    chosen = [p for p in projections if p.role == "o" and layers[0] * depth <= layer_of(p) < layers[1] * depth]
    if not chosen:
        raise ConfigError(
            f"no o projection from {layers[0]:.2f} to {layers[1]:.2f} of {depth} layers gets an adapter; function vectors "
            "need one: train with first_layer lower, or leave vectors at 0"
        )
    return sorted(chosen, key=layer_of)


@torch.no_grad()
def constant_readers(host: Host, layers: tuple[float, float] = MIDDLE) -> dict[str, Tensor]:
    """For each o projection of the layers, the direction ``[in]`` that maps its inputs in the bare base to about 1.

    It depends only on the base, so that it is computed once for all prompts.

    Args:
        host: The host that runs the base.
        layers: The range of layers that get a vector, as two fractions of the depth.

    Raises:
        ConfigError: No o projection in the layers gets an adapter.
    """
    outputs = middle_outputs(host.injector.projections, layers)
    rows = [host.render(text) for text in VARIED_INPUTS]
    lengths = [len(row) for row in rows]
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # [rows, tokens]
    found: dict[str, Tensor] = {}

    def note(projection: Projection, read: Tensor, written: Tensor) -> None:
        states = read.reshape(1, -1, read.shape[-1])
        found[projection.name] = constant_reader(states, real.to(read.device).reshape(1, -1))[0].to(host.device)

    _run(host, outputs, rows, None, None, note)
    return found


@torch.no_grad()
def add_function_vectors(
    host: Host,
    lora: LoRAWeights,
    prompts: Sequence[str],
    factor: float,
    readers: Mapping[str, Tensor],
    inputs: Sequence[str] = (NEUTRAL_INPUT,),
) -> LoRAWeights:
    """The adapters with the function vectors of their prompts, as one more rank of the middle o projections.

    Args:
        host: The host that runs the base.
        lora: One adapter per prompt.
        prompts: The prompts.
        factor: The factor of the vector; 0 adds nothing.
        readers: See :func:`constant_readers`; their projections get a vector.
        inputs: The neutral inputs that follow the prompt; the vectors are means over them.

    Raises:
        ConfigError: The factor is not a finite number of 0 or more.
    """
    if isinstance(factor, str) or not 0 <= factor < float("inf"):
        raise ConfigError(f"vectors={factor}; expected a finite number of 0 or more, 0 for none")
    if factor == 0:
        return lora
    outputs = sorted((p for p in host.injector.projections if p.name in readers), key=layer_of)
    owners = [i for i in range(len(prompts)) for _ in inputs]  # the adapter of each row
    with_prompt = [host.render(text, prompt) for prompt in prompts for text in inputs]
    shown = _last_outputs(host, outputs, with_prompt, lora, owners)
    alone = _last_outputs(host, outputs, [host.render(text) for text in inputs] * len(prompts), lora, owners)
    forms: dict[str, Form] = {name: lora.chosen(name) for name in lora}
    for name, reader in readers.items():
        A, B = lora[name]
        vectors = (shown[name] - alone[name]).view(len(prompts), len(inputs), -1).mean(1, keepdim=True)
        a = reader.to(A)[None, :, None].expand(len(prompts), -1, -1)
        forms[name] = Free(torch.cat((A, a), 2), torch.cat((B, (vectors * (factor / lora.scaling)).to(B)), 1))
    return LoRAWeights(forms, lora.scaling, projections=lora.projections, base_model=lora.base_model)


def _last_outputs(
    host: Host, outputs: Sequence[Projection], rows: Sequence[list[int]], lora: LoRAWeights, owners: Sequence[int]
) -> dict[str, Tensor]:
    """The output of each o projection at the last token of each row, ``[rows, out]``, batched by similar length."""
    found = {p.name: torch.empty(len(rows), p.out_features, device=host.device) for p in outputs}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
        some = sorted(order[-max(1, _TOKENS // len(rows[order[-1]])) :])  # sorted by adapter: no gather
        del order[-len(some) :]
        lengths = [len(rows[i]) for i in some]

        def note(
            projection: Projection,
            read: Tensor,
            written: Tensor,
            some: list[int] = some,
            lengths: list[int] = lengths,
        ) -> None:
            found[projection.name][some] = _last(projection, written, lengths).to(host.device)

        _run(host, outputs, [rows[i] for i in some], lora, [owners[i] for i in some], note)
    return found


def _last(projection: Projection, written: Tensor, lengths: Sequence[int]) -> Tensor:
    """The projection's part of an output ``[rows, tokens, out]`` at each row's last real token, in float32."""
    at = torch.tensor(lengths, device=written.device) - 1
    last = written[torch.arange(len(lengths), device=written.device), at].float()
    return last if projection.rows is None else torch.cat([last[:, i:j] for i, j in projection.rows], dim=1)


def constant_reader(states: Tensor, real: Tensor) -> Tensor:
    """The directions whose inner product with every real state is close to 1: ridge regression in dual form.

    The primal form ``(X^T X + c I) d = X^T 1`` is an ``in`` by ``in`` system. The dual form gives the same direction,
    ``d = X^T (X X^T + c I)^-1 1``, from a smaller ``tokens`` by ``tokens`` system.

    Args:
        states: X, ``[prompts, tokens, in]``.
        real: ``[prompts, tokens]``, False where a state is padding.

    Returns:
        ``[prompts, in]`` in float64, or in float32 if the device does not support float64.
    """
    wide = torch.float32 if states.device.type == "mps" else torch.float64
    ones = real.to(wide)
    states = states.to(wide) * ones[:, :, None]
    products = states @ states.mT
    diagonal = products.diagonal(dim1=1, dim2=2)
    diagonal.add_(_RIDGE * diagonal.sum(1, keepdim=True) / states.shape[-1])
    weights = torch.cholesky_solve(ones[:, :, None], torch.linalg.cholesky(products))
    directions: Tensor = (states.mT @ weights)[:, :, 0]
    return directions


def _run(
    host: Host,
    outputs: Sequence[Projection],
    rows: Sequence[Sequence[int]],
    lora: LoRAWeights | None,
    owners: Sequence[int] | None,
    note: _Note,
) -> None:
    """Run rows with their adapters up to the last of the o projections, and note the input and output of each."""
    ids, _ = pad_rows(rows, 0, device=host.device)
    with ExitStack() as stack:
        stack.enter_context(host.evaluating(lora, owners))
        for projection in outputs:

            def hook(
                module: nn.Module, args: tuple[Tensor], output: Tensor, projection: Projection = projection
            ) -> None:
                note(projection, args[0], output)
                if projection is outputs[-1]:
                    raise _Reached

            stack.callback(host.model.get_submodule(projection.module).register_forward_hook(hook).remove)
        with suppress(_Reached):
            host.model.get_decoder()(input_ids=ids, use_cache=False)
