"""Function vectors: the change that a prompt in the context makes to attention outputs, as one more rank of an adapter.

When a model reads a prompt, its attention outputs carry the task to the position of the answer: one vector per layer,
almost independent of the input (Todd et al. 2024, "Function Vectors in Large Language Models"; Hendel et al. 2023).
With the generated adapter active, the base therefore reads a few neutral inputs twice, with the prompt before them and
without it. The vector is the mean difference of the outputs at the last token. It becomes a LoRA of the o projection: A
maps the input to a constant, and B is the vector. This file knows a host and text; it knows nothing of the hypernetwork
that generated the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

import torch
from torch import Tensor, nn

from promptlora.errors import ConfigError
from promptlora.host import Host
from promptlora.lora import Free, LoRAWeights
from promptlora.lora.forms import Form
from promptlora.projections import Projection, layer_of
from promptlora.text import pad_rows

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
def add_function_vectors(
    host: Host,
    lora: LoRAWeights,
    prompts: Sequence[str],
    factor: float,
    *,
    layers: tuple[float, float] = MIDDLE,
    inputs: Sequence[str] = NEUTRAL_INPUTS,
) -> LoRAWeights:
    """The adapters with the function vectors of their prompts, as one more rank of the middle o projections.

    Args:
        host: The host that runs the base.
        lora: One adapter per prompt.
        prompts: The prompts.
        factor: The factor of the vector; 0 adds nothing.
        layers: The range of layers that get a vector, as two fractions of the depth.
        inputs: The neutral inputs that follow the prompt.

    Raises:
        ConfigError: The factor is not a finite number of 0 or more, or no o projection in the layers has an adapter.
    """
    if not 0 <= factor < float("inf"):
        raise ConfigError(f"vectors={factor}; expected a finite number of 0 or more, 0 for none")
    if factor == 0:
        return lora
    outputs = middle_outputs([p for p in host.injector.projections if p.name in lora], layers)
    alone = [host.render(text) for text in inputs]
    shown = [host.render(text, prompt) for prompt in prompts for text in inputs]
    owners = [i for i in range(len(prompts)) for _ in inputs]  # the adapter of each row
    with_prompt = _last_outputs(host, outputs, shown, lora, owners)
    without, readers = _read_alone(host, outputs, alone, lora, len(prompts))
    forms: dict[str, Form] = {name: lora.chosen(name) for name in lora}
    for projection in outputs:
        name = projection.name
        A, B = lora[name]
        vectors = (with_prompt[name] - without[name]).view(len(prompts), len(inputs), -1).mean(1)
        b = (vectors[:, None, :] * (factor / lora.scaling)).to(B)
        forms[name] = Free(torch.cat((A, readers[name][:, :, None].to(A)), 2), torch.cat((B, b), 1))
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


def _read_alone(
    host: Host, outputs: Sequence[Projection], rows: Sequence[list[int]], lora: LoRAWeights, prompts: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the inputs without a prompt, with the adapter of each prompt.

    Returns:
        For each o projection, its outputs at the last token, ``[prompts x rows, out]``, and the directions
        ``[prompts, in]`` that map its inputs to a constant.
    """
    written_last: dict[str, list[Tensor]] = {p.name: [] for p in outputs}
    readers: dict[str, list[Tensor]] = {p.name: [] for p in outputs}
    lengths = [len(row) for row in rows]
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # [rows, tokens]
    together = max(1, _TOKENS // real.numel())
    for start in range(0, prompts, together):
        some = range(start, min(start + together, prompts))

        def note(projection: Projection, read: Tensor, written: Tensor, count: int = len(some)) -> None:
            written_last[projection.name].append(_last(projection, written, lengths * count).to(host.device))
            mask = real.to(read.device).reshape(1, -1).expand(count, -1)
            reader = constant_reader(read.reshape(count, -1, read.shape[-1]), mask)
            readers[projection.name].append(reader.to(host.device))

        _run(host, outputs, list(rows) * len(some), lora, [i for i in some for _ in rows], note)
    return {k: torch.cat(v) for k, v in written_last.items()}, {k: torch.cat(v) for k, v in readers.items()}


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
    lora: LoRAWeights,
    owners: Sequence[int],
    note: _Note,
) -> None:
    """Run rows with their adapters up to the last o projection; call ``note`` with the input and output of each."""
    ids, _ = pad_rows(rows, 0, device=host.device)
    with ExitStack() as stack:
        stack.enter_context(host.evaluating(lora, owners))
        for projection in outputs:

            def hook(
                module: nn.Module, args: tuple[Tensor], output: Tensor, projection: Projection = projection
            ) -> None:
                note(projection, args[0], output)

            stack.callback(host.model.get_submodule(projection.module).register_forward_hook(hook).remove)
        with suppress(_Reached):
            host.model.get_decoder()(input_ids=ids, use_cache=False)
