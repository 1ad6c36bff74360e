"""The two storage forms of one projection's LoRA: free (A and B per adapter) and shared factors (one core per adapter).

A form knows its tensors and how to select, change, add and concatenate them. It knows nothing of names, scaling or
files; ``LoRAWeights`` holds one form per projection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


class Free(NamedTuple):
    """A ``[adapters, in, rank]`` and B ``[adapters, rank, out]``: every adapter has its own A and B."""

    A: Tensor
    B: Tensor

    @property
    def adapters(self) -> int:
        """The number of adapters."""
        return self.A.shape[0]

    @property
    def own_nbytes(self) -> int:
        """Bytes of one adapter."""
        return (self.A[0].nbytes + self.B[0].nbytes) if self.adapters else 0

    @property
    def shared_nbytes(self) -> int:
        """Bytes that all adapters share: none in this form."""
        return 0

    def pair(self) -> tuple[Tensor, Tensor]:
        """A and B."""
        return self.A, self.B

    def take(self, index: tuple[int, ...]) -> Free:
        """The adapters of an index; views if the index is contiguous."""
        return Free(take_rows(self.A, index), take_rows(self.B, index))

    def map(self, change: Change) -> Free:
        """The same form, with every tensor changed by a function."""
        return Free(change(self.A), change(self.B))

    def times(self, factor: float) -> Free:
        """The update multiplied by a number."""
        return Free(self.A, self.B * factor)

    def problem(self) -> str | None:
        """A description of the first inconsistency between the tensors; None if they are consistent."""
        A, B = self
        if A.ndim != 3 or B.ndim != 3:
            return (
                f"A {list(A.shape)} and B {list(B.shape)}; expected A [adapters, in, rank] and B [adapters, rank, out]"
            )
        return f"rank {A.shape[2]} of A differs from rank {B.shape[1]} of B" if A.shape[2] != B.shape[1] else None


class Shared(NamedTuple):
    """A ``[in, rank]`` and B ``[rank, out]``, shared by all adapters, and one core per adapter.

    The update is ``A @ C @ B``. The cores C have shape ``[adapters, rank, rank]``; if they are diagonal, C may instead
    hold only the diagonals ``[adapters, rank]``.
    """

    A: Tensor
    B: Tensor
    C: Tensor

    @property
    def adapters(self) -> int:
        """The number of adapters."""
        return self.C.shape[0]

    @property
    def diagonal(self) -> bool:
        """Whether C holds only diagonals."""
        return self.C.ndim == 2

    @property
    def own_nbytes(self) -> int:
        """Bytes of one adapter: its core."""
        return self.C[0].nbytes if self.adapters else 0

    @property
    def shared_nbytes(self) -> int:
        """Bytes that all adapters share: the factors."""
        return self.A.nbytes + self.B.nbytes

    def pair(self) -> tuple[Tensor, Tensor]:
        """A ``[adapters, in, rank]``, a view that repeats the shared A, and ``C @ B`` ``[adapters, rank, out]``."""
        B = self.C[..., None] * self.B if self.diagonal else self.C @ self.B
        return self.A.expand(self.adapters, -1, -1), B

    def take(self, index: tuple[int, ...]) -> Shared:
        """The adapters of an index; the factors stay the same."""
        return Shared(self.A, self.B, take_rows(self.C, index))

    def map(self, change: Change) -> Shared:
        """The same form, with every tensor changed by a function."""
        return Shared(change(self.A), change(self.B), change(self.C))

    def times(self, factor: float) -> Shared:
        """The update multiplied by a number; the factor goes into the cores."""
        return Shared(self.A, self.B, self.C * factor)

    def full(self) -> Tensor:
        """The cores ``[adapters, rank, rank]``, with diagonal cores expanded to matrices."""
        return torch.diag_embed(self.C) if self.diagonal else self.C

    def problem(self) -> str | None:
        """A description of the first inconsistency between the tensors; None if they are consistent."""
        A, B, C = self
        if A.ndim != 2 or B.ndim != 2 or C.ndim not in (2, 3):
            return (
                f"A {list(A.shape)}, B {list(B.shape)} and C {list(C.shape)}; expected shared factors A [in, rank] and "
                "B [rank, out], and C [adapters, rank, rank] or, of diagonal cores, [adapters, rank]"
            )
        ranks = {A.shape[1], B.shape[0], *C.shape[1:]}
        return (
            f"ranks of A {list(A.shape)}, B {list(B.shape)} and C {list(C.shape)} differ; expected one rank"
            if len(ranks) > 1
            else None
        )


Form = Free | Shared


def take_rows(tensor: Tensor, index: tuple[int, ...], at: Tensor | None = None) -> Tensor:
    """Rows of a tensor: the tensor itself or a view if the rows are contiguous, otherwise a copy.

    Args:
        tensor: Any tensor.
        index: Its rows.
        at: The same rows as a tensor on the device of ``tensor``. Callers that take the same rows from many tensors
            pass it, because creating it for every tensor would make an accelerator wait.
    """
    low, high = min(index, default=0), max(index, default=-1)
    if index == tuple(range(low, high + 1)):
        return tensor if high + 1 - low == len(tensor) else tensor[low : high + 1]
    return tensor.index_select(0, torch.tensor(index, device=tensor.device) if at is None else at)


def concatenated(forms: Sequence[Form]) -> Form:
    """The adapters of several forms, concatenated; in shared form if all have the same factors."""
    shared = _with_the_same_factors(forms)
    if shared is not None:
        return Shared(shared[0].A, shared[0].B, torch.cat(_cores(shared)))
    pairs = [form.pair() for form in forms]
    return Free(torch.cat([A for A, _ in pairs]), torch.cat([B for _, B in pairs]))


def summed(forms: Sequence[Form], factors: Sequence[float]) -> Form:
    """The exact weighted sum of updates, adapter by adapter.

    If all forms have the same factors, the cores are summed with these weights. Otherwise A and B are concatenated
    along the rank: ``[A1 | A2] @ [w1 B1 ; w2 B2]``.
    """
    shared = _with_the_same_factors(forms)
    if shared is not None:
        cores = [C if w == 1 else C * w for C, w in zip(_cores(shared), factors, strict=True)]
        return Shared(shared[0].A, shared[0].B, torch.stack(cores).sum(0) if len(cores) > 1 else cores[0])
    pairs = [form.pair() for form in forms]
    return Free(
        torch.cat([A for A, _ in pairs], dim=2),
        torch.cat([B * w for (_, B), w in zip(pairs, factors, strict=True)], dim=1),
    )


def _cores(forms: Sequence[Shared]) -> list[Tensor]:
    """The cores of several forms; diagonals only if all of them are diagonal."""
    return [form.C for form in forms] if len({form.diagonal for form in forms}) == 1 else [f.full() for f in forms]


def _with_the_same_factors(forms: Sequence[Form]) -> list[Shared] | None:
    """The forms, if all are shared and have the same factors."""
    shared = [form for form in forms if isinstance(form, Shared)]
    same = len(shared) == len(forms) and all(
        _same(form.A, shared[0].A) and _same(form.B, shared[0].B) for form in shared
    )
    return shared if same else None


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether one tensor can replace the other: they are the same object, or equal and neither needs a gradient."""
    if a is b:
        return True
    if a.shape != b.shape or a.requires_grad != b.requires_grad or a.is_meta or b.is_meta:
        return False
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return True
    return not a.requires_grad and torch.equal(a, b)
