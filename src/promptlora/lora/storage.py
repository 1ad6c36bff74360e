"""Stores ``LoRAWeights`` in one safetensors file.

The keys are ``name.lora_A``, ``name.lora_B`` and, for shared factors, ``name.lora_C``. This file knows keys and
metadata; ``LoRAWeights`` knows what the matrices mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from promptlora.errors import LoRAError
from promptlora.files import replacing_file
from promptlora.lora.forms import Form, Free, Shared
from promptlora.projections import Projection, read_projections
from promptlora.reading import is_file, parse_json, read_tensors

FREE_FORMAT = "promptlora.lora/1"
SHARED_FORMAT = "promptlora.lora/2"  # like /1, plus a lora_C for every name in shared form


def write_forms(
    path: Path,
    forms: Mapping[str, Form],
    scaling: float,
    projections: tuple[Projection, ...] | None,
    base_model: str | None = None,
    provenance: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write forms to one file, atomically.

    Raises:
        LoRAError: See :func:`provenance_text`.
        OutputError: The file cannot be written.
    """
    tensors = {
        f"{name}.lora_{letter}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, form in forms.items()  # copies: safetensors refuses tensors that share memory
        for letter, tensor in form._asdict().items()
    }
    shared = any(isinstance(form, Shared) for form in forms.values())
    metadata = {"format": SHARED_FORMAT if shared else FREE_FORMAT, "scaling": json.dumps(scaling)}
    if projections is not None:
        metadata["projections"] = json.dumps([asdict(projection) for projection in projections])
    if base_model is not None:
        metadata["base_model"] = base_model
    if provenance is not None:
        metadata["provenance"] = provenance_text(provenance)
    with replacing_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_forms(path: Path) -> tuple[dict[str, Form], dict[str, str]]:
    """The forms and the metadata of a file that :func:`write_forms` wrote.

    Raises:
        LoRAError: The file is missing, truncated or in another format, or a matrix lacks its counterpart.
    """
    if not is_file(path):
        raise LoRAError(f"{path}: no such file; expected a .safetensors file written by LoRAWeights.save")
    tensors, metadata = read_tensors(path, LoRAError)
    if metadata.get("format") not in (FREE_FORMAT, SHARED_FORMAT):
        raise LoRAError(
            f"{path}: format {repr(metadata.get('format'))[:80]}; expected {FREE_FORMAT!r} or {SHARED_FORMAT!r}; for PEFT use "
            "load_peft"
        )
    names = [key.removesuffix(".lora_A") for key in tensors if key.endswith(".lora_A")]
    cores = {name for name in names if f"{name}.lora_C" in tensors}
    odd = set(tensors) ^ {
        f"{name}.lora_{letter}" for name in names for letter in ("ABC" if name in cores else "AB")
    }  # fmt: skip
    if odd:
        raise LoRAError(f"{path}: {min(odd)} has no partner; expected a lora_A and a lora_B for each name")
    return {name: _form(tensors, name, name in cores) for name in names}, metadata


def _form(tensors: Mapping[str, Tensor], name: str, shared: bool) -> Form:
    A, B = tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]
    return Shared(A, B, tensors[f"{name}.lora_C"]) if shared else Free(A, B)


def read_scaling(metadata: Mapping[str, str]) -> float:
    """The scaling in the metadata of a file.

    Raises:
        LoRAError: The scaling is missing or is not a number.
    """
    scaling = parse_json(metadata.get("scaling", "null"), "scaling", LoRAError)
    if isinstance(scaling, bool) or not isinstance(scaling, (int, float)):
        raise LoRAError(f"scaling is {repr(scaling)[:80]}; expected a finite number, alpha / rank")
    return float(scaling)


def provenance_text(provenance: Sequence[Mapping[str, Any]]) -> str:
    """Provenance as JSON for the metadata of a file, in the form that :func:`read_provenance` accepts.

    Raises:
        LoRAError: A value is no JSON value, or a number is not finite: a file with it could not be read again.
    """
    try:
        return json.dumps(list(provenance), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LoRAError(f"provenance: {error}. Expected JSON values with finite numbers. Fix: change it.") from error


def read_provenance(metadata: Mapping[str, str], adapters: int, key: str = "provenance") -> list[dict[str, Any]] | None:
    """The recorded provenance of each adapter of a file; None if the file has none.

    Raises:
        LoRAError: The value is not a list of objects.
    """
    if key not in metadata:
        return None
    entries: Any = parse_json(metadata[key], key, LoRAError)
    fits = isinstance(entries, list) and len(entries) == adapters and all(isinstance(entry, dict) for entry in entries)
    if not fits:
        raise LoRAError(f"{key} is {repr(entries)[:80]}; expected a list of {adapters} objects, one for each adapter")
    return list(entries)


def read_metadata_projections(metadata: Mapping[str, str], forms: Mapping[str, Form]) -> list[Projection] | None:
    """The projections in the metadata of a file, checked against its matrices.

    Raises:
        PromptLoRAError: The values cannot be used, or their sizes differ from those of the matrices.
    """
    if "projections" not in metadata:
        return None
    projections = read_projections(parse_json(metadata["projections"], "projections", LoRAError))
    for p in projections:
        form = forms.get(p.name)
        if form is not None and (form.A.shape[-2], form.B.shape[-1]) != p.shape:
            raise LoRAError(
                f"{p.name}: A {list(form.A.shape)} and B {list(form.B.shape)}; expected in and out of {list(p.shape)}"
            )
    return projections
