"""Merges one adapter into the weights of a model, so that it costs nothing at run time.

It knows weights and projections; it knows nothing of files or hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from promptlora.errors import LoRAError
from promptlora.lora import LoRAWeights
from promptlora.projections import Projection, find_projections, module_shape

Model = TypeVar("Model", bound=nn.Module)


def merge_lora(model: Model, lora: LoRAWeights, projections: Sequence[Projection] | None = None) -> Model:
    """Add ``A @ B * scaling`` of one adapter to the weights of ``model``, in place.

    All checks run before the first change, so an error leaves the model unchanged. Weights narrower than float32 are
    summed in float32 and rounded once. There is no unmerge, because subtracting the update does not restore the
    original bits. Keep a copy (``copy.deepcopy(model)``) or load the base again.

    Args:
        model: The base model; not quantised and not on the meta device.
        lora: A selection of exactly one adapter, in the dtype and on the device of the weights.
        projections: The location of the names; by default ``lora.projections``, else the projections of the model.

    Returns:
        The same model.

    Raises:
        LoRAError: There is not exactly one adapter, a name is unknown or does not match its module, the dtype or device
            differs, or the weights cannot be changed (quantised, sharded, on the meta device, computed, or shared by
            two modules).
    """
    if lora.adapters != 1:
        raise LoRAError(f"{lora.adapters} adapters; expected exactly one to merge; choose one with lora.select(i)")
    if projections is None:
        projections = lora.projections or find_projections(model)
    by_name = {projection.name: projection for projection in projections}
    modules = dict(model.named_modules())
    owners: dict[int, str] = {}
    planned: list[tuple[Tensor, Projection, Tensor, Tensor]] = []
    for name, (A, B) in lora.items():
        projection = by_name.get(name)
        module = modules.get(projection.module) if projection is not None else None
        if projection is None or module is None:
            raise LoRAError(
                f"{name}: no such projection in {type(model).__name__} ({len(by_name)} known, first "
                f"{next(iter(by_name), None)}); was this LoRA made for another model?"
            )
        weight = _weight(module, projection, A, B)  # [out, in]
        if not (A.isfinite().all() and B.isfinite().all()):
            raise LoRAError(f"{name}: A or B holds nan or inf; expected finite numbers; write the adapter again")
        owner = owners.setdefault(weight.data_ptr(), projection.module)
        if owner != projection.module:
            raise LoRAError(
                f"{name}: {projection.module} shares its weight with {owner}; merging would add both to it; use hooks"
            )
        planned.append((weight, projection, A[0].detach(), B[0].detach()))
    with torch.no_grad():
        for weight, projection, A, B in planned:
            wide = weight.dtype if weight.dtype.itemsize >= 4 else torch.float32
            delta = (A.to(wide) @ B.to(wide)).mul_(lora.scaling).T  # [out, in]
            rows = projection.row_index().to(weight.device)
            if projection.rows is None:
                weight.copy_(weight.to(wide) + delta)
            else:
                weight[rows] = (weight[rows].to(wide) + delta).to(weight.dtype)
    return model


def _weight(module: nn.Module, projection: Projection, A: Tensor, B: Tensor) -> Tensor:
    """The weight of a module as a view ``[out, in]``; raises an error if the update cannot be added to it."""
    where = projection.module
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if weight is None or not weight.is_floating_point() or type(weight.data) is not Tensor:
        kind = "none" if weight is None else f"{type(weight).__name__} {weight.dtype}"
        raise LoRAError(
            f"{where}: its weight is {kind}; expected a plain floating parameter (not quantised, sharded or computed)"
        )
    if weight.is_meta:
        raise LoRAError(f"{where}: its weight is on the meta device; expected real weights; load the model first")
    view = weight.data.T if hasattr(module, "nf") else weight.data  # transformers' Conv1D keeps [in, out]
    shape = module_shape(module)
    if shape is None or tuple(view.shape) != (shape[1], shape[0]):
        raise LoRAError(
            f"{where}: its weight is {list(weight.shape)}; expected [out, in] of {shape} (in, out); is it quantised?"
        )
    top = projection.out_features if projection.rows is None else max(stop for _, stop in projection.rows)
    fits = projection.shape == (A.shape[1], B.shape[2]) and shape[0] == projection.in_features
    if not fits or top > shape[1] or (projection.rows is None and top != shape[1]):
        raise LoRAError(
            f"{projection.name}: A {list(A.shape[1:])} and B {list(B.shape[1:])} on {where} {shape} (in, out); expected "
            f"{projection.shape}; was this LoRA made for another model?"
        )
    if weight.dtype != A.dtype:
        raise LoRAError(
            f"{projection.name}: the LoRA is {A.dtype} and the model {weight.dtype}; use lora.to({weight.dtype})"
        )
    if weight.device != A.device:
        raise LoRAError(f"{projection.name}: the LoRA is on {A.device} and the model on {weight.device}; use lora.to")
    return view
