"""The batches of a training run: the random choices for each group of rows, and the conversion into tensors.

A batch is a pure function of seed and step. This module knows examples and orders; it knows nothing of files, of LoRA
or of the hypernetwork.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from promptlora.data.order import Group, Order, RowOrder
from promptlora.data.tokens import Example
from promptlora.losses import IGNORED
from promptlora.text import pad_rows, with_examples

_MOST_EXAMPLES = 4
_FRAME = 32  # tokens of "Input:" and "Output:" around the examples, beyond the chat tokens in their lengths


@runtime_checkable
class Render(Protocol):
    """Renders inputs, up to their answers, as token ids."""

    def __call__(
        self, texts: Sequence[str], prompts: Sequence[str | None], system_turn: str = "empty"
    ) -> list[list[int]]:
        """Token ids of each text, with its prompt in the context if it has one."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How rows are presented in training. Each share is the probability per group, from 0 to 1.

    Attributes:
        paraphrase_share: A paraphrase replaces the task's own prompt.
        in_context_share: The prompt is also in the rows' context.
        longest_in_context: A prompt with more tokens than this is never put in the context.
        examples_share: The hypernetwork's prompt includes examples of the task; never if the prompt is in the context.
        examples_tokens: Maximum number of tokens of these examples together.
        longest_prompt: Maximum number of tokens of a prompt with its examples.
        default_system_share: The chat template's own system turn precedes the input.
        no_system_share: There is no system turn.
        pairs: Whether each group also gets a second wording of its task.
    """

    paraphrase_share: float = 0.0
    in_context_share: float = 0.0
    longest_in_context: int = 512
    examples_share: float = 0.0
    examples_tokens: int = 192
    longest_prompt: int = 512
    default_system_share: float = 0.0
    no_system_share: float = 0.0
    pairs: bool = False


@dataclass(frozen=True)
class Batch:
    """The data of one training step.

    ``prompts`` holds the hypernetwork's input for each group, and ``wordings`` the same without examples.
    ``in_context`` says whether the prompt is also in the rows' context. ``pairs`` holds another wording of each task
    (empty if none was requested). ``input_ids`` and ``labels`` are ``[prompts * rows, seq]``; the rows of a prompt are
    consecutive and padded on the right (with causal attention this needs no mask). ``labels`` is -100 outside the
    answer. ``tokens`` is the number of tokens without padding, ``tasks`` holds the task of each prompt, and
    ``examples`` the example index of each row.
    """

    prompts: list[str]
    input_ids: Tensor
    labels: Tensor
    tokens: int
    tasks: tuple[str, ...] = ()
    examples: tuple[int, ...] = ()
    wordings: tuple[str, ...] = ()
    in_context: tuple[bool, ...] = ()
    pairs: tuple[str, ...] = ()

    @property
    def answer_tokens(self) -> int:
        """Number of tokens that the loss uses."""
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True)
class _Drawn:
    """The random choices for a group, and the generator that draws its answers."""

    rng: random.Random
    wording: str
    in_context: bool
    system_turn: str = "empty"
    examples: tuple[int, ...] = ()


class Batches:
    """The batches of a run. A resumed run sees the same batches.

    Args:
        examples: Tokenized rows.
        prompts: Maps each task to its prompts: its own prompt first, then the paraphrases.
        prompts_per_batch: Groups per batch.
        rows_per_prompt: Rows per group.
        pad: The padding id.
        shown: How rows are presented.
        render: Renders inputs as token ids; required if inputs are not used exactly as the examples hold them.
        order: Decides which rows make up each batch, such as a :class:`TaskOrder`; by default a :class:`RowOrder`.
        prompt_tokens: Number of tokens of each prompt, which limits the room for examples; an unknown prompt counts as
            0.
        seed: Seed of all random choices.

    Raises:
        DataError: There are too few rows for one batch.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        prompts: Mapping[str, Sequence[str]],
        *,
        prompts_per_batch: int,
        rows_per_prompt: int,
        pad: int,
        shown: Shown | None = None,
        render: Render | None = None,
        order: Order | None = None,
        prompt_tokens: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        self.examples, self.prompts = examples, prompts
        self.shown, self.render = shown or Shown(), render
        self.prompts_per_batch, self.rows_per_prompt = prompts_per_batch, rows_per_prompt
        self.pad, self.seed = pad, seed
        self.prompt_tokens = prompt_tokens or {}
        self.by_task = rows_by_task(examples)
        self._added: dict[str, int] = {}  # number of tokens that each prompt adds to an input
        self.order: Order = order or RowOrder(
            self.by_task,
            [example.length for example in examples],
            prompts_per_batch=prompts_per_batch,
            rows_per_prompt=rows_per_prompt,
            seed=seed,
            added=self._tokens_of_context if self.shown.in_context_share else None,
        )

    # --- random choices ----------------------------------------------------------------------------------

    def _wording(self, task: str, round_: int, number: int) -> tuple[random.Random, str]:
        rng = random.Random(f"{self.seed}/{round_}/{number}")
        own, *others = self.prompts[task]
        prompt = rng.choice(others) if others and rng.random() < self.shown.paraphrase_share else own
        return rng, prompt

    def _is_in_context(self, wording: str, round_: int, number: int) -> bool:
        if self.prompt_tokens.get(wording, 0) > self.shown.longest_in_context:
            return False
        return random.Random(f"{self.seed}/{round_}/{number}/context").random() < self.shown.in_context_share

    def _draw(self, group: Group) -> _Drawn:
        rng, wording = self._wording(group.task, group.round, group.number)
        in_context = self._is_in_context(wording, group.round, group.number)
        shown, chance = self.shown, random.Random(f"{self.seed}/{group.round}/{group.number}/shown")
        turn = chance.random()
        system = "default" if turn < shown.default_system_share else "empty"
        if shown.default_system_share <= turn < shown.default_system_share + shown.no_system_share:
            system = "none"
        examples: tuple[int, ...] = ()
        if chance.random() < shown.examples_share and not in_context:
            room = shown.longest_prompt - self.prompt_tokens.get(wording, 0) - _FRAME
            examples = self._examples(group, chance, min(shown.examples_tokens, room))
        return _Drawn(rng, wording, in_context, system, examples)

    def _examples(self, group: Group, chance: random.Random, left: int) -> tuple[int, ...]:
        """Up to four other rows of the task, with other inputs, that fit together into the token limit."""
        inputs = {self.examples[i].text for i in group.examples}
        members = self.by_task[group.task]
        chosen: list[int] = []
        wanted = chance.randint(2, _MOST_EXAMPLES)
        for i in chance.sample(members, min(len(members), 4 * _MOST_EXAMPLES)):
            example = self.examples[i]
            if example.text not in inputs and example.length <= left:
                chosen.append(i)
                inputs.add(example.text)
                left -= example.length
            if len(chosen) == wanted:
                break
        return tuple(chosen)

    def _tokens_of_context(self, task: str, epoch: int, number: int, row: int) -> int:
        """Tokens that the prompt adds to each row of a group; the number is nearly the same for every input."""
        _, prompt = self._wording(task, epoch, number)
        if not self._is_in_context(prompt, epoch, number):
            return 0
        if prompt not in self._added:
            assert self.render is not None
            example = self.examples[row]
            (read,) = self.render([example.text], [prompt])
            self._added[prompt] = len(read) - len(example.input_ids)
        return self._added[prompt]

    # --- tensors -----------------------------------------------------------------------------------------

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        return self.parts(step, 1)[0]

    def part(self, step: int, part: int, parts: int, *, first_answer: bool = False) -> Batch:
        """One of the :meth:`parts` of a step."""
        return self.parts(step, parts, first_answer=first_answer)[part]

    def parts(self, step: int, parts: int, *, first_answer: bool = False) -> list[Batch]:
        """Split the batch of a step into ``parts`` parts with equally many prompts, grouped by row length.

        Args:
            step: Counted from 0.
            parts: Number of parts; ``prompts_per_batch`` must be a multiple of it.
            first_answer: Use the first answer of each row; otherwise one is drawn at random.
        """
        groups = self.order.groups(step)
        drawn = [self._draw(group) for group in groups]
        read = self._read(groups, drawn)
        if not isinstance(self.order, RowOrder):  # a RowOrder already groups similar lengths
            longest = [max(map(len, rows)) for rows in read]
            order = sorted(range(len(groups)), key=longest.__getitem__)
            groups, drawn, read = ([each[i] for i in order] for each in (groups, drawn, read))  # type: ignore[assignment]
        size = len(groups) // parts
        return [
            self._collate(groups[at : at + size], drawn[at : at + size], read[at : at + size], first_answer)
            for at in range(0, size * parts, size)
        ]

    def _read(self, groups: Sequence[Group], drawn: Sequence[_Drawn]) -> list[list[list[int]]]:
        """Token ids before the answer, per row and group; rows that need rendering are rendered in one call."""
        read: list[list[list[int]]] = [[self.examples[i].input_ids for i in group.examples] for group in groups]
        by_turn: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for g, one in enumerate(drawn):
            if one.in_context or one.system_turn != "empty":
                by_turn[one.system_turn] += [(g, row) for row in range(len(groups[g].examples))]
        for system_turn, places in by_turn.items():
            assert self.render is not None
            texts = [self.examples[groups[g].examples[row]].text for g, row in places]
            prompts = [drawn[g].wording if drawn[g].in_context else None for g, _ in places]
            for (g, row), ids in zip(places, self.render(texts, prompts, system_turn), strict=True):
                read[g][row] = ids
        return read

    def _collate(
        self, groups: Sequence[Group], drawn: Sequence[_Drawn], read: Sequence[list[list[int]]], first_answer: bool
    ) -> Batch:
        prompts, pairs, rows = [], [], []
        for group, one, inputs in zip(groups, drawn, read, strict=True):
            examples = [(self.examples[i].text, self.examples[i].output) for i in one.examples]
            prompts.append(with_examples(one.wording, examples))
            for i, ids in zip(group.examples, inputs, strict=True):
                answers = self.examples[i].answers
                rows.append((ids, answers[0] if first_answer else one.rng.choice(answers)))
            if self.shown.pairs:
                others = [wording for wording in self.prompts[group.task] if wording != one.wording]
                pairs.append(one.rng.choice(others) if others else one.wording)
        return make_batch(
            prompts,
            rows,
            self.pad,
            tasks=tuple(group.task for group in groups),
            examples=tuple(i for group in groups for i in group.examples),
            wordings=tuple(one.wording for one in drawn),
            in_context=tuple(one.in_context for one in drawn),
            pairs=tuple(pairs),
        )


def rows_by_task(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Map each task to the indices of its examples, as the orders expect it."""
    by_task: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        by_task[example.task].append(i)
    return dict(by_task)


def ids_and_labels(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels ``[rows, longest]``, padded on the right, of rows given as (context ids, answer ids)."""
    input_ids, _ = pad_rows([[*ids, *answer] for ids, answer in rows], pad)
    labels, _ = pad_rows([[*[IGNORED] * len(ids), *answer] for ids, answer in rows], IGNORED)
    return input_ids, labels


def make_batch(
    prompts: list[str],
    rows: Sequence[tuple[list[int], list[int]]],
    pad: int,
    *,
    tasks: tuple[str, ...] = (),
    examples: tuple[int, ...] = (),
    wordings: tuple[str, ...] = (),
    in_context: tuple[bool, ...] = (),
    pairs: tuple[str, ...] = (),
) -> Batch:
    """Make a batch from rows given as (context ids, answer ids)."""
    input_ids, labels = ids_and_labels(rows, pad)
    tokens = sum(len(ids) + len(answer) for ids, answer in rows)
    return Batch(prompts, input_ids, labels, tokens, tasks, examples, wordings, in_context, pairs)
