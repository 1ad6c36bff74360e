"""What a run trains on: the rows of all sources, the wordings of their tasks, and the held-out tasks.

It knows rows and texts; it knows nothing of tokens, models or batches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from promptlora.data import (
    DataConfig,
    Row,
    check_rows,
    hold_out,
    of_split,
    one_prompt_a_task,
    read_paraphrases,
    read_rows,
)
from promptlora.errors import ConfigError, DataError
from promptlora.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Rows and wordings of a run.

    Attributes:
        rows: The rows to train on, source by source.
        held: Rows of held-out tasks, for validation.
        sources: The tasks of each source.
        prompts: Maps each task to its prompts: its own prompt first, then the paraphrases.
    """

    rows: list[Row] = field(default_factory=list)
    held: list[Row] = field(default_factory=list)
    sources: list[list[str]] = field(default_factory=list)
    prompts: dict[str, list[str]] = field(default_factory=dict)

    @property
    def own_prompts(self) -> list[str]:
        """The own prompt of each training task."""
        return [several[0] for several in self.prompts.values()]

    @property
    def heldout_prompts(self) -> list[str]:
        """The prompts of the held-out tasks."""
        return list(dict.fromkeys(row.prompt for row in self.held))


def read_training_data(config: TrainConfig, rows: Sequence[Row] | None = None) -> TrainingData:
    """Read the rows of a run; the result is empty for ``reconstruct``, which uses adapters instead.

    Args:
        config: The run's configuration.
        rows: Rows of any split, used instead of those of ``config.data.train``.

    Raises:
        DataError: Rows or paraphrases cannot be used, or there are too few tasks for the settings.
        ConfigError: A setting does not apply to ``reconstruct``.
    """
    data, wanted = config.data, config.validation.tasks
    if config.objective == "reconstruct":
        if wanted or data.tasks or data.wording_files or rows is not None:
            raise ConfigError(
                "objective='reconstruct' takes adapters, not rows; leave out validation.tasks, data.tasks, data.paraphrases, rows"
            )
        return TrainingData()
    names, readers = _readers(data, rows)
    read_as = [read(data.split) for read in readers]
    sources = [one_prompt_a_task(rows) for rows in read_as]
    _refuse_shared_names(names, sources)
    own_prompts = {row.task: row.prompt for rows in sources for row in rows}
    in_training = {
        (before.task, before.prompt): after.task
        for raw, rows in zip(read_as, sources, strict=True)
        for before, after in zip(raw, rows, strict=True)
    }
    unknown = set(data.exclude) - {row.task for rows in sources for row in rows}
    if unknown:
        raise DataError(
            f"exclude: no task is called {min(unknown)!r}. Expected names of training tasks. Fix: remove it."
        )
    sources_read, sources = sources, [[row for row in rows if row.task not in data.exclude] for rows in sources]
    held: list[Row] = []
    if wanted:
        counted = config.validation.sources or len(sources)
        if counted > len(sources):
            raise ConfigError(f"validation.sources={counted}: data.train has {len(sources)}. Expected at most that.")
        # The numbered tasks of one task count as a category: its other prompts must not be trained on.
        unnumbered = [
            row if row.category else replace(row, category=before.task)
            for raw, rows in zip(read_as[:counted], sources_read[:counted], strict=True)
            for before, row in zip(raw, rows, strict=True)
            if row.task not in data.exclude
        ]
        chosen = set(hold_out(unnumbered, wanted))
        sources = [[row for row in rows if row.task not in chosen] for rows in sources]
        held = _held_rows(config, readers, chosen, in_training)
    if data.tasks:
        sources = _some_tasks(sources, data.tasks, config.seed)
    prompts = {row.task: [row.prompt] for rows in sources for row in rows}
    for file in data.wording_files:
        found = read_paraphrases(file, own_prompts)
        if not found:
            raise DataError(
                f"{file}: wordings of none of the {len(own_prompts)} tasks, such as {min(own_prompts)!r}. Expected the same "
                "task names. Fix: make it from the same rows, or remove it."
            )
        for task in found.keys() & prompts.keys():
            prompts[task] += found[task]
    if data.wordings:
        from promptlora.data.wordings import wordings

        for several in prompts.values():
            missing = data.wordings + 1 - len(several)
            if missing > 0:
                several += [text for text in wordings(several[0], missing) if text not in several]
    if data.exchange_labels:
        from promptlora.data.labels import exchanged_tasks

        for rows in sources:
            for changed, several in list(exchanged_tasks(rows, prompts, config.seed)):
                rows.extend(changed)
                prompts[changed[0].task] = several
    return TrainingData(
        rows=[row for rows in sources for row in rows],
        held=held,
        sources=[list(dict.fromkeys(row.task for row in rows)) for rows in sources],
        prompts=prompts,
    )


