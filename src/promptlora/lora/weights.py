"""``LoRAWeights``: the LoRA matrices of one or more adapters, and their algebra.

``LoRAWeights`` is a pure tensor container. For each projection it holds A and B per adapter, or factors that all
adapters share and one small core per adapter; see ``forms``. The update of an adapter is ``x @ A @ B * scaling``, or
``x @ A @ C @ B * scaling`` with shared factors. This file knows nothing of models, hooks or files of other libraries.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from promptlora.errors import LoRAError, PromptLoRAError
from promptlora.lora.forms import Form, Free, Shared, concatenated, summed
from promptlora.lora.origin import AdapterOrigin, ChatFiles
from promptlora.lora.storage import read_forms, read_metadata_projections, read_provenance, read_scaling, write_forms
from promptlora.projections import Projection

if TYPE_CHECKING:
    from promptlora.lora.peft import PeftReport


class LoRAWeights(Mapping[str, tuple[Tensor, Tensor]]):
    """LoRA matrices for a set of projections and a number of adapters.

    ``lora[name]`` is the pair ``(A [adapters, in, rank], B [adapters, rank, out])`` in both storage forms. With shared
    factors, A is a view that repeats the shared A, and B is ``C @ B``. A selection (:meth:`select`) shares the stored
    matrices and keeps only an index from rows to adapters, so many rows can use one adapter without a copy.

    Args:
        matrices: ``name -> (A, B)``, or the :class:`Free` or :class:`Shared` form of a projection. All names must have
            the same number of adapters, dtype and device. The rank may differ between names.
        scaling: The factor of the update (``alpha / rank`` in PEFT).
        index: The stored adapter of each row; by default one row per stored adapter, in order.
        projections: The location of the names in the base model; only exports of fused modules need it.
        base_model: Hub id or path of the base, for exports; None if it is not known.
        provenance: How each stored adapter was made, one mapping of JSON values per adapter.
        chat: Writes the base's tokenizer and chat template into exported folders; :meth:`save` does not store it.

    Raises:
        LoRAError: The matrices are inconsistent; the message names the projection.
    """

    def __init__(
        self,
        matrices: Mapping[str, tuple[Tensor, Tensor] | Form],
        scaling: float,
        *,
        index: Sequence[int] | None = None,
        projections: Sequence[Projection] | None = None,
        base_model: str | None = None,
        provenance: Sequence[Mapping[str, Any]] | None = None,
        chat: ChatFiles | None = None,
    ) -> None:
        if not matrices:
            raise LoRAError("matrices is empty: expected at least one projection name with its A and B")
        self._forms: dict[str, Form] = {
            name: form if isinstance(form, Free | Shared) else Free(*form) for name, form in matrices.items()
        }
        self.scaling = float(scaling)
        if not math.isfinite(self.scaling):
            raise LoRAError(f"scaling is {scaling}; expected a finite number, alpha / rank")
        self.projections = tuple(projections) if projections is not None else None
        self.base_model, self.chat = base_model, chat
        self.stored_adapters = _adapters(self._forms)
        self._provenance = None if provenance is None else tuple(map(dict, provenance))
        if self._provenance is not None and len(self._provenance) != self.stored_adapters:
            raise LoRAError(
                f"provenance: {len(self._provenance)} entries for {self.stored_adapters} adapters. Expected one each."
            )
        self.index = tuple(range(self.stored_adapters)) if index is None else _whole_numbers(index)
        for i in self.index:
            if not 0 <= i < self.stored_adapters:
                raise LoRAError(
                    f"index {i} is out of range: there are {self.stored_adapters} adapters (0 … {self.stored_adapters - 1})"
                )

    @classmethod
    def shared(
        cls,
        factors: Mapping[str, tuple[Tensor, Tensor]],
        cores: Mapping[str, Tensor],
        scaling: float,
        *,
        index: Sequence[int] | None = None,
        projections: Sequence[Projection] | None = None,
    ) -> LoRAWeights:
        """Create adapters with shared factors and one core per adapter: the update is ``A @ C @ B * scaling``.

        Args:
            factors: ``name -> (A [in, rank], B [rank, out])``.
            cores: ``name -> C``, ``[adapters, rank, rank]``, or ``[adapters, rank]`` for diagonal cores.
            scaling: See the class.
            index: See the class.
            projections: See the class.

        Raises:
            LoRAError: ``factors`` and ``cores`` have different names, or the matrices are inconsistent.
        """
        odd = sorted(set(factors) ^ set(cores))
        if odd:
            raise LoRAError(f"{odd[0]}: not in both factors and cores; expected the same projections in each")
        forms = {name: Shared(A, B, cores[name]) for name, (A, B) in factors.items()}
        return cls(forms, scaling, index=index, projections=projections)

    def _origin(self) -> dict[str, Any]:
        """The arguments that a LoRA derived from this one inherits: projections, base model and chat files."""
        return {"projections": self.projections, "base_model": self.base_model, "chat": self.chat}

    __eq__ = object.__eq__  # Mapping compares values, and comparing tensors gives no single bool
    __hash__ = object.__hash__

    # --- mapping -------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        """Return A ``[adapters, in, rank]`` and B ``[adapters, rank, out]`` of the selected adapters."""
        return self.chosen(name).pair()

    def chosen(self, name: str) -> Form:
        """The form of the selected adapters of one projection."""
        if name not in self._forms:
            raise KeyError(f"{name!r} is not a projection of this LoRA ({len(self)} names, first {next(iter(self))!r})")
        return self._forms[name].take(self.index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._forms)

    def __len__(self) -> int:
        """The number of projections; the number of adapters is :attr:`adapters`."""
        return len(self._forms)

    def __repr__(self) -> str:
        kinds = {type(form) for form in self._forms.values()}
        form = "" if kinds == {Free} else "shared factors, " if kinds == {Shared} else "some shared factors, "
        return (
            f"LoRAWeights(adapters={self.adapters}, projections={len(self)}, rank={self.rank}, "
            f"scaling={self.scaling:g}, {form}{str(self.dtype).removeprefix('torch.')}, {self.device})"
        )

    # --- what it holds -------------------------------------------------------------------------------

    @property
    def stored(self) -> Mapping[str, Form]:
        """The stored form of each projection, before :attr:`index` is applied; shared between selections."""
        return self._forms

    @property
    def provenance(self) -> tuple[dict[str, Any], ...]:
        """How each selected adapter was made, as ``PromptLoRA.refine`` records it; an empty dict if it is not known."""
        return tuple({} if self._provenance is None else self._provenance[i] for i in self.index)

    @property
    def origins(self) -> tuple[AdapterOrigin | None, ...]:
        """The prompt and the hypernetwork of each adapter, from :attr:`provenance`; None if no prompt is recorded."""
        return tuple(AdapterOrigin.of(entry) for entry in self.provenance)

    @property
    def is_shared(self) -> bool:
        """Whether every projection has shared factors and one core per adapter."""
        return all(isinstance(form, Shared) for form in self._forms.values())

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
        return max(form.A.shape[-1] for form in self._forms.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of every matrix."""
        return next(iter(self._forms.values())).A.dtype

    @property
    def device(self) -> torch.device:
        """The device of every matrix."""
        return next(iter(self._forms.values())).A.device

    @property
    def nbytes(self) -> int:
        """Bytes of the selected adapters without shared factors; an adapter that is selected twice counts once."""
        return len(set(self.index)) * sum(form.own_nbytes for form in self._forms.values())

    @property
    def shared_nbytes(self) -> int:
        """Bytes of the factors that all adapters share; 0 in the free form."""
        return sum(form.shared_nbytes for form in self._forms.values())

    def free(self) -> LoRAWeights:
        """The selected adapters in the free form, with one A and B per adapter; ``self`` if it is already free."""
        if all(isinstance(form, Free) for form in self._forms.values()):
            return self
        return LoRAWeights(dict(self.items()), self.scaling, provenance=self.provenance, **self._origin())

    def delta(self, name: str) -> Tensor:
        """The dense update ``A @ B * scaling``, ``[adapters, in, out]``, of one projection."""
        A, B = self[name]
        return (A @ B) * self.scaling

    # --- algebra -------------------------------------------------------------------------------------

    def _map(self, change: Callable[[Form], Form], scaling: float) -> LoRAWeights:
        """The same selection with changed forms; an adapter that is selected several times is changed and stored once."""
        forms = {name: change(form) for name, form in self._forms.items()}
        return LoRAWeights(forms, scaling, index=self.index, provenance=self._provenance, **self._origin())

    def select(self, rows: int | Sequence[int]) -> LoRAWeights:
        """Select adapters by row, without copying them.

        Args:
            rows: One row, or a list of rows that may repeat; negative rows count from the end.

        Raises:
            LoRAError: A row does not exist.
        """
        try:
            chosen = [row_number(row) for row in (rows if isinstance(rows, Iterable) else [rows])]
        except TypeError as error:
            raise LoRAError(f"select({rows!r}): expected one row number or a list of them") from error
        for row in chosen:
            if not -self.adapters <= row < self.adapters:
                raise LoRAError(f"select({row}): there are {self.adapters} adapters (0 … {self.adapters - 1})")
        index = [self.index[row] for row in chosen]
        return LoRAWeights(self._forms, self.scaling, index=index, provenance=self._provenance, **self._origin())

    @staticmethod
    def stack(loras: Sequence[LoRAWeights]) -> LoRAWeights:
        """Concatenate the adapters of several LoRAs along the adapter axis.

        Projections whose factors are the same in all of them stay in shared form.

        Raises:
            LoRAError: The LoRAs differ in names, shapes, ranks, dtypes or scalings.
        """
        loras, first = _same_names(loras, "stack")
        for lora in loras:
            if lora.scaling != first.scaling:
                raise LoRAError(f"stack: scaling {lora.scaling:g} differs from {first.scaling:g}; use rescale first")
        matrices = {}
        for name in first:
            forms = [lora.chosen(name) for lora in loras]
            A, B = forms[0].A.shape[-2:], forms[0].B.shape[-2:]
            for form in forms:
                if form.A.shape[-2:] != A or form.B.shape[-2:] != B:
                    raise LoRAError(
                        f"stack: {name} has A {list(form.A.shape[-2:])}, B {list(form.B.shape[-2:])}; expected "
                        f"{list(A)}, {list(B)} as in the first"
                    )
            matrices[name] = concatenated(forms)
        provenance = [entry for lora in loras for entry in lora.provenance]
        return LoRAWeights(matrices, first.scaling, provenance=provenance, **first._origin())

    @staticmethod
    def combine(loras: Sequence[LoRAWeights], weights: Sequence[float] | None = None) -> LoRAWeights:
        """Add updates: row i of the result is the exact weighted sum of row i of each LoRA.

        The matrices are concatenated along the rank, ``[A1 | A2] @ [w1 s1 B1 ; w2 s2 B2]``, so the ranks add up. If all
        LoRAs have the same shared factors, the cores are added and the rank does not change. The scaling of the result
        is 1 if the scalings differ or weights are given.

        Raises:
            LoRAError: The LoRAs differ in names or number of adapters, or the weights are not one finite number each.
        """
        loras, first = _same_names(loras, "combine")
        if weights is not None and len(weights) != len(loras):
            raise LoRAError(f"combine: {len(weights)} weights for {len(loras)} LoRAs; expected one each")
        for weight in weights if weights is not None else ():
            if isinstance(weight, str) or not math.isfinite(weight.detach() if isinstance(weight, Tensor) else weight):
                raise LoRAError(f"combine: weight {weight!r}; expected a finite number")
        for lora in loras:
            if lora.adapters != first.adapters:
                raise LoRAError(f"combine: {lora.adapters} adapters; expected {first.adapters} as in the first")
        plain = weights is None and all(lora.scaling == first.scaling for lora in loras)
        factors = (
            [1.0] * len(loras)
            if plain
            else [lora.scaling * (1.0 if weights is None else weights[i]) for i, lora in enumerate(loras)]
        )
        matrices = {name: summed([lora.chosen(name) for lora in loras], factors) for name in first}
        return LoRAWeights(matrices, first.scaling if plain else 1.0, **first._origin())

    def mean(self) -> LoRAWeights:
        """The exact mean of the updates of all adapters, as one adapter.

        In the free form its rank is ``adapters`` times as large; with shared factors the rank does not change.

        Raises:
            LoRAError: There are no adapters.
        """
        if not self.adapters:
            raise LoRAError("mean: there are no adapters; expected at least one")
        each = [self.select(row) for row in range(self.adapters)]
        return LoRAWeights.combine(each, [1 / self.adapters] * self.adapters)

    def rescale(self, scaling: float) -> LoRAWeights:
        """The same update with another scaling; B, or the cores, are multiplied to compensate.

        Raises:
            LoRAError: The scaling is 0 or not finite, or B cannot compensate within the range of the dtype.
        """
        if scaling == 0 or not math.isfinite(scaling):
            raise LoRAError(f"rescale({scaling}): no B would give the same update; expected a finite scaling, not 0")
        factor = self.scaling / scaling
        limits = torch.finfo(self.dtype)
        if self.scaling and not limits.tiny <= abs(factor) <= limits.max:
            raise LoRAError(
                f"rescale({scaling}): B would be multiplied by {factor:g}, which {self.dtype} cannot hold; expected a "
                f"scaling nearer to {self.scaling:g}"
            )
        return self._map(lambda form: form.times(factor), scaling)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LoRAWeights:
        """The same LoRA in another dtype or on another device; differentiable. Returns ``self`` if nothing changes."""
        dtype, device = dtype or self.dtype, torch.device(device) if device is not None else self.device
        if dtype == self.dtype and device == self.device:
            return self
        return self._map(lambda form: form.map(lambda matrix: matrix.to(device, dtype)), self.scaling)

    def detach(self) -> LoRAWeights:
        """The same matrices, detached from the autograd graph."""
        return self._map(lambda form: form.map(Tensor.detach), self.scaling)

    # --- files ---------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the selected adapters to one safetensors file, atomically.

        Each row of the selection is written, shared factors are written once, and :attr:`projections` are included.
        """
        write_forms(
            Path(path), {name: self.chosen(name) for name in self}, self.scaling, self.projections, self.base_model,
            self.provenance if any(self.provenance) else None,
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> LoRAWeights:
        """Read what :meth:`save` wrote.

        Raises:
            LoRAError: The file is missing, truncated or in another format.
        """
        forms, metadata = read_forms(Path(path))
        try:
            projections = read_metadata_projections(metadata, forms)
            base_model = metadata.get("base_model")
            provenance = read_provenance(metadata, next(iter(forms.values())).adapters)
            return cls(
                forms, read_scaling(metadata), projections=projections, base_model=base_model, provenance=provenance
            )
        except PromptLoRAError as error:
            raise LoRAError(f"{path}: {error}") from error

    def save_peft(self, path: str | Path, **options: Any) -> PeftReport:
        """Write the single selected adapter as a PEFT folder; see ``lora.peft.save_peft``."""
        from promptlora.lora.peft import save_peft

        return save_peft(self, path, **options)

    def peft_state_dict(self, **options: Any) -> dict[str, Tensor]:
        """The single selected adapter as a PEFT state dict in memory; see ``lora.peft.peft_state_dict``."""
        from promptlora.lora.peft import peft_state_dict

        return peft_state_dict(self, **options)

    def peft_config(self, **options: Any) -> dict[str, Any]:
        """The arguments of the ``peft.LoraConfig`` for :meth:`peft_state_dict`; see ``lora.peft.peft_config``."""
        from promptlora.lora.peft import peft_config

        return peft_config(self, **options)

    @classmethod
    def load_peft(cls, path: str | Path, **options: Any) -> LoRAWeights:
        """Read a PEFT folder; see ``lora.peft.load_peft``."""
        from promptlora.lora.peft import load_peft

        return load_peft(path, **options)


def row_number(value: Any) -> int:
    """A row number; a mask of booleans is refused, because its values would be read as the rows 0 and 1.

    Raises:
        TypeError: The value is not a whole number.
    """
    if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
        raise TypeError("a boolean is no row number")
    return operator.index(value)


def _whole_numbers(index: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(map(row_number, index))
    except TypeError as error:
        raise LoRAError(f"index {list(index)[:8]!r}; expected whole numbers") from error


def _adapters(forms: Mapping[str, Form]) -> int:
    """The number of adapters, after checking that all forms are consistent.

    Raises:
        LoRAError: The forms are inconsistent; the message names the projection.
    """
    start, first = next(iter(forms.items()))
    for name, form in forms.items():
        problem = form.problem()
        if problem is not None:
            raise LoRAError(f"{name}: {problem}")
        counts = [len(tensor) for tensor in ((form.C,) if isinstance(form, Shared) else form)]
        if any(count != first.adapters for count in counts):
            found = " and ".join(f"{n} adapters in {x}" if not i else f"{n} in {x}" for i, (n, x) in
                                 enumerate(zip(counts, "C" if isinstance(form, Shared) else "AB", strict=True)))  # fmt: skip
            raise LoRAError(f"{name}: {found}; expected {first.adapters} as in {start}")
        for matrix in form:
            if matrix.dtype != first.A.dtype or matrix.device != first.A.device:
                raise LoRAError(
                    f"{name}: {matrix.dtype} on {matrix.device}; expected {first.A.dtype} on {first.A.device} "
                    "as in the first matrix; use .to(dtype, device)"
                )
    if not first.A.is_floating_point():
        raise LoRAError(f"{start}: A is {first.A.dtype}; expected a floating point dtype")
    return first.adapters


def _same_names(given: Iterable[LoRAWeights], what: str) -> tuple[list[LoRAWeights], LoRAWeights]:
    """The LoRAs as a list, and the first one, after checking that all have the same names, dtype and device."""
    loras = [] if isinstance(given, LoRAWeights) else list(given)
    if not all(isinstance(lora, LoRAWeights) for lora in loras) or isinstance(given, LoRAWeights):
        raise LoRAError(f"{what}: a {type(given).__name__}; expected a list of LoRAWeights")
    if not loras:
        raise LoRAError(f"{what}: expected at least one LoRA, got none")
    first = loras[0]
    for lora in loras[1:]:
        odd = sorted(set(lora) ^ set(first))
        if odd:
            raise LoRAError(f"{what}: {odd[0]} is not in all of them; expected the same projections in each")
        if lora.dtype != first.dtype or lora.device != first.device:
            raise LoRAError(f"{what}: {lora.dtype} on {lora.device}; expected {first.dtype} on {first.device}; use .to")
    return loras, first
