"""``LoRAWeights``: the LoRA matrices of one or more adapters, and their algebra.

A pure tensor container. For each projection it holds A ``[adapters, in, rank]`` and
B ``[adapters, rank, out]``; the update of an adapter is ``x @ A @ B * scaling``. It knows nothing of
models, hooks or files of other libraries.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from promptlora.errors import LoRAError, PromptLoRAError
from promptlora.files import replacing_file
from promptlora.projections import Projection, read_projections
from promptlora.reading import is_file, parse_json, read_tensors

if TYPE_CHECKING:
    from promptlora.lora.peft import PeftReport

_FORMAT = "promptlora.lora/1"


class LoRAWeights(Mapping[str, tuple[Tensor, Tensor]]):
    """LoRA matrices for a set of projections and a number of adapters.

    ``lora[name]`` is the pair ``(A [adapters, in, rank], B [adapters, rank, out])``. A selection
    (:meth:`select`) shares the stored matrices and keeps only an index of rows to adapters, so that many
    rows can use one adapter without a copy.

    Args:
        matrices: ``name -> (A, B)``; all names have the same number of adapters, dtype and device. The rank
            may differ between names.
        scaling: The factor of the update (``alpha / rank`` in PEFT's words).
        index: Row to stored adapter; None is one row for each stored adapter, in order.
        projections: Where the names live in the base model; only exports of fused modules need it.

    Raises:
        LoRAError: Matrices that do not fit together; the message names the projection.
    """

    def __init__(
        self,
        matrices: Mapping[str, tuple[Tensor, Tensor]],
        scaling: float,
        *,
        index: Sequence[int] | None = None,
        projections: Sequence[Projection] | None = None,
    ) -> None:
        if not matrices:
            raise LoRAError("matrices is empty: expected at least one projection name with its A and B")
        self._matrices = dict(matrices)
        self.scaling = float(scaling)
        if not math.isfinite(self.scaling):
            raise LoRAError(f"scaling is {scaling}; expected a finite number, alpha / rank")
        self.projections = tuple(projections) if projections is not None else None
        first = next(iter(self._matrices.values()))[0]
        for name, (A, B) in self._matrices.items():
            if A.ndim != 3 or B.ndim != 3:
                raise LoRAError(
                    f"{name}: A {list(A.shape)} and B {list(B.shape)}; expected A [adapters, in, rank] and "
                    "B [adapters, rank, out]"
                )
            if A.shape[2] != B.shape[1]:
                raise LoRAError(f"{name}: rank {A.shape[2]} of A differs from rank {B.shape[1]} of B")
            if A.shape[0] != first.shape[0] or B.shape[0] != first.shape[0]:
                raise LoRAError(
                    f"{name}: {A.shape[0]} adapters in A and {B.shape[0]} in B; expected {first.shape[0]} as in "
                    f"{next(iter(self._matrices))}"
                )
            for matrix in (A, B):
                if matrix.dtype != first.dtype or matrix.device != first.device:
                    raise LoRAError(
                        f"{name}: {matrix.dtype} on {matrix.device}; expected {first.dtype} on {first.device} "
                        "as in the first matrix; use .to(dtype, device)"
                    )
        if not first.is_floating_point():
            raise LoRAError(f"{next(iter(self._matrices))}: A is {first.dtype}; expected a floating point dtype")
        self.stored_adapters = first.shape[0]
        try:
            self.index = tuple(range(first.shape[0])) if index is None else tuple(map(operator.index, index))
        except TypeError as error:
            raise LoRAError(f"index {list(index or ())[:8]!r}; expected whole numbers") from error
        for i in self.index:
            if not 0 <= i < first.shape[0]:
                raise LoRAError(
                    f"index {i} is out of range: there are {first.shape[0]} adapters (0 … {first.shape[0] - 1})"
                )

    __eq__ = object.__eq__  # a mapping compares values; tensors have no single truth
    __hash__ = object.__hash__

    # --- mapping -------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        """A ``[adapters, in, rank]`` and B ``[adapters, rank, out]`` of the selected adapters."""
        if name not in self._matrices:
            raise KeyError(f"{name!r} is not a projection of this LoRA ({len(self)} names, first {next(iter(self))!r})")
        A, B = self._matrices[name]
        if self.selects_all:
            return A, B
        low, high = min(self.index, default=0), max(self.index, default=-1)
        if self.index == tuple(range(low, high + 1)):  # a run: a view
            return A[low : high + 1], B[low : high + 1]
        rows = torch.tensor(self.index, device=A.device)
        return A.index_select(0, rows), B.index_select(0, rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._matrices)

    def __len__(self) -> int:
        """The number of projections; the number of adapters is :attr:`adapters`."""
        return len(self._matrices)

    def __repr__(self) -> str:
        A, _ = next(iter(self._matrices.values()))
        return (
            f"LoRAWeights(adapters={self.adapters}, projections={len(self)}, rank={self.rank}, "
            f"scaling={self.scaling:g}, {str(A.dtype).removeprefix('torch.')}, {A.device})"
        )

    # --- what it holds -------------------------------------------------------------------------------

    @property
    def stored(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """The stored matrices, before :attr:`index` is applied; shared between selections."""
        return self._matrices

    @property
    def selects_all(self) -> bool:
        """Whether row i is stored adapter i, for all stored adapters."""
        return self.index == tuple(range(self.stored_adapters))

    @property
    def adapters(self) -> int:
        """The number of adapters (rows of the selection)."""
        return len(self.index)

    @property
    def rank(self) -> int:
        """The largest rank of any projection."""
        return max(A.shape[2] for A, _ in self._matrices.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of every matrix."""
        return next(iter(self._matrices.values()))[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of every matrix."""
        return next(iter(self._matrices.values()))[0].device

    @property
    def nbytes(self) -> int:
        """Bytes of the stored matrices that the selection refers to, each stored adapter counted once."""
        used = len(set(self.index))
        return sum((A[0].nbytes + B[0].nbytes) * used for A, B in self._matrices.values() if A.shape[0])

    def delta(self, name: str) -> Tensor:
        """The dense update ``A @ B * scaling``, ``[adapters, in, out]``, of one projection."""
        A, B = self[name]
        return (A @ B) * self.scaling

    # --- algebra -------------------------------------------------------------------------------------

    def _map(self, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], scaling: float) -> LoRAWeights:
        """The same selection of changed stored matrices, so that a shared adapter is changed and kept once."""
        matrices = {name: change(A, B) for name, (A, B) in self._matrices.items()}
        return LoRAWeights(matrices, scaling, index=self.index, projections=self.projections)

    def select(self, rows: int | Sequence[int]) -> LoRAWeights:
        """Choose adapters by row, by reference: nothing is copied.

        Args:
            rows: One row, or a list of rows that may repeat; negative rows count from the end.

        Raises:
            LoRAError: A row that does not exist.
        """
        try:
            chosen = [operator.index(row) for row in (rows if isinstance(rows, Iterable) else [rows])]
        except TypeError as error:
            raise LoRAError(f"select({rows!r}): expected one row number or a list of them") from error
        for row in chosen:
            if not -self.adapters <= row < self.adapters:
                raise LoRAError(f"select({row}): there are {self.adapters} adapters (0 … {self.adapters - 1})")
        index = [self.index[row] for row in chosen]
        return LoRAWeights(self._matrices, self.scaling, index=index, projections=self.projections)

    @staticmethod
    def stack(loras: Sequence[LoRAWeights]) -> LoRAWeights:
        """Put the adapters of several LoRAs after one another (concatenate along the adapter axis).

        Raises:
            LoRAError: Different names, shapes, ranks, dtypes or scalings.
        """
        first = _same_names(loras, "stack")
        for lora in loras:
            if lora.scaling != first.scaling:
                raise LoRAError(f"stack: scaling {lora.scaling:g} differs from {first.scaling:g}; use rescale first")
        matrices = {}
        for name in first:
            pairs = [lora[name] for lora in loras]
            for A, B in pairs:
                if A.shape[1:] != pairs[0][0].shape[1:] or B.shape[1:] != pairs[0][1].shape[1:]:
                    raise LoRAError(
                        f"stack: {name} has A {list(A.shape[1:])}, B {list(B.shape[1:])}; expected "
                        f"{list(pairs[0][0].shape[1:])}, {list(pairs[0][1].shape[1:])} as in the first"
                    )
            matrices[name] = (torch.cat([A for A, _ in pairs]), torch.cat([B for _, B in pairs]))
        return LoRAWeights(matrices, first.scaling, projections=first.projections)

    @staticmethod
    def combine(loras: Sequence[LoRAWeights], weights: Sequence[float] | None = None) -> LoRAWeights:
        """Add updates: row i of the result is the weighted sum of row i of each, exact, ranks added up.

        The matrices are concatenated along rank: ``[A1 | A2] @ [w1 s1 B1 ; w2 s2 B2]``, scaling 1 when the
        scalings differ or weights are given.

        Raises:
            LoRAError: Different names or numbers of adapters, or a wrong number of weights.
        """
        first = _same_names(loras, "combine")
        if weights is not None and len(weights) != len(loras):
            raise LoRAError(f"combine: {len(weights)} weights for {len(loras)} LoRAs; expected one each")
        for lora in loras:
            if lora.adapters != first.adapters:
                raise LoRAError(f"combine: {lora.adapters} adapters; expected {first.adapters} as in the first")
        plain = weights is None and all(lora.scaling == first.scaling for lora in loras)
        factors = (
            [1.0] * len(loras)
            if plain
            else [lora.scaling * (1.0 if weights is None else weights[i]) for i, lora in enumerate(loras)]
        )
        matrices = {
            name: (
                torch.cat([lora[name][0] for lora in loras], dim=2),
                torch.cat([lora[name][1] * factor for lora, factor in zip(loras, factors, strict=True)], dim=1),
            )
            for name in first
        }
        return LoRAWeights(matrices, first.scaling if plain else 1.0, projections=first.projections)

    def mean(self) -> LoRAWeights:
        """The mean of the updates of all adapters, exact: one adapter whose rank is ``adapters`` times as large."""
        each = [self.select(row) for row in range(self.adapters)]
        return LoRAWeights.combine(each, [1 / self.adapters] * self.adapters)

    def rescale(self, scaling: float) -> LoRAWeights:
        """The same update written with another scaling; the difference goes into B.

        Raises:
            LoRAError: A scaling of 0 or not finite.
        """
        if scaling == 0 or not math.isfinite(scaling):
            raise LoRAError(f"rescale({scaling}): no B would give the same update; expected a finite scaling, not 0")
        factor = self.scaling / scaling
        return self._map(lambda A, B: (A, B * factor), scaling)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LoRAWeights:
        """The same LoRA in another dtype or on another device; differentiable; itself if nothing changes."""
        dtype, device = dtype or self.dtype, torch.device(device) if device is not None else self.device
        if dtype == self.dtype and device == self.device:
            return self
        return self._map(lambda A, B: (A.to(device, dtype), B.to(device, dtype)), self.scaling)

    def detach(self) -> LoRAWeights:
        """The same matrices, cut off from the autograd graph."""
        return self._map(lambda A, B: (A.detach(), B.detach()), self.scaling)

    # --- files ---------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the selected adapters to one safetensors file (whole, or not at all).

        A row is written for each row of the selection; :attr:`projections` are written along.
        """
        tensors = {}
        for name, (A, B) in self.items():  # copies: safetensors refuses tensors that share memory
            tensors[f"{name}.lora_A"] = A.detach().cpu().clone(memory_format=torch.contiguous_format)
            tensors[f"{name}.lora_B"] = B.detach().cpu().clone(memory_format=torch.contiguous_format)
        metadata = {"format": _FORMAT, "scaling": json.dumps(self.scaling)}
        if self.projections is not None:
            metadata["projections"] = json.dumps([asdict(projection) for projection in self.projections])
        with replacing_file(Path(path)) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> LoRAWeights:
        """Read what :meth:`save` wrote.

        Raises:
            LoRAError: A missing, truncated or foreign file.
        """
        path = Path(path)
        if not is_file(path):
            raise LoRAError(f"{path}: no such file; expected a .safetensors file written by LoRAWeights.save")
        tensors, metadata = read_tensors(path, LoRAError)
        if metadata.get("format") != _FORMAT:
            raise LoRAError(
                f"{path}: format {repr(metadata.get('format'))[:80]}; expected {_FORMAT!r}; for PEFT use load_peft"
            )
        names = [key.removesuffix(".lora_A") for key in tensors if key.endswith(".lora_A")]
        odd = set(tensors) ^ {f"{name}.lora_{which}" for name in names for which in "AB"}
        if odd:
            raise LoRAError(f"{path}: {min(odd)} has no partner; expected a lora_A and a lora_B for each name")
        matrices = {name: (tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]) for name in names}
        try:
            lora = cls(matrices, _read_scaling(metadata), projections=_read_projections(metadata))
            lora._check_projections()
        except PromptLoRAError as error:
            raise LoRAError(f"{path}: {error}") from error
        return lora

    def _check_projections(self) -> None:
        """Refuse projections that do not fit the matrices."""
        for p in self.projections or ():
            if p.name in self._matrices:
                A, B = self._matrices[p.name]
                if (A.shape[1], B.shape[2]) != p.shape:
                    raise LoRAError(
                        f"{p.name}: A {list(A.shape)} and B {list(B.shape)}; expected in and out of {list(p.shape)}"
                    )

    def save_peft(self, path: str | Path, **options: Any) -> PeftReport:
        """Write the one adapter of this selection as a PEFT folder; see ``lora.peft.save_peft``."""
        from promptlora.lora.peft import save_peft

        return save_peft(self, path, **options)

    @classmethod
    def load_peft(cls, path: str | Path, **options: Any) -> LoRAWeights:
        """Read a PEFT folder; see ``lora.peft.load_peft``."""
        from promptlora.lora.peft import load_peft

        return load_peft(path, **options)


def _read_scaling(metadata: Mapping[str, str]) -> float:
    scaling = parse_json(metadata.get("scaling", "null"), "scaling", LoRAError)
    if isinstance(scaling, bool) or not isinstance(scaling, (int, float)):
        raise LoRAError(f"scaling is {str(scaling)[:80]}; expected a finite number, alpha / rank")
    return float(scaling)


def _read_projections(metadata: Mapping[str, str]) -> list[Projection] | None:
    if "projections" not in metadata:
        return None
    return read_projections(parse_json(metadata["projections"], "projections", LoRAError))


def _same_names(loras: Sequence[LoRAWeights], what: str) -> LoRAWeights:
    if not loras:
        raise LoRAError(f"{what}: expected at least one LoRA, got none")
    first = loras[0]
    for lora in loras[1:]:
        odd = sorted(set(lora) ^ set(first))
        if odd:
            raise LoRAError(f"{what}: {odd[0]} is not in all of them; expected the same projections in each")
        if lora.dtype != first.dtype or lora.device != first.device:
            raise LoRAError(f"{what}: {lora.dtype} on {lora.device}; expected {first.dtype} on {first.device}; use .to")
    return first
