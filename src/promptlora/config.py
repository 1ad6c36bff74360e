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
PROMPT_SOURCES = ("embeddings", "hidden", "layers")
OBJECTIVES = ("sft", "distill", "reconstruct")
BASE_DTYPES = ("float32", "bfloat16")

T = TypeVar("T")


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not 0 < value < math.inf:
            raise ConfigError(f"{name}={value} in {type(owner).__name__}; expected a finite number above 0")


def _not_negative(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name}={value} in {type(owner).__name__}; expected a finite number, 0 or more")


def _one_of(owner: object, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(owner, name)
    if value not in choices:
        raise ConfigError(f"{name}={value!r} in {type(owner).__name__}; expected one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class HyperNetworkConfig:
    """The shape of a hypernetwork.

    Attributes:
        source: Where prompt states come from: the base's token ``embeddings``; the ``hidden`` states that leave
            layer ``source_layer`` of the frozen base; or all ``layers``: those that enter layer i make the
            context of layer i's projections.
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
        strength: The generated part is multiplied by this when adapters are written, if nothing else is asked for; below 1
            it is held nearer to the static part, which helps on prompts unlike those of the training.
        vectors: How much of a prompt's function vector its adapter carries as one more rank of the middle o projections, if
            nothing else is asked for; 0 is none. Worth it where ``data.in_context_share`` taught the model to read prompts.
        generated: False leaves the learned LoRA alone, without encoder and heads: plain multi-task LoRA.
        first_layer: Layers below this one, counted from 0, get no adapter; their activations need no backward.
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
    strength: float = 1.0
    vectors: float = 0.0
    generated: bool = True
    first_layer: int = 0

    def __post_init__(self) -> None:
        _one_of(self, "source", PROMPT_SOURCES)
        _one_of(self, "head", HEAD_KINDS)
        _positive(
            self, "source_layer", "max_prompt_tokens", "context_size", "encoder_heads", "pooling_queries",
            "head_bottleneck", "rank", "alpha", "strength",
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
        if not (self.static or self.generated):
            raise ConfigError("static=False and generated=False leave no LoRA; set one of them to true")
        _not_negative(self, "vectors")
        if self.first_layer < 0:
            raise ConfigError(f"first_layer={self.first_layer}; expected 0 or more")

    @property
    def scaling(self) -> float:
        """``alpha / rank``."""
        return self.alpha / self.rank


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
        _positive(self, "max_input_tokens", "max_answer_tokens")
        for name in ("paraphrase_share", "in_context_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected a share from 0 to 1")
        _not_negative(self, "tasks")


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
        _not_negative(self, "weight_decay")
        for name in ("warmup", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class RegularizationConfig:
    """What keeps a hypernetwork from fitting its training tasks too closely; all off by default.

    Attributes:
        label_smoothing: Share of the target that is spread over the vocabulary; of the objective ``sft``.
        l1: Weight of the mean absolute entry of the generated matrices.
        l2: Weight of the mean squared entry of the generated matrices.
        neftune: Size of the uniform noise on the base's input embeddings, ``neftune / sqrt(tokens * width)`` an
            entry (Jain et al. 2023).
        prompt_dropout: Share of the prompt's tokens that the encoder does not see, drawn anew each step.
    """

    label_smoothing: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    neftune: float = 0.0
    prompt_dropout: float = 0.0

    def __post_init__(self) -> None:
        _not_negative(self, "l1", "l2", "neftune")
        for name in ("label_smoothing", "prompt_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected a share from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The teacher of the objective ``distill``, which reads the prompt in its context.

    Attributes:
        teacher: A folder or Hub id of a causal language model with the same tokenizer; empty for the base itself.
        adapter: A hypernetwork's folder; its adapter of the same prompt is on while the base teaches.
        cache: A folder written by ``promptlora teach``: the teacher is not run at all.
        tail: What is done with the words that a cache does not hold: ``bucket``, ``renormalise`` or ``ignore``.
        sft_share: Share of the loss that is cross-entropy with the rows' own answers, from 0 to 1.
    """

    teacher: str = ""
    adapter: str = ""
    cache: str = ""
    tail: str = "bucket"
    sft_share: float = 0.0

    def __post_init__(self) -> None:
        _one_of(self, "tail", ("bucket", "renormalise", "ignore"))
        if not 0 <= self.sft_share <= 1:
            raise ConfigError(f"sft_share={self.sft_share}; expected a share from 0 to 1")
        given = [name for name in ("teacher", "adapter", "cache") if getattr(self, name)]
        if len(given) > 1:
            raise ConfigError(f"{given[0]} and {given[1]} in DistillConfig; expected one teacher at most")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Training tasks that are held out, and how often their loss is measured.

    Attributes:
        tasks: How many tasks are held out, whole categories where rows have one, the same for every seed; 0: none.
        split: Their rows whose ``split`` is this are measured.
        rows: Rows of each.
        every: Steps between measurements.
    """

    tasks: int = 0
    split: str = "eval"
    rows: int = 8
    every: int = 100

    def __post_init__(self) -> None:
        _not_negative(self, "tasks")
        _positive(self, "rows", "every")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
        output: Folder of the run: checkpoints, logs, the trained hypernetwork.
        objective: ``sft``, the rows' own answers; ``distill``, a teacher that reads the prompt in its context;
            ``reconstruct``, adapters that were trained for prompts.
        base: Base model: empty for the embedded default, else a folder or Hub id.
        base_dtype: Dtype of the frozen base, ``float32`` or ``bfloat16``; its head and the hypernetwork are
            float32 in either case.
        attention: Attention kernel of the base, as transformers names it; empty for its own choice.
        steps: Optimizer steps.
        prompts_per_batch: Prompts (tasks) mixed in a batch; each is encoded once.
        rows_per_prompt: Rows of each prompt in a batch.
        accumulate: Parts that a batch is run in, one after another, to save memory; the losses are the same.
        row_weight: Whether a row counts once whatever its length (``row``) or each answer token (``token``).
        seed: Seed of initialisation, order and paraphrases.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: How many of the newest checkpoints are kept.
        margin_every: Steps between measurements of the steering margin and of what else shows a collapse.
        activation_checkpointing: Recompute activations of the base in backward, to save memory.
        prompt_states: Folder where the states of prompts in the base are kept between runs; empty keeps none.
        shard_base: With several processes, each keeps a part of the frozen base's layers (FSDP2).
    """

    output: str
    data: DataConfig
    objective: str = "sft"
    base: str = ""
    base_dtype: str = "float32"
    attention: str = ""
    steps: int = 1000
    prompts_per_batch: int = 8
    rows_per_prompt: int = 4
    accumulate: int = 1
    row_weight: str = "row"
    seed: int = 0
    checkpoint_every: int = 50
    keep_checkpoints: int = 2
    margin_every: int = 50
    activation_checkpointing: bool = False
    prompt_states: str = ""
    shard_base: bool = False
    hypernetwork: HyperNetworkConfig = field(default_factory=HyperNetworkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    regularization: RegularizationConfig = field(default_factory=RegularizationConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        _positive(
            self, "steps", "prompts_per_batch", "rows_per_prompt", "checkpoint_every", "keep_checkpoints",
            "accumulate", "margin_every",
        )  # fmt: skip
        _one_of(self, "objective", OBJECTIVES)
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
