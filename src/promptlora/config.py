"""Configurations: frozen keyword-only dataclasses, checked when made, and their round trip through TOML.

It knows names and ranges, and nothing of what is done with them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from promptlora.errors import ConfigError
from promptlora.files import replacing_file

HEAD_KINDS = ("full", "shared", "rankwise", "lowrank")
PROMPT_SOURCES = ("embeddings", "hidden")
BASE_DTYPES = ("float32", "bfloat16")

T = TypeVar("T")


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not 0 < value < math.inf:
            raise ConfigError(f"{name}={value} in {type(owner).__name__}; expected a finite number above 0")


def _one_of(owner: object, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(owner, name)
    if value not in choices:
        raise ConfigError(f"{name}={value!r} in {type(owner).__name__}; expected one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class HyperNetworkConfig:
    """The shape of a hypernetwork.

    Attributes:
        source: Where prompt states come from: the base's token ``embeddings``, or the ``hidden`` states
            that leave layer ``source_layer`` of the frozen base.
        source_layer: Which layer, counted from 1; only for ``hidden``.
        max_prompt_tokens: Longest prompt that the encoder takes, in tokens.
        context_size: Width of the context and of the features that enter the heads.
        encoder_layers: Transformer layers over the prompt states.
        encoder_heads: Attention heads of each.
        pooling_queries: Learned queries of the attention pooling.
        trunk_layers: Residual blocks between context + projection embedding and the heads.
        head: Kind of weight head: ``full``, ``shared``, ``rankwise`` or ``lowrank``.
        head_bottleneck: Inner width of a ``lowrank`` head.
        rank: Rank of the generated LoRA.
        alpha: Scaling is ``alpha / rank``.
        static: Whether a learned LoRA that is the same for every prompt is added to the generated one.
    """

    source: str = "hidden"
    source_layer: int = 20
    max_prompt_tokens: int = 512
    context_size: int = 256
    encoder_layers: int = 2
    encoder_heads: int = 4
    pooling_queries: int = 4
    trunk_layers: int = 2
    head: str = "full"
    head_bottleneck: int = 64
    rank: int = 8
    alpha: float = 16.0
    static: bool = True

    def __post_init__(self) -> None:
        _one_of(self, "source", PROMPT_SOURCES)
        _one_of(self, "head", HEAD_KINDS)
        _positive(
            self, "source_layer", "max_prompt_tokens", "context_size", "encoder_heads", "pooling_queries",
            "head_bottleneck", "rank", "alpha",
        )  # fmt: skip
        if self.encoder_layers < 0 or self.trunk_layers < 0:
            raise ConfigError(
                f"encoder_layers={self.encoder_layers}, trunk_layers={self.trunk_layers}; expected 0 or more"
            )
        if self.context_size % self.encoder_heads:
            raise ConfigError(
                f"context_size={self.context_size} is not a multiple of encoder_heads={self.encoder_heads}; "
                "choose one that is"
            )

    @property
    def scaling(self) -> float:
        """``alpha / rank``."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which rows to train on.

    Attributes:
        train: A JSONL, JSONL.gz or Parquet file, a folder of them, or a Hugging Face dataset id.
        split: Keep rows whose ``split`` is this, where rows have one; an empty string keeps all.
        paraphrases: A JSONL file of ``{task, prompts}``: other wordings of a task's prompt.
        paraphrase_share: How often a task that has paraphrases uses one of them, from 0 to 1.
        max_input_tokens: Rows with a longer rendered input are counted and left out.
        max_answer_tokens: Rows with a longer answer are counted and left out.
    """

    train: str
    split: str = "train"
    paraphrases: str = ""
    paraphrase_share: float = 0.7
    max_input_tokens: int = 512
    max_answer_tokens: int = 256

    def __post_init__(self) -> None:
        _positive(self, "max_input_tokens", "max_answer_tokens")
        if not 0 <= self.paraphrase_share <= 1:
            raise ConfigError(f"paraphrase_share={self.paraphrase_share}; expected a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How parameters move. Learning rates are those at the top of the schedule.

    Attributes:
        lr: Learning rate of the encoder and the trunk.
        head_lr_factor: The heads' learning rate is ``lr * head_lr_factor / fan_in``.
        static_lr: Learning rate of the static LoRA.
        weight_decay: Decoupled weight decay of the encoder, the trunk and the heads.
        clip: Largest gradient norm of the encoder, trunk and static group.
        head_clip: Largest gradient norm of the heads.
        warmup: Share of the steps in which the rate rises from 0.
        final: The rate ends at this share of its top, along a cosine.
    """

    lr: float = 5e-4
    head_lr_factor: float = 4.0
    static_lr: float = 5e-4
    weight_decay: float = 0.01
    clip: float = 1.0
    head_clip: float = 0.1
    warmup: float = 0.1
    final: float = 0.05

    def __post_init__(self) -> None:
        _positive(self, "lr", "head_lr_factor", "static_lr", "clip", "head_clip")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay={self.weight_decay} in OptimConfig; expected a finite number, 0 or more")
        for name in ("warmup", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
        output: Folder of the run: checkpoints, logs, the trained hypernetwork.
        base: Base model: empty for the embedded default, else a folder or Hub id.
        base_dtype: Dtype of the frozen base, ``float32`` or ``bfloat16``; its head and the hypernetwork are
            float32 in either case.
        attention: Attention kernel of the base, as transformers names it; empty for its own choice.
        steps: Optimizer steps.
        prompts_per_batch: Prompts (tasks) mixed in a batch; each is encoded once.
        rows_per_prompt: Rows of each prompt in a batch.
        row_weight: Whether a row counts once whatever its length (``row``) or each answer token (``token``).
        seed: Seed of initialisation, order and paraphrases.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of the newest checkpoints are kept.
        margin_every: Steps between measurements of the steering margin.
        activation_checkpointing: Recompute activations of the base in backward, to save memory.
    """

    output: str
    data: DataConfig
    base: str = ""
    base_dtype: str = "float32"
    attention: str = ""
    steps: int = 1000
    prompts_per_batch: int = 8
    rows_per_prompt: int = 4
    row_weight: str = "row"
    seed: int = 0
    checkpoint_every: int = 50
    keep_checkpoints: int = 2
    margin_every: int = 20
    activation_checkpointing: bool = False
    hypernetwork: HyperNetworkConfig = field(default_factory=HyperNetworkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        _positive(
            self, "steps", "prompts_per_batch", "rows_per_prompt", "checkpoint_every", "keep_checkpoints",
            "margin_every",
        )  # fmt: skip
        _one_of(self, "row_weight", ("row", "token"))
        _one_of(self, "base_dtype", BASE_DTYPES)
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed} in TrainConfig; expected a whole number from 0 to {2**32 - 1}")


def from_dict(kind: type[T], values: dict[str, Any], where: str = "") -> T:
    """Make a configuration from plain values, nested tables included.

    Raises:
        ConfigError: An unknown key (the nearest known one is named), a missing key or a wrong type.
    """
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(fields)}"
            raise ConfigError(f"{prefix}{key}: no such key in {kind.__name__}; {hint}")
        made[key] = _convert(hints[key], value, f"{prefix}{key}")
    missing = [
        name for name, f in fields.items()
        if name not in made and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ConfigError(f"{prefix}{missing[0]} is missing; add it to the configuration")
    return kind(**made)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}={value!r}; expected a table [{where}]")
        return from_dict(hint, value, where)
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{where} is too large a whole number; expected a float") from error
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}={value!r} is a {type(value).__name__}; expected {hint.__name__}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """The plain values of a configuration, nested tables included."""
    return dataclasses.asdict(config)


def load_toml(kind: type[T], path: str | Path) -> T:
    """Read a configuration from a TOML file.

    Raises:
        ConfigError: No such file, not TOML, or values that do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected a TOML configuration")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of text that is not UTF-8, and of numbers beyond Python's limit
        raise ConfigError(f"{path}: not TOML ({error}); mend that place") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a TOML configuration") from error
    try:
        return from_dict(kind, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def save_toml(config: Any, path: str | Path) -> None:
    """Write a configuration as TOML, whole or not at all."""
    with replacing_file(Path(path)) as temporary:
        temporary.write_text(tomli_w.dumps(to_dict(config)), encoding="utf-8")
