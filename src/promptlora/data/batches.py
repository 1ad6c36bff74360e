"""The order of a training run: which rows stand together in the batch of each step.

A pure function of seed and step. It knows examples; nothing of files, of LoRA or of the hypernetwork.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptlora.data.tokens import Example
from promptlora.errors import DataError
from promptlora.losses import IGNORED


@dataclass(frozen=True)
class Group:
    """Rows of one task that stand together in a batch and share one prompt.

    ``number`` is its own in the epoch; ``length`` is that of the longest row, with the prompt where it is in the context.
    """

    task: str
    examples: tuple[int, ...]
    length: int
    number: int


@dataclass(frozen=True)
class Batch:
    """What a training step eats.

    ``input_ids`` and ``labels`` are ``[prompts * rows, seq]``, rows of a prompt beside each other, padded on
    the right (causal attention needs no mask then); ``labels`` is -100 off the answer. ``tokens`` counts the real
    ones; ``tasks`` has the task of each prompt and ``examples`` the number of each row's example.
    """

    prompts: list[str]
    input_ids: Tensor
    labels: Tensor
    tokens: int
    tasks: tuple[str, ...] = ()
    examples: tuple[int, ...] = ()

    @property
    def answer_tokens(self) -> int:
        """How many tokens the loss sees."""
        return int((self.labels != IGNORED).sum())


class Batches:
    """The order of a run: a pure function of seed and step, so that a resumed run sees the same batches.

    In an epoch each row stands in one group of rows of one task and near its own length (the last group of a
    task is filled up with some of its rows); groups of near length and different tasks make a batch. The groups
    that are left when no batch can be filled, the longest ones, sit that epoch out.

    Args:
        examples: Tokenized rows.
        prompts: Task to its prompts: the first is its own, the others are paraphrases.
        prompts_per_batch: Groups in a batch.
        rows_per_prompt: Rows in a group.
        pad: The padding id.
        paraphrase_share: How often a paraphrase takes the place of the task's own prompt.
        in_context: Gives the token ids of an input with a prompt in its context; needed for a share above 0.
        in_context_share: How often the rows of a prompt are shown with it in their context.
        seed: Seed of everything.

    Raises:
        DataError: Too few rows for one batch.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        prompts: Mapping[str, Sequence[str]],
        *,
        prompts_per_batch: int,
        rows_per_prompt: int,
        pad: int,
        paraphrase_share: float = 0.0,
        in_context: Callable[[str, str], list[int]] | None = None,
        in_context_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.examples, self.prompts = examples, prompts
        self.in_context, self.in_context_share = in_context, in_context_share
        self.prompts_per_batch, self.rows_per_prompt = prompts_per_batch, rows_per_prompt
        self.pad, self.paraphrase_share, self.seed = pad, paraphrase_share, seed
        self._by_task: dict[str, list[int]] = defaultdict(list)
        for i, example in enumerate(examples):
            self._by_task[example.task].append(i)
        self._epoch: tuple[int, list[list[Group]]] = (-1, [])
        self._added: dict[str, int] = {}  # tokens that a prompt adds to an input
        groups = sum(-(-len(members) // rows_per_prompt) for members in self._by_task.values())
        self.per_epoch = groups // prompts_per_batch  # the same in every epoch
        if not self.per_epoch:
            raise DataError(
                f"{len(examples)} rows of {len(self._by_task)} tasks make no batch of {prompts_per_batch} prompts x "
                f"{rows_per_prompt} rows; lower prompts_per_batch or rows_per_prompt, or add rows"
            )

    def _drawn(self, epoch: int, task: str, number: int) -> tuple[random.Random, str, bool]:
        """What is drawn for a group: its prompt, and whether that is in the context; and the generator to draw on with."""
        rng = random.Random(f"{self.seed}/{epoch}/{number}")
        own, *others = self.prompts[task]
        prompt = rng.choice(others) if others and rng.random() < self.paraphrase_share else own
        return rng, prompt, random.Random(f"{self.seed}/{epoch}/{number}/context").random() < self.in_context_share

    def _read(self, example: Example, prompt: str, shown: bool) -> list[int]:
        """Token ids before the answer."""
        if not shown:
            return example.input_ids
        assert self.in_context is not None
        return self.in_context(example.text, prompt)

    def _groups(self, epoch: int, rng: random.Random) -> list[Group]:
        groups: list[Group] = []
        size, window = self.rows_per_prompt, self.rows_per_prompt * 8
        for task, members in self._by_task.items():
            order = members.copy()
            rng.shuffle(order)
            for start in range(0, len(order), window):
                near = sorted(order[start : start + window], key=lambda i: self.examples[i].length)
                for at in range(0, len(near), size):
                    chosen = near[at : at + size]
                    chosen += [order[rng.randrange(len(order))] for _ in range(size - len(chosen))]
                    length = max(self.examples[i].length for i in chosen)
                    shown = False
                    if self.in_context_share:
                        _, prompt, shown = self._drawn(epoch, task, len(groups))
                    if shown:  # about as many tokens whatever the input is
                        if prompt not in self._added:
                            example = self.examples[chosen[0]]
                            self._added[prompt] = len(self._read(example, prompt, shown)) - len(example.input_ids)
                        length += self._added[prompt]
                    groups.append(Group(task, tuple(chosen), length, len(groups)))
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
            while len(batch) < self.prompts_per_batch:  # too few tasks near: one stands twice
                batch.append(waiting.pop(0))
            batches.append(batch)
        rng.shuffle(batches)
        assert len(batches) == self.per_epoch
        self._epoch = (number, batches)
        return batches

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        return self.part(step, 0, 1)

    def part(self, step: int, part: int, parts: int, *, first_answer: bool = False) -> Batch:
        """One of ``parts`` parts of the batch of a step, each of as many prompts.

        Args:
            step: Counted from 0 over all epochs.
            part: Which part, counted from 0.
            parts: How many; ``prompts_per_batch`` must be a multiple.
            first_answer: Take the first of a row's answers; else one is drawn.
        """
        number, at = divmod(step, self.per_epoch)
        groups = self.epoch(number)[at]
        size = len(groups) // parts
        return self._collate(groups[part * size : (part + 1) * size], number, first_answer)

    def _collate(self, groups: Sequence[Group], epoch: int, first_answer: bool) -> Batch:
        prompts, rows = [], []
        for group in groups:
            rng, prompt, shown = self._drawn(epoch, group.task, group.number)
            prompts.append(prompt)
            for i in group.examples:
                example = self.examples[i]
                answer = example.answers[0] if first_answer else rng.choice(example.answers)
                rows.append((self._read(example, prompt, shown), answer))
        return make_batch(
            prompts,
            rows,
            self.pad,
            tasks=tuple(group.task for group in groups),
            examples=tuple(i for group in groups for i in group.examples),
        )


def make_batch(
    prompts: list[str],
    rows: Sequence[tuple[list[int], list[int]]],
    pad: int,
    *,
    tasks: tuple[str, ...] = (),
    examples: tuple[int, ...] = (),
) -> Batch:
    """A batch of rows, each the token ids of what is read and of the answer."""
    longest = max(len(ids) + len(answer) for ids, answer in rows)
    input_ids = torch.full((len(rows), longest), pad)
    labels = torch.full((len(rows), longest), IGNORED)
    for i, (ids, answer) in enumerate(rows):
        end = len(ids) + len(answer)
        input_ids[i, :end] = torch.tensor(ids + answer)
        labels[i, len(ids) : end] = torch.tensor(answer)
    tokens = sum(len(ids) + len(answer) for ids, answer in rows)
    return Batch(prompts, input_ids, labels, tokens, tasks, examples)
