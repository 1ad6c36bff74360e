"""The batches of a training run: what is drawn for each group of rows, and its way into tensors.

A batch is a pure function of seed and step. It knows examples and orders; nothing of files, of LoRA or of the
hypernetwork.
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
_FRAME = 32  # tokens of "Input:" and "Output:" around them, beyond those of the chat that their lengths count


@runtime_checkable
class Render(Protocol):
    """Token ids of inputs before their answers."""

    def __call__(
        self, texts: Sequence[str], prompts: Sequence[str | None], system_turn: str = "empty"
    ) -> list[list[int]]:
        """Of each text, with its prompt in the context where there is one."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How rows are shown in training: each share is the chance of a group.

    Attributes:
        paraphrase_share: A paraphrase takes the place of the task's own prompt.
        in_context_share: The prompt stands in the rows' context as well.
        longest_in_context: A prompt of more tokens never stands in the context.
        examples_share: What the hypernetwork reads carries examples of the task; not where the prompt is in the context.
        examples_tokens: Most tokens of these examples together.
        longest_prompt: Most tokens of a prompt with its examples.
        default_system_share: The chat template's own system turn stands before the input.
        no_system_share: No system turn stands there.
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
    """What a training step eats.

    ``prompts`` is what the hypernetwork reads of each group, ``wordings`` the same without examples, ``in_context``
    whether it stands in the rows' context, ``pairs`` another wording of each task (empty where none was asked for).
    ``input_ids`` and ``labels`` are ``[prompts * rows, seq]``, rows of a prompt beside each other, padded on the right
    (causal attention needs no mask then); ``labels`` is -100 off the answer. ``tokens`` counts the real ones; ``tasks``
    has the task of each prompt and ``examples`` the number of each row's example.
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
        """How many tokens the loss sees."""
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True)
class _Drawn:
    """What is drawn for a group, and the generator to draw its answers with."""

    rng: random.Random
    wording: str
    in_context: bool
    system_turn: str = "empty"
    examples: tuple[int, ...] = ()


class Batches:
    """The batches of a run, so that a resumed run sees the same ones.

    Args:
        examples: Tokenized rows.
        prompts: Task to its prompts: the first is its own, the others are paraphrases.
        prompts_per_batch: Groups in a batch.
        rows_per_prompt: Rows in a group.
        pad: The padding id.
        shown: How rows are shown.
        render: Token ids of inputs; needed where they are not shown as the examples hold them.
        order: Which rows make up each batch, such as a :class:`TaskOrder`; by default a :class:`RowOrder`.
        prompt_tokens: Tokens of each prompt, for the room that is left for examples; unknown ones count as none.
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
        self._added: dict[str, int] = {}  # tokens that a prompt adds to an input
        self.order: Order = order or RowOrder(
            self.by_task,
            [example.length for example in examples],
            prompts_per_batch=prompts_per_batch,
            rows_per_prompt=rows_per_prompt,
            seed=seed,
            added=self._tokens_of_context if self.shown.in_context_share else None,
        )

    # --- what is drawn -----------------------------------------------------------------------------------

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
        """Up to four other rows of the task, of other inputs, that are short enough together."""
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
        """What the prompt adds to the length of a group's rows: about as many tokens whatever the input is."""
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
        """The batch of a step in ``parts`` parts, each of as many prompts; rows of near length share a part.

        Args:
            step: Counted from 0.
            parts: How many; ``prompts_per_batch`` must be a multiple.
            first_answer: Take the first of a row's answers; else one is drawn.
        """
        groups = self.order.groups(step)
        drawn = [self._draw(group) for group in groups]
        read = self._read(groups, drawn)
        if not isinstance(self.order, RowOrder):  # there, groups of near length stand together already
            longest = [max(map(len, rows)) for rows in read]
            order = sorted(range(len(groups)), key=longest.__getitem__)
            groups, drawn, read = ([each[i] for i in order] for each in (groups, drawn, read))  # type: ignore[assignment]
        size = len(groups) // parts
        return [
            self._collate(groups[at : at + size], drawn[at : at + size], read[at : at + size], first_answer)
            for at in range(0, size * parts, size)
        ]

    def _read(self, groups: Sequence[Group], drawn: Sequence[_Drawn]) -> list[list[list[int]]]:
        """Token ids before the answer of each row of each group; rows that must be rendered are so in one call."""
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
    """Task to the numbers of its examples, as orders take it."""
    by_task: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        by_task[example.task].append(i)
    return dict(by_task)


def ids_and_labels(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids of rows, each what is read and the answer, and their labels, ``[rows, longest]``, padded on the right."""
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
    """A batch of rows, each the token ids of what is read and of the answer."""
    input_ids, labels = ids_and_labels(rows, pad)
    tokens = sum(len(ids) + len(answer) for ids, answer in rows)
    return Batch(prompts, input_ids, labels, tokens, tasks, examples, wordings, in_context, pairs)
