"""``LoRAWeights`` as one safetensors file: ``name.lora_A`` and ``name.lora_B``, with shared factors ``name.lora_C`` too.

It knows the file's keys and metadata; what the matrices mean is ``LoRAWeights``' matter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from promptlora.errors import LoRAError
from promptlora.files import replacing_file
from promptlora.lora.forms import Form, Free, Shared
from promptlora.projections import Projection

FREE_FORMAT = "promptlora.lora/1"
SHARED_FORMAT = "promptlora.lora/2"  # as /1, and a lora_C for every name in shared form


def write_forms(
    path: Path, forms: Mapping[str, Form], scaling: float, projections: tuple[Projection, ...] | None
) -> None:
    """Write forms to one file, whole or not at all."""
    tensors = {
        f"{name}.lora_{letter}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, form in forms.items()  # copies: safetensors refuses tensors that share memory
        for letter, tensor in form._asdict().items()
    }
    shared = any(isinstance(form, Shared) for form in forms.values())
    metadata = {"format": SHARED_FORMAT if shared else FREE_FORMAT, "scaling": json.dumps(scaling)}
    if projections is not None:
        metadata["projections"] = json.dumps([asdict(projection) for projection in projections])
    with replacing_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_forms(path: Path) -> tuple[dict[str, Form], dict[str, str]]:
    """The forms and the metadata of a file that :func:`write_forms` wrote.

    Raises:
        LoRAError: A missing, truncated or foreign file, or a matrix without its partner.
    """
    if not path.is_file():
        raise LoRAError(f"{path}: no such file; expected a .safetensors file written by LoRAWeights.save")
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise LoRAError(f"{path}: not a whole safetensors file ({error}); write it again") from error
    if metadata.get("format") not in (FREE_FORMAT, SHARED_FORMAT):
        raise LoRAError(
            f"{path}: format {metadata.get('format')!r}; expected {FREE_FORMAT!r} or {SHARED_FORMAT!r}; for PEFT use "
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


def read_projections(metadata: Mapping[str, str]) -> list[Projection] | None:
    """The projections that the metadata of a file holds."""
    if "projections" not in metadata:
        return None
    return [_projection(fields) for fields in json.loads(metadata["projections"])]


def _projection(fields: dict[str, Any]) -> Projection:
    rows = fields["rows"]
    return Projection(**{**fields, "rows": None if rows is None else tuple(tuple(span) for span in rows)})
