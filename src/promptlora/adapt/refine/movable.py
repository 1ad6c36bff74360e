"""Represents each adapter as one row of numbers, so that clipping, moments and the best step are handled per adapter.

It knows ``LoRAWeights``; it knows nothing of losses or rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from promptlora.lora import LoRAWeights, Shared
from promptlora.lora.forms import Form, Free


@dataclass(frozen=True)
class _Part:
    """A projection's part of a row: its name, the shapes of its trained tensors, and its fixed factors."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    factors: tuple[Tensor, Tensor] | None


class Movable:
    """The trained values of some adapters: the cores between shared factors, or else A and B.

    Args:
        lora: The adapters.
        free: Whether to copy shared factors for each adapter and train them too.
    """

    def __init__(self, lora: LoRAWeights, *, free: bool = False) -> None:
        lora = lora.detach()
        self.like = lora.free() if free else lora
        self.parts: list[_Part] = []
        pieces = []
        for name in self.like:
            form = self.like.chosen(name)
            moving = (form.C,) if isinstance(form, Shared) else (form.A, form.B)
            self.parts.append(
                _Part(
                    name,
                    tuple(tuple(tensor.shape[1:]) for tensor in moving),
                    (form.A, form.B) if isinstance(form, Shared) else None,
                )
            )
            pieces += [tensor.flatten(1) for tensor in moving]
        self._sizes = [piece.shape[1] for piece in pieces]
        # In half precision, small steps would be rounded away.
        fine = torch.promote_types(lora.dtype, torch.float32)
        self.start: Float[Tensor, "adapters numbers"] = torch.cat(pieces, dim=1).to(fine)

    @property
    def shared(self) -> bool:
        """Whether only cores are trained."""
        return self.like.is_shared

    def lora(self, values: Float[Tensor, "adapters numbers"]) -> LoRAWeights:
        """The adapters with these values, in the dtype of the original adapters; differentiable."""
        split = iter(values.to(self.like.dtype).split(self._sizes, dim=1))
        forms: dict[str, Form] = {}
        for part in self.parts:
            moving = [next(split).reshape(len(values), *shape) for shape in part.shapes]
            forms[part.name] = Free(*moving) if part.factors is None else Shared(*part.factors, moving[0])
        return LoRAWeights(forms, self.like.scaling, projections=self.like.projections, base_model=self.like.base_model)
