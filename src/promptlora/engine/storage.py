"""One adapter as a file: its cores alone where the hypernetwork holds the factors, checked by a hash over its tensors.

It knows files and adapters; nothing of what is kept in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from promptlora.errors import CheckpointError, PromptLoRAError
from promptlora.files import replacing_file
from promptlora.fingerprint import weights_digest
from promptlora.hypernet.network import HyperNetwork
from promptlora.lora import Free, LoRAWeights, Shared
from promptlora.lora.forms import Form
from promptlora.lora.storage import provenance_text, read_provenance
from promptlora.reading import parse_json, read_tensors

FORMAT = "promptlora.adapter/1"
_TEXTS = ("prompt", "examples")  # of provenance


@dataclass(frozen=True)
class AdapterEntry:
    """One adapter of the cache.

    Attributes:
        key: Its id: a content hash, 64 hexadecimal digits.
        lora: The adapter, in the dtype and on the device of the base.
        nbytes: Bytes of the adapter, without factors that all adapters share.
        prompt_tokens: How many tokens of the base the prompt has, examples included.
        in_context: Whether it was written for a prompt that the base also has in its context.
        refined: Whether gradient steps followed.
        created: When it was written, in seconds since 1970.
        seconds: How long writing it took.
    """

    key: str
    lora: LoRAWeights
    nbytes: int
    prompt_tokens: int
    in_context: bool
    refined: bool
    created: float
    seconds: float


def fingerprint(network: HyperNetwork) -> str:
    """A hash over a hypernetwork: its configuration, its base and embedder, and every weight."""
    described = [asdict(network.config), network.base, network.embedder, [asdict(p) for p in network.projections]]
    content = json.dumps([*described, weights_digest(network)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def adapter_bytes(network: HyperNetwork, dtype: torch.dtype) -> int:
    """Bytes of one adapter that a hypernetwork writes, without factors that all adapters share."""
    config, rank = network.config, network.config.rank
    core = rank if config.head == "diagonal" else rank * rank
    numbers = sum(
        len(group) * (core if config.shares_factors else rank * (d_in + d_out))
        for (d_in, d_out), group in network.generator.groups.items()
    )
    return numbers * dtype.itemsize


def checksum(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """A hash over names, shapes, dtypes and values, and over the notes of a file, such as the scaling."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in notes.items() if k != "checksum"}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class AdapterFiles:
    """A folder with one file for each adapter.

    Args:
        folder: The folder; it is made when the first adapter is written.
        version: What a file must have been written for: the hypernetwork, the base and its dtype.
        factors: The factors that the hypernetwork's adapters share; empty where each has its own.
        origin: What every adapter knows of its base: ``projections`` and ``base_model``.
    """

    def __init__(
        self,
        folder: Path,
        version: Mapping[str, str],
        factors: Mapping[str, tuple[Tensor, Tensor]],
        origin: Mapping[str, Any],
    ) -> None:
        self.folder, self._version, self._factors, self._origin = folder, dict(version), factors, dict(origin)

    def path(self, key: str) -> Path:
        """Where the adapter of a key is."""
        return self.folder / key[:2] / f"{key[2:]}.safetensors"

    def keys(self) -> list[str]:
        """The keys of all files, readable or not."""
        found = self.folder.glob("[0-9a-f][0-9a-f]/*.safetensors")
        return sorted(f"{path.parent.name}{path.stem}" for path in found if not path.name.startswith("."))

    def delete(self, key: str) -> bool:
        """Remove a file; whether there was one.

        Raises:
            OSError: It cannot be removed.
        """
        try:
            self.path(key).unlink()
        except FileNotFoundError:
            return False
        return True

    def write(self, entry: AdapterEntry) -> None:
        """Write an adapter, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for name in entry.lora:
            form = entry.lora.chosen(name)
            own = {"C": form.C} if isinstance(form, Shared) and self._has(name, form) else form._asdict()
            tensors.update({f"{name}.lora_{letter}": each for letter, each in own.items()})
        tensors = {
            name: each.detach().cpu().clone(memory_format=torch.contiguous_format) for name, each in tensors.items()
        }
        values = {f.name: getattr(entry, f.name) for f in fields(entry) if f.name not in ("lora", "nbytes")}
        metadata = {
            **self._version,
            "format": FORMAT,
            "entry": json.dumps({**values, "scaling": entry.lora.scaling}),
        }
        if any(entry.lora.provenance):  # texts of users stay out of the file
            records = [{k: v for k, v in each.items() if k not in _TEXTS} for each in entry.lora.provenance]
            metadata["provenance"] = provenance_text(records)
        metadata["checksum"] = checksum(tensors, metadata)
        with replacing_file(self.path(entry.key)) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    def _has(self, name: str, form: Shared) -> bool:
        """Whether the factors of a form are those of the hypernetwork."""
        own = self._factors.get(name)
        return own is not None and all(
            a is b or a.data_ptr() == b.data_ptr() or (a.shape == b.shape and torch.equal(a, b))
            for a, b in zip(own, (form.A, form.B), strict=True)
        )

    def read(self, key: str, device: torch.device) -> AdapterEntry | None:
        """The adapter of a key; None where there is no file, or one that is damaged or was written for something else."""
        with suppress(PromptLoRAError, OSError, KeyError, TypeError, ValueError):
            return self._read(key, device)
        return None

    def _read(self, key: str, device: torch.device) -> AdapterEntry:
        tensors, metadata = read_tensors(self.path(key), CheckpointError)
        expected = {**self._version, "format": FORMAT, "checksum": checksum(tensors, metadata)}
        odd = [name for name, value in expected.items() if metadata.get(name) != value]
        if odd:
            raise CheckpointError(f"{self.path(key)}: {odd[0]} is not the expected one")
        values = parse_json(metadata["entry"], "entry", CheckpointError)
        if not isinstance(values, dict) or values.get("key") != key:
            raise CheckpointError(f"{self.path(key)}: another adapter's file")
        scaling = values.pop("scaling")
        placed = {name: each.to(device) for name, each in tensors.items()}
        names = dict.fromkeys(name.rpartition(".")[0] for name in placed)
        forms = {name: self._form(name, placed) for name in names}
        ordered = {p.name: forms[p.name] for p in self._origin.get("projections") or () if p.name in forms}
        lora = LoRAWeights({**ordered, **forms}, scaling, provenance=read_provenance(metadata, 1), **self._origin)
        return AdapterEntry(lora=lora, nbytes=lora.nbytes, **values)

    def _form(self, name: str, tensors: Mapping[str, Tensor]) -> Form:
        A, B, C = (tensors.get(f"{name}.lora_{letter}") for letter in "ABC")
        if C is not None and A is None and B is None:
            A, B = self._factors[name]
        if A is None or B is None:
            raise CheckpointError(f"{name}: a matrix is missing")
        return Free(A, B) if C is None else Shared(A, B, C)
