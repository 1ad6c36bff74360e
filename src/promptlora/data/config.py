"""``DataConfig``: which rows to train on, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass

from promptlora.errors import ConfigError
from promptlora.settings import check, not_negative, positive


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which rows to train on.

    Attributes:
        train: A JSONL, JSONL.gz or Parquet file, a folder of them, or a Hugging Face dataset id. For the objective
            ``reconstruct``: a JSONL file of ``{prompt, adapter}``, where adapter is a PEFT folder.
        split: Keep rows whose ``split`` is this, where rows have one; an empty string keeps all.
        paraphrases: A JSONL file of ``{task, prompts}``: other wordings of a task's prompt.
        paraphrase_share: How often a task that has paraphrases uses one of them, from 0 to 1.
        in_context_share: How often the rows of a prompt have it in their context as well, from 0 to 1.
        tasks: Train on this many of the tasks, drawn by the seed; 0 takes all.
        max_input_tokens: Rows with a longer rendered input are counted and left out.
        max_answer_tokens: Rows with a longer answer are counted and left out.
    """

    train: str
    split: str = "train"
    paraphrases: str = ""
    paraphrase_share: float = 0.7
    in_context_share: float = 0.0
    tasks: int = 0
    max_input_tokens: int = 512
    max_answer_tokens: int = 256

    def __post_init__(self) -> None:
        check(self)
        positive(self, "max_input_tokens", "max_answer_tokens")
        for name in ("paraphrase_share", "in_context_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected a share from 0 to 1")
        not_negative(self, "tasks")
