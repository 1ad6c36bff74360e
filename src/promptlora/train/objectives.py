"""The training objectives of a hypernetwork: ``sft``, ``distill`` and ``reconstruct``.

An objective provides the parts of each step's batch, the training loss of a part under its adapters, and a plain loss
for measurements under any adapters. Margins are differences of plain losses.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from promptlora.data import Batch, Batches
from promptlora.errors import DataError
from promptlora.host import Host
from promptlora.hypernet.network import HyperNetwork
from promptlora.lora import LoRAWeights
from promptlora.lora.peft import load_peft
from promptlora.losses import TeacherTargets, distillation_loss, reconstruction_loss, sft_loss
from promptlora.projections import Projection
from promptlora.reading import is_file, json_lines
from promptlora.teacher import OnlineTeacher, TeacherCache, key_of
from promptlora.text import PromptStates
from promptlora.train.config import TrainConfig


@runtime_checkable
class Objective(Protocol):
    """The interface that the training loop uses."""

    def parts(self, step: int, parts: int) -> list[Batch]:
        """The batch of a step in ``parts`` parts with equally many prompts."""

    def weight(self, batch: Batch) -> float:
        """The weight of a part in the mean over parts."""

    def loss(self, batch: Batch, lora: LoRAWeights, generator: torch.Generator | None = None) -> Tensor:
        """The training loss, where prompt i has adapter i. Noise is drawn from the generator."""

    def measure(self, batch: Batch, lora: LoRAWeights, adapters: Sequence[int], *, reduce: bool = True) -> Tensor:
        """A plain loss of the batch where prompt i has adapter ``adapters[i]``; one per row if ``reduce`` is False."""

    def describe(self, batch: Batch, row: int) -> str:
        """Describe a row of a batch, for a message."""


class Sft:
    """Cross-entropy of the rows' own answers."""

    def __init__(self, base: Host, batches: Batches, config: TrainConfig) -> None:
        self.base, self.batches, self.config = base, batches, config

    def parts(self, step: int, parts: int) -> list[Batch]:
        """Rows of several tasks. Prompts are encoded, and also put in the context as often as the data settings say."""
        return self.batches.parts(step, parts)

    def weight(self, batch: Batch) -> float:
        """Number of answer tokens, or of rows with ``row_weight = "row"``."""
        return float(batch.answer_tokens if self.config.row_weight == "token" else len(batch.labels))

    def _hidden(
        self, batch: Batch, lora: LoRAWeights, adapters: Sequence[int], generator: torch.Generator | None = None
    ) -> Tensor:
        rows = len(batch.input_ids) // len(batch.prompts)
        size = self.config.regularization.neftune
        noise = (size, generator) if size and generator is not None else None
        return self.base.hidden(batch.input_ids, lora, [i for i in adapters for _ in range(rows)], noise)

    def loss(self, batch: Batch, lora: LoRAWeights, generator: torch.Generator | None = None) -> Tensor:
        """Cross-entropy, with noise as configured."""
        return self._sft(batch, self._hidden(batch, lora, range(len(batch.prompts)), generator))

    def _sft(self, batch: Batch, hidden: Tensor, *, reduce: bool = True) -> Tensor:
        return sft_loss(hidden, batch.labels, self.base.lm_head, row_weight=self.config.row_weight, reduce=reduce)

    def measure(self, batch: Batch, lora: LoRAWeights, adapters: Sequence[int], *, reduce: bool = True) -> Tensor:
        """Cross-entropy without noise."""
        return self._sft(batch, self._hidden(batch, lora, adapters), reduce=reduce)

    def describe(self, batch: Batch, row: int) -> str:
        """The task of a row and the start of its input."""
        example = self.batches.examples[batch.examples[row]]
        return f"task {example.task[:40]!r} input {example.text[:40]!r}"