def _readers(data: DataConfig, rows: Sequence[Row] | None) -> tuple[list[str], list[Callable[[str], list[Row]]]]:
    """The name of each source, and a function that reads its rows of a given split."""
    if rows is None:
        return list(data.sources), [partial(read_rows, source) for source in data.sources]
    checked = check_rows(rows)
    return ["rows"], [partial(of_split, checked, "rows")]


def _refuse_shared_names(names: Sequence[str], sources: Sequence[Sequence[Row]]) -> None:
    """Refuse a task name that occurs in two sources, because one task would then have two prompts."""
    seen: dict[str, str] = {}
    for name, rows in zip(names, sources, strict=True):
        for task in dict.fromkeys(row.task for row in rows):
            if task in seen:
                raise DataError(
                    f"task {task!r}: stands in {seen[task]} and in {name}. Expected each task in one source. Fix: rename "
                    "it, or leave one of them out."
                )
            seen[task] = name


def _named_as_in_training(rows: Sequence[Row], in_training: Mapping[tuple[str, str], str]) -> list[Row]:
    """Rows of another split, with the task names of the training rows that have the same prompt.

    A task with several prompts is split into numbered tasks, and the order of the prompts may differ between splits.
    Numbered separately, a held-out task could be measured with a prompt that is trained on.
    """
    known = [row for row in rows if (row.task, row.prompt) in in_training]
    named = [replace(row, task=in_training[row.task, row.prompt]) for row in known]
    covered = {row.task for row in named}
    others = one_prompt_a_task([row for row in rows if (row.task, row.prompt) not in in_training])
    return [*named, *(row for row in others if row.task not in covered)]


def _held_rows(
    config: TrainConfig,
    readers: Sequence[Callable[[str], list[Row]]],
    names: set[str],
    in_training: Mapping[tuple[str, str], str],
) -> list[Row]:
    """The first rows of each held-out task, among those with the validation's split."""
    held: list[Row] = []
    seen: dict[str, int] = {}
    for read in readers:
        try:
            rows = _named_as_in_training(read(config.validation.split), in_training)
        except DataError:
            if len(readers) == 1:
                raise
            continue  # a source without rows of that split is skipped
        for row in rows:
            if row.task in names and seen.get(row.task, 0) < config.validation.rows:
                seen[row.task] = seen.get(row.task, 0) + 1
                held.append(row)
    if not held:
        raise ConfigError(
            f"validation.split={config.validation.split!r}: no row of the {len(names)} held-out tasks has it"
        )
    return held


def _some_tasks(sources: Sequence[Sequence[Row]], count: int, seed: int) -> list[list[Row]]:
    """The rows of ``count`` tasks, drawn with the seed."""
    left = list(dict.fromkeys(row.task for rows in sources for row in rows))
    if count > len(left):
        raise ConfigError(f"data.tasks={count}: there are {len(left)} to train on; expected at most that")
    chosen = set(random.Random(f"tasks/{seed}").sample(left, count))
    return [[row for row in rows if row.task in chosen] for rows in sources]
