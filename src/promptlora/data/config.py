"""``DataConfig``: which rows to train on, and how they are presented."""

from __future__ import annotations

from dataclasses import dataclass

from promptlora.errors import ConfigError
from promptlora.settings import check, not_negative, one_of, positive

ORDERS = ("rows", "tasks")
_SHARES = ("paraphrase_share", "in_context_share", "examples_share", "default_system_share", "no_system_share")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which rows to train on, and how they are presented.

    Attributes:
        train: A JSONL, JSONL.gz, CSV or Parquet file, a folder of them, or a Hugging Face dataset id; or a list of
            these. For the objective ``reconstruct``: a JSONL file of ``{prompt, adapter}``, where ``adapter`` is a PEFT
            folder. Leave it empty if the rows are passed as ``Trainer(rows=...)``.
        weights: With ``order = "tasks"``: the relative number of prompts per batch from each source of ``train``.
            Empty: proportional to the number of tasks of the source.
        split: Keep only rows with this ``split`` (rows without a split are always kept); an empty string keeps all.
        paraphrases: A JSONL file of ``{task, prompts}`` with other wordings of each task's prompt, or a list of such
            files.
        paraphrase_share: Probability that a task with paraphrases uses one of them, from 0 to 1.
        wordings: Generate wordings with ``data.wordings`` until each task has this many in addition to its own prompt.
        exclude: Tasks that are left out of training, such as tasks that share a goal with a held-out task.
        exchange_labels: Whether classification tasks whose prompt names the labels are also trained with exchanged
            labels, in the prompt and in the answers.
        order: ``rows``: an epoch shows every row once and groups rows of similar length. ``tasks``: every task appears
            equally often, however many rows it has; use it for many tasks.
        cluster: With ``order = "tasks"``: put this many tasks of one pool into a batch together, so that only the
            prompt distinguishes their answers. They have the same inputs as far as they have the same rows; a task
            whose answers exclude some inputs of the pool differs from the others by those. 1 turns this off.
        in_context_share: Probability that the prompt is also in its rows' context, from 0 to 1.
        max_context_tokens: A prompt with more tokens is never put in the context.
        examples_share: Probability that the hypernetwork's prompt includes two to four examples of its task.
        default_system_share: Probability that the chat template's own system turn precedes an input.
        no_system_share: Probability that there is no system turn; in all remaining cases the system turn is empty.
        tasks: Train on this many of the tasks, drawn with the seed; 0 uses all.
        max_input_tokens: Rows with a longer rendered input are skipped and counted.
        max_answer_tokens: Rows with a longer answer are skipped and counted.
    """

    train: str | tuple[str, ...] = ""
    weights: tuple[float, ...] = ()
    split: str = "train"
    paraphrases: str | tuple[str, ...] = ""
    paraphrase_share: float = 0.7
    wordings: int = 0
    exclude: tuple[str, ...] = ()
    exchange_labels: bool = False
    order: str = "rows"
    cluster: int = 1
    in_context_share: float = 0.0
    max_context_tokens: int = 512
    examples_share: float = 0.0
    default_system_share: float = 0.0
    no_system_share: float = 0.0
    tasks: int = 0
    max_input_tokens: int = 512
    max_answer_tokens: int = 256

    def __post_init__(self) -> None:
        check(self)
        positive(self, "max_input_tokens", "max_answer_tokens", "max_context_tokens", "cluster")
        one_of(self, "order", ORDERS)
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected a share from 0 to 1")
        if self.default_system_share + self.no_system_share > 1:
            raise ConfigError(
                f"default_system_share={self.default_system_share} and no_system_share={self.no_system_share}; expected "
                "at most 1 together"
            )
        not_negative(self, "tasks", "wordings")
        if self.weights and (len(self.weights) != len(self.sources) or not all(0 < w < 1e6 for w in self.weights)):
            raise ConfigError(
                f"weights={list(self.weights)}: expected one number above 0 for each of {len(self.sources)} sources"
            )
        if self.order == "rows" and (self.weights or self.cluster > 1):
            raise ConfigError("weights and cluster need order = 'tasks'; set it, or leave them out")

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of rows, as a tuple."""
        return (self.train,) if isinstance(self.train, str) else self.train

    @property
    def wording_files(self) -> tuple[str, ...]:
        """The files of paraphrases, as a tuple."""
        files = (self.paraphrases,) if isinstance(self.paraphrases, str) else self.paraphrases
        return tuple(file for file in files if file)