class Distill(Sft):
    """KL from a teacher that reads the prompt to a student that has the prompt's adapter."""

    def __init__(
        self,
        base: Host,
        batches: Batches,
        config: TrainConfig,
        teacher: OnlineTeacher | TeacherCache,
        adapter: tuple[HyperNetwork, PromptStates] | None = None,
    ) -> None:
        super().__init__(base, batches, config)
        self.teacher, self.adapter = teacher, adapter

    def parts(self, step: int, parts: int) -> list[Batch]:
        """See ``Sft.parts``; with a cache, always the first answer of each row, because a cache holds only that one."""
        return self.batches.parts(step, parts, first_answer=isinstance(self.teacher, TeacherCache))

    def targets(self, batch: Batch) -> TeacherTargets:
        """The teacher's distributions at the answer tokens of a batch."""
        rows = len(batch.input_ids) // len(batch.prompts)
        answers = [labels[labels >= 0].tolist() for labels in batch.labels]
        examples = [self.batches.examples[i] for i in batch.examples]
        if isinstance(self.teacher, TeacherCache):  # keyed by the task's own prompt, whichever wording the student has
            own = [self.batches.prompts[example.task][0] for example in examples]
            keys = [key_of(p, e.text, a) for p, e, a in zip(own, examples, answers, strict=True)]
            return self.teacher.targets(keys)
        contexts = [self.base.render(e.text, batch.wordings[i // rows]) for i, e in enumerate(examples)]
        pairs = list(zip(contexts, answers, strict=True))
        if self.adapter is None:
            with self.base.using(None):
                return self.teacher.targets(pairs)
        hypernetwork, states = self.adapter
        with torch.no_grad():
            # The teacher reads the prompt in its context, which a hypernetwork with a context flag has to know.
            lora = hypernetwork(*states.batch(batch.prompts), True, dtype=self.base.model.dtype)
        with self.base.using(lora, [i for i in range(len(batch.prompts)) for _ in range(rows)]):
            return self.teacher.targets(pairs)

    def loss(self, batch: Batch, lora: LoRAWeights, generator: torch.Generator | None = None) -> Tensor:
        """KL, mixed with the loss on the rows' own answers as configured; only the student gets noise."""
        options = self.config.distill
        teacher = self.targets(batch)
        hidden = self._hidden(batch, lora, range(len(batch.prompts)), generator)
        divergence = distillation_loss(
            hidden, batch.labels, self.base.lm_head, teacher, row_weight=self.config.row_weight
        )
        if not options.sft_share:
            return divergence
        return options.sft_share * self._sft(batch, hidden) + (1 - options.sft_share) * divergence


class Reconstruct:
    """Distance of the generated updates to those of given adapters, one per prompt; the base is not run.

    Args:
        path: JSON lines of ``{prompt, adapter}`` and optionally ``task``; ``adapter`` is a PEFT folder, relative to the
            file.
        projections: The projections that the hypernetwork generates.
        prompts_per_batch: Adapters per batch.
        seed: Seed of the order.

    Raises:
        DataError: A line or an adapter cannot be used, or there are too few of them.
    """

    def __init__(self, path: str | Path, projections: Sequence[Projection], prompts_per_batch: int, seed: int) -> None:
        self.entries = read_library(path)
        if len(self.entries) < prompts_per_batch:
            raise DataError(
                f"{path}: {len(self.entries)} adapters; expected prompts_per_batch={prompts_per_batch} or more"
            )
        self.size, self.seed = prompts_per_batch, seed
        loaded = []
        wanted = {projection.name for projection in projections}
        for _, prompt, folder in self.entries:
            lora = load_peft(folder, projections=projections)
            if set(lora) != wanted:
                odd = min(set(lora) ^ wanted)
                raise DataError(f"{folder} ({prompt[:40]!r}): {odd} is in one of adapter and hypernetwork only")
            loaded.append(lora)
        self.targets = loaded

    def parts(self, step: int, parts: int) -> list[Batch]:
        """Prompts in a random order; each appears once per epoch."""
        return [self._part(step, part, parts) for part in range(parts)]

    def _part(self, step: int, part: int, parts: int) -> Batch:
        per_epoch = len(self.entries) // self.size
        epoch, at = divmod(step, per_epoch)
        order = list(range(len(self.entries)))
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        size = self.size // parts
        chosen = order[at * self.size + part * size :][:size]
        none = torch.zeros(size, 0, dtype=torch.long)
        return Batch(
            [self.entries[i][1] for i in chosen],
            none,
            none,
            0,
            tuple(self.entries[i][0] for i in chosen),
            tuple(chosen),
            in_context=(False,) * size,
        )

    def weight(self, batch: Batch) -> float:
        """Number of prompts."""
        return float(len(batch.prompts))

    def loss(self, batch: Batch, lora: LoRAWeights, generator: torch.Generator | None = None) -> Tensor:
        """Squared distance divided by the squared norm of the target."""
        return self.measure(batch, lora, range(len(batch.prompts)))

    def measure(self, batch: Batch, lora: LoRAWeights, adapters: Sequence[int], *, reduce: bool = True) -> Tensor:
        """The same distance, for any assignment of adapters."""
        each = torch.stack(
            [
                reconstruction_loss(lora.select(i), self.targets[target])
                for i, target in zip(adapters, batch.examples, strict=True)
            ]
        )
        return each.mean() if reduce else each

    def describe(self, batch: Batch, row: int) -> str:
        """The folder of the target adapter."""
        return f"adapter {self.entries[batch.examples[row]][2]}"


def read_library(path: str | Path) -> list[tuple[str, str, Path]]:
    """Read task, prompt and PEFT folder from each line of a library of adapters.

    Raises:
        DataError: The file is missing, or a line has no prompt or no adapter.
    """
    path = Path(path)
    if not is_file(path):
        raise DataError(f"{path}: no such file; expected JSON lines of prompt and adapter (a PEFT folder)")
    entries = []
    for number, _, values in json_lines(path, DataError):
        prompt, folder = (values.get(key) if isinstance(values, dict) else None for key in ("prompt", "adapter"))
        if not isinstance(prompt, str) or not isinstance(folder, str):
            raise DataError(
                f"{path}:{number}: expected an object with prompt and adapter, both texts ('prompt', 'adapter')"
            )
        if not prompt.strip():
            raise DataError(f"{path}:{number}: prompt is empty; expected an instruction")
        entries.append((str(values.get("task") or prompt), prompt, path.parent / folder))
    return entries
