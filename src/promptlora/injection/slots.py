"""``AdapterSlots``: the adapters of running requests in numbered slots, for packed batches.

Adapters can be added and removed at any token. A new adapter is copied into its slot (a few kilobytes of cores with
shared factors); the others stay in place. This file knows ``LoRAWeights`` and the requirements of a projection; it
knows nothing of models or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from promptlora.injection.packed import Matrices, PackedPlan, PackedUpdate
from promptlora.injection.update import column_period
from promptlora.lora import LoRAWeights, Shared
from promptlora.lora.forms import Form
from promptlora.projections import Projection


@dataclass(frozen=True)
class Place:
    """Where a projection lives in the model.

    Attributes:
        projection: The projection.
        width: The output width of its module.
        device: The device on which its module computes; None if it is not known.
    """

    projection: Projection
    width: int
    device: torch.device | None


class AdapterSlots:
    """Slots for adapters with the same projections, ranks, scaling and, in shared form, the same factors.

    Slot 0 is the base and stays empty.

    Args:
        like: An adapter of this kind. Only :meth:`put` copies adapters into slots, so the new slots are empty.
        count: The number of adapters that fit.
        place: A function that returns the place of a projection from its name and form.
    """

    def __init__(self, like: LoRAWeights, count: int, place: Callable[[str, Form], Place]) -> None:
        self.scaling, self.count = like.scaling, count
        self._forms: dict[str, Form] = {}  # the expected shapes; for shared forms, also the factors
        self._matrices: dict[str, tuple[str, Matrices]] = {}  # module and matrices of each projection
        for name, form in like.stored.items():
            at = place(name, form)
            projection, device = at.projection, at.device or form.A.device
            if isinstance(form, Shared):
                A, B, C = form.A.to(device), form.B.to(device), _slots(form.C, count, device)
                self._forms[name] = form
            else:
                A, B, C = _slots(form.A, count, device), _slots(form.B, count, device), None
                self._forms[name] = form.map(lambda matrix: matrix[:0])  # keeps only the shapes
            period = 0 if projection.rows is None else column_period(projection.rows, at.width)
            made = Matrices(name, A, B, self.scaling, C, projection.rows, period)
            self._matrices[name] = projection.module, made

    @property
    def nbytes(self) -> int:
        """Bytes of all slots, without shared factors."""
        return sum(m.C.nbytes if m.C is not None else m.A.nbytes + m.B.nbytes for _, m in self._matrices.values())

    def takes(self, lora: LoRAWeights) -> bool:
        """Whether an adapter has the form of the adapters in these slots."""
        return (
            lora.scaling == self.scaling
            and lora.stored.keys() == self._forms.keys()
            and all(_alike(form, self._forms[name]) for name, form in lora.stored.items())
        )

    @torch.no_grad()
    def put(self, slot: int, lora: LoRAWeights) -> None:
        """Copy the single adapter of a LoRA that :meth:`takes` accepts into a slot, counted from 1."""
        (stored,) = lora.index
        for name, form in lora.stored.items():
            matrices = self._matrices[name][1]
            if isinstance(form, Shared):
                assert matrices.C is not None
                matrices.C[slot].copy_(form.C[stored])
                matrices.changed()
            else:
                matrices.A[slot].copy_(form.A[stored])
                matrices.B[slot].copy_(form.B[stored])

    def updates(self, plan: PackedPlan) -> Mapping[str, tuple[PackedUpdate, ...]]:
        """The updates that the hook of each module adds in one step."""
        found: dict[str, tuple[PackedUpdate, ...]] = {}
        for module, matrices in self._matrices.values():
            found[module] = (*found.get(module, ()), PackedUpdate(matrices, plan))
        return found


def _slots(stored: Tensor, count: int, device: torch.device) -> Tensor:
    """Zeros for ``count`` adapters and for the base in slot 0."""
    return torch.zeros(count + 1, *stored.shape[1:], dtype=stored.dtype, device=device)


def _alike(form: Form, expected: Form) -> bool:
    if type(form) is not type(expected) or form.A.dtype != expected.A.dtype:
        return False
    if isinstance(form, Shared) and isinstance(expected, Shared):
        return form.C.shape[1:] == expected.C.shape[1:] and _same(form.A, expected.A) and _same(form.B, expected.B)
    return form.A.shape[1:] == expected.A.shape[1:] and form.B.shape[1:] == expected.B.shape[1:]


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two factors are the same tensor or hold the same values."""
    if a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()):
        return True
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b)
