"""Provides the batch of each step, prepared by the training process or ahead of time by worker processes."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import DataLoader, Dataset

from promptlora.data import Batch
from promptlora.train.objectives import Objective


class _Parts(Dataset[list[Batch]]):
    """The batches of a range of steps. Each depends only on its step, so workers may compute them in any order."""

    def __init__(self, objective: Objective, steps: range, parts: int) -> None:
        self.objective, self.steps, self.parts = objective, steps, parts

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, at: int) -> list[Batch]:
        return self.objective.parts(self.steps[at], self.parts)


class PartsLoader:
    """Provides the batch of a step in parts.

    Args:
        objective: Makes the parts.
        steps: Number of steps of the run.
        parts: Number of parts of each batch.
        workers: Number of worker processes; 0 prepares each batch when it is requested.
    """

    def __init__(self, objective: Objective, steps: int, parts: int, workers: int) -> None:
        self.objective, self.steps, self.parts, self.workers = objective, steps, parts, workers
        self._iterator: Iterator[list[Batch]] | None = None
        self._next = -1  # the step whose batch the iterator returns next

    def load(self, step: int) -> list[Batch]:
        """The parts of the batch of a step, counted from 0. Workers are restarted if a step is out of sequence."""
        if not self.workers:
            return self.objective.parts(step, self.parts)
        if self._iterator is None or self._next != step:
            data = _Parts(self.objective, range(step, self.steps), self.parts)
            loader = DataLoader(data, batch_size=None, num_workers=self.workers, prefetch_factor=4)
            self._iterator, self._next = iter(loader), step
        self._next += 1
        return next(self._iterator)

    def close(self) -> None:
        """Stop the workers."""
        self._iterator = None
