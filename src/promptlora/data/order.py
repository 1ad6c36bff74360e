"""Which rows are in the batch of a step: ordered by rows, in epochs, or ordered by tasks.

Both orders are pure functions of seed and step. They know tasks, lengths and row indices; they know nothing of tokens.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from promptlora.errors import DataError


@dataclass(frozen=True)
class Group:
    """Rows of one task that share one prompt in a batch.

    ``round`` and ``number`` identify the group in a run, to seed its random choices. ``length`` is the length of the
    longest row in tokens, including the prompt if it is in the context.
    """

    task: str
    examples: tuple[int, ...]
    length: int
    round: int
    number: int


@runtime_checkable
class Order(Protocol):
    """Decides which groups are in the batch of each step."""

    def groups(self, step: int) -> list[Group]:
        """The groups of a step, counted from 0."""


class RowOrder:
    """Epochs: each row appears in one group, together with rows of the same task and of similar length.

    The last group of a task is filled up with other rows of the task. A batch combines groups of similar length and
    different tasks. Groups that are left over when no further batch can be filled (the longest ones) skip that epoch.

    Args:
        by_task: Maps each task to the indices of its rows.
        lengths: Number of tokens of each row.
        prompts_per_batch: Groups per batch.
        rows_per_prompt: Rows per group.
        seed: Seed of all random choices.
        added: Tokens that are added to a group's rows, as a function of its task, epoch, number and first row.

    Raises:
        DataError: There are too few rows for one batch.
    """

    def __init__(
        self,
        by_task: Mapping[str, Sequence[int]],
        lengths: Sequence[int],
        *,
        prompts_per_batch: int,
        rows_per_prompt: int,
        seed: int,
        added: Callable[[str, int, int, int], int] | None = None,
    ) -> None:
        self.by_task, self.lengths, self.seed, self.added = by_task, lengths, seed, added
        self.prompts_per_batch, self.rows_per_prompt = prompts_per_batch, rows_per_prompt
        self._epoch: tuple[int, list[list[Group]]] = (-1, [])
        groups = sum(-(-len(members) // rows_per_prompt) for members in by_task.values())
        self.per_epoch = groups // prompts_per_batch  # the same in every epoch
        if not self.per_epoch:
            raise DataError(
                f"{len(lengths)} rows of {len(by_task)} tasks make no batch of {prompts_per_batch} prompts x "
                f"{rows_per_prompt} rows; lower prompts_per_batch or rows_per_prompt, or add rows"
            )

    def _groups(self, epoch: int, rng: random.Random) -> list[Group]:
        groups: list[Group] = []
        size, window = self.rows_per_prompt, self.rows_per_prompt * 8
        for task, members in self.by_task.items():
            order = list(members)
            rng.shuffle(order)
            for start in range(0, len(order), window):
                near = sorted(order[start : start + window], key=lambda i: self.lengths[i])
                for at in range(0, len(near), size):
                    chosen = near[at : at + size]
                    chosen += [order[rng.randrange(len(order))] for _ in range(size - len(chosen))]
                    length = max(self.lengths[i] for i in chosen)
                    if self.added is not None:
                        length += self.added(task, epoch, len(groups), chosen[0])
                    groups.append(Group(task, tuple(chosen), length, epoch, len(groups)))
        return groups

    def epoch(self, number: int) -> list[list[Group]]:
        """The batches of one epoch, as groups."""
        if self._epoch[0] == number:
            return self._epoch[1]
        rng = random.Random(f"{self.seed}/{number}")
        waiting = self._groups(number, rng)
        waiting.sort(key=lambda g: g.length + rng.uniform(-4, 4))
        batches = []
        while len(waiting) >= self.prompts_per_batch:
            batch: list[Group] = []
            tasks: set[str] = set()
            for at, group in enumerate(waiting[: 16 * self.prompts_per_batch]):
                if group.task not in tasks:
                    batch.append(group)
                    tasks.add(group.task)
                    waiting[at] = None  # type: ignore[call-overload]
                if len(batch) == self.prompts_per_batch:
                    break
            waiting = [group for group in waiting if group is not None]
            while len(batch) < self.prompts_per_batch:  # too few tasks of similar length: one task appears twice
                batch.append(waiting.pop(0))
            batches.append(batch)
        rng.shuffle(batches)
        assert len(batches) == self.per_epoch
        self._epoch = (number, batches)
        return batches

    def groups(self, step: int) -> list[Group]:
        """The groups of a step, counted from 0 over all epochs."""
        number, at = divmod(step, self.per_epoch)
        return self.epoch(number)[at]


class TaskOrder:
    """Rounds: each task of a source has one group in every round, however many rows it has.

    Each source has a fixed number of groups in every batch. Tasks of one pool are put together in clusters and use the
    rows at the same places, which have the same inputs unless one of the tasks lacks some inputs of the pool.

    Args:
        by_task: Maps each task to the indices of its rows.
        lengths: Number of tokens of each row.
        sources: The tasks of each source.
        weights: Relative number of groups per batch from each source; empty: proportional to its number of tasks.
        pools: Maps each task to its pool, if it has one.
        cluster: Number of tasks of a pool that are put together.
        prompts_per_batch: Groups per batch.
        rows_per_prompt: Rows per group.
        seed: Seed of all random choices.

    Raises:
        DataError: No task has a row, or there are more sources than groups in a batch.
    """

    def __init__(
        self,
        by_task: Mapping[str, Sequence[int]],
        lengths: Sequence[int],
        *,
        sources: Sequence[Sequence[str]],
        weights: Sequence[float] = (),
        pools: Mapping[str, str] | None = None,
        cluster: int = 1,
        prompts_per_batch: int,
        rows_per_prompt: int,
        seed: int,
    ) -> None:
        self.by_task, self.lengths, self.seed = by_task, lengths, seed
        self.rows_per_prompt, self.cluster, self.pools = rows_per_prompt, cluster, pools or {}
        there = [[task for task in tasks if by_task.get(task)] for tasks in sources]
        given = weights or [len(tasks) for tasks in there]
        kept = [(tasks, weight) for tasks, weight in zip(there, given, strict=True) if tasks]
        if not kept:
            raise DataError("no task has a row to train on; expected at least one; raise max_input_tokens, or add rows")
        self.sources = [tasks for tasks, _ in kept]
        self.places = shared_places(prompts_per_batch, [weight for _, weight in kept])
        if not all(self.places):  # a source without a place would never be trained on
            raise DataError(
                f"prompts_per_batch={prompts_per_batch}: fewer than the {len(kept)} sources of data.train. Expected at least "
                "one prompt from each in every batch. Fix: raise it, or put sources together."
            )
        self._rounds: dict[tuple[int, int], list[str]] = {}

    def _round(self, source: int, number: int) -> list[str]:
        """The order of a source's tasks in a round."""
        if (source, number) not in self._rounds:
            for key in [key for key in self._rounds if key[0] == source and key[1] < number - 1]:
                del self._rounds[key]
            rng = random.Random(f"{self.seed}/tasks/{source}/{number}")
            alone = [[task] for task in self.sources[source] if self.cluster == 1 or not self.pools.get(task)]
            pooled: dict[str, list[str]] = defaultdict(list)
            for task in self.sources[source]:
                if self.cluster > 1 and self.pools.get(task):
                    pooled[self.pools[task]].append(task)
            clusters = alone
            for pool in sorted(pooled):
                members = pooled[pool]
                rng.shuffle(members)
                clusters += [members[at : at + self.cluster] for at in range(0, len(members), self.cluster)]
            rng.shuffle(clusters)
            self._rounds[source, number] = [task for members in clusters for task in members]
        return self._rounds[source, number]

    def _rows(self, task: str, visit: int) -> tuple[int, ...]:
        """The rows of a task's ``visit``-th group; every row is used once before any row is used again."""
        members, chosen = self.by_task[task], []
        orders: dict[int, list[int]] = {}
        for place in range(visit * self.rows_per_prompt, (visit + 1) * self.rows_per_prompt):
            lap, at = divmod(place, len(members))
            if lap not in orders:
                orders[lap] = list(range(len(members)))
                random.Random(f"{self.seed}/rows/{self.pools.get(task) or task}/{lap}").shuffle(orders[lap])
            chosen.append(members[orders[lap][at]])
        return tuple(chosen)

    def groups(self, step: int) -> list[Group]:
        """The groups of a step, counted from 0; groups of similar length are adjacent."""
        groups: list[Group] = []
        for source, places in enumerate(self.places):
            for place in range(step * places, (step + 1) * places):
                number, at = divmod(place, len(self.sources[source]))
                task = self._round(source, number)[at]
                rows = self._rows(task, number)
                length = max(self.lengths[i] for i in rows)
                groups.append(Group(task, rows, length, step, len(groups)))
        return groups


def shared_places(places: int, weights: Sequence[float]) -> list[int]:
    """Split ``places`` in proportion to the weights by largest remainders; each gets at least one if possible."""
    total = sum(weights)
    exact = [places * weight / total for weight in weights]
    split = [int(one) for one in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: split[i] - exact[i])
    for i in by_remainder[: places - sum(split)]:
        split[i] += 1
    for i, one in enumerate(split):
        if one == 0 and max(split) > 1:
            split[split.index(max(split))] -= 1
            split[i] = 1
    return split
