"""``DataConfig``: which rows to train on, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass

from promptlora.errors import ConfigError
from promptlora.settings import check, not_negative, one_of, positive

ORDERS = ("rows", "tasks")
_SHARES = ("paraphrase_share", "in_context_share", "examples_share", "default_system_share", "no_system_share")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which rows to train on.

    Attributes:
        train: A JSONL, JSONL.gz, CSV or Parquet file, a folder of them, or a Hugging Face dataset id; or a list of them. For
            the objective ``reconstruct``: a JSONL file of ``{prompt, adapter}``, where adapter is a PEFT folder. Empty where
            ``Trainer(rows=...)`` gets the rows themselves.
        weights: With ``order = "tasks"``: how many prompts of a batch come from each source of ``train``, relative to
            the others; empty: as many as the source has tasks.
        split: Keep rows whose ``split`` is this, where rows have one; an empty string keeps all.
        paraphrases: A JSONL file of ``{task, prompts}``, or a list of them: other wordings of a task's prompt.
        paraphrase_share: How often a task that has paraphrases uses one of them, from 0 to 1.
        wordings: Each task gets wordings made by ``data.wordings`` until it has this many beside its own prompt.
        exclude: Tasks that are left out of training, such as those that share a goal with a held-out task.
        exchange_labels: Whether classification tasks whose labels stand in the prompt are also trained with their
            labels exchanged in prompt and answers alike.
        order: ``rows``: an epoch shows every row once, and rows of near length stand together. ``tasks``: every task
            comes up equally often, however many rows it has; for many tasks.
        cluster: With ``order = "tasks"``: so many tasks that share their inputs stand together in a batch, on the same
            inputs, so that only the prompt tells their answers apart; 1 keeps them apart.
        in_context_share: How often the rows of a prompt have it in their context as well, from 0 to 1.
        max_context_tokens: A prompt of more tokens is never put in the context.
        examples_share: How often the prompt that the hypernetwork reads carries two to four examples of its task.
        default_system_share: How often the chat template's own system turn stands before an input.
        no_system_share: How often no system turn stands there at all; in all other cases it is empty.
        tasks: Train on this many of the tasks, drawn by the seed; 0 takes all.
        max_input_tokens: Rows with a longer rendered input are counted and left out.
        max_answer_tokens: Rows with a longer answer are counted and left out.
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
        """The sources of rows."""
        return (self.train,) if isinstance(self.train, str) else self.train

    @property
    def wording_files(self) -> tuple[str, ...]:
        """The files of paraphrases."""
        files = (self.paraphrases,) if isinstance(self.paraphrases, str) else self.paraphrases
        return tuple(file for file in files if file)
