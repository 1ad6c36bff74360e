"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

from promptlora.data.config import DataConfig
from promptlora.errors import ConfigError
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.settings import check, not_negative, one_of, positive

OBJECTIVES = ("sft", "distill", "reconstruct")
BASE_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Settings of the optimizer. Learning rates are the peak values of the schedule.

    Attributes:
        lr: Learning rate of the encoder and the trunk.
        head_lr_factor: The heads' learning rate is ``lr * head_lr_factor / fan_in``.
        static_lr: Learning rate of the static LoRA.
        weight_decay: Decoupled weight decay of the encoder, the trunk and the heads.
        clip: Maximum gradient norm of the encoder, trunk and static part together.
        head_clip: Maximum gradient norm of the heads.
        warmup: Share of the steps in which the rate rises from 0.
        final: The rate ends at this share of its peak, following a cosine.
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
        check(self)
        positive(self, "lr", "head_lr_factor", "static_lr", "clip", "head_clip")
        not_negative(self, "weight_decay")
        for name in ("warmup", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class RegularizationConfig:
    """Regularisation that keeps a hypernetwork from overfitting its training tasks; all off by default.

    Attributes:
        l2: Weight of the mean squared entry of the generated matrices.
        neftune: Scale of uniform noise on the base's input embeddings; each entry gets noise of magnitude
            ``neftune / sqrt(tokens * width)`` (Jain et al. 2023).
        contrastive: Weight of a loss that pulls the contexts of two wordings of a task together and pushes the contexts
            of different tasks apart.
    """

    l2: float = 0.0
    neftune: float = 0.0
    contrastive: float = 0.0

    def __post_init__(self) -> None:
        check(self)
        not_negative(self, "l2", "neftune", "contrastive")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The teacher of the objective ``distill``, which reads the prompt in its context.

    Attributes:
        teacher: A folder or Hub id of a causal language model with the same tokenizer; empty for the base itself.
        adapter: Folder of a hypernetwork; its adapter for the same prompt is switched on while the base teaches.
        cache: A folder written by ``promptlora teach``; the teacher is then not run at all.
        sft_share: Share of the loss that is cross-entropy with the rows' own answers, from 0 to 1.
    """

    teacher: str = ""
    adapter: str = ""
    cache: str = ""
    sft_share: float = 0.0

    def __post_init__(self) -> None:
        check(self)
        if not 0 <= self.sft_share <= 1:
            raise ConfigError(f"sft_share={self.sft_share}; expected a share from 0 to 1")
        given = [name for name in ("teacher", "adapter", "cache") if getattr(self, name)]
        if len(given) > 1:
            raise ConfigError(f"{given[0]} and {given[1]} in DistillConfig; expected one teacher at most")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Training tasks that are held out, and how often the loss on them is measured.

    Attributes:
        tasks: Number of held-out tasks, the same ones for every seed; whole categories if rows have categories. 0:
            none.
        split: The rows of held-out tasks with this ``split`` are measured.
        rows: Rows per task.
        every: Steps between measurements.
        sources: Hold tasks out of only this many of the first sources of ``data.train``; 0: of all sources.
    """

    tasks: int = 0
    split: str = "eval"
    rows: int = 8
    every: int = 100
    sources: int = 0

    def __post_init__(self) -> None:
        check(self)
        not_negative(self, "tasks", "sources")
        positive(self, "rows", "every")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
        output: Folder of the run: checkpoints, logs, the trained hypernetwork. ``Trainer(output=...)`` can set it
            instead.
        objective: ``sft`` learns the rows' own answers; ``distill`` learns from a teacher that reads the prompt in its
            context; ``reconstruct`` learns adapters that were trained for prompts.
        base: Base model: empty for the embedded default, otherwise a folder or Hub id.
        base_dtype: Dtype of the frozen base, ``float32`` or ``bfloat16``; its head and the hypernetwork are always
            float32.
        attention: Attention implementation of the base, by its name in transformers; empty for the default of
            transformers.
        steps: Optimizer steps.
        prompts_per_batch: Prompts (tasks) per batch; each is encoded once.
        rows_per_prompt: Rows per prompt in a batch.
        accumulate: Number of parts in which a batch is processed, one after another, to save memory; losses are the
            same.
        row_weight: Whether each row has equal weight (``row``) or each answer token has (``token``).
        seed: Seed of initialisation, order and paraphrases.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: Number of newest checkpoints that are kept.
        margin_every: Steps between measurements of the steering margin and of the other signs of collapse.
        activation_checkpointing: Recompute activations of the base in the backward pass, to save memory.
        workers: Number of processes that prepare batches ahead of time; 0: the training process prepares them.
        reader: The folder ``final`` of a multi-task LoRA (``hypernetwork.generated = false``), or a Hub id. It becomes the
            reader if ``hypernetwork.reader`` is set.
        prompt_states: Folder that caches the base's states of prompts between runs; empty disables the cache.
        trackers: Experiment trackers of Accelerate that log the metrics, such as ``tensorboard`` (into ``output``),
            ``wandb`` or ``mlflow``; a tracker needs its library and its own login.
        shard_base: With several processes, shard the layers of the frozen base across them (FSDP2).
    """

    output: str = ""
    data: DataConfig = field(default_factory=DataConfig)
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
    workers: int = 0
    reader: str = ""
    prompt_states: str = ""
    trackers: tuple[str, ...] = ("tensorboard",)
    shard_base: bool = False
    hypernetwork: HyperNetworkConfig = field(default_factory=HyperNetworkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    regularization: RegularizationConfig = field(default_factory=RegularizationConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        check(self)
        positive(
            self, "steps", "prompts_per_batch", "rows_per_prompt", "checkpoint_every", "keep_checkpoints",
            "accumulate", "margin_every",
        )  # fmt: skip
        not_negative(self, "workers")
        one_of(self, "objective", OBJECTIVES)
        one_of(self, "row_weight", ("row", "token"))
        one_of(self, "base_dtype", BASE_DTYPES)
        if bool(self.reader) != self.hypernetwork.reader:
            raise ConfigError(
                f"reader={self.reader!r} with hypernetwork.reader={str(self.hypernetwork.reader).lower()}. Expected both or "
                "none. Fix: set hypernetwork.reader = true and reader to the folder of a multi-task LoRA, or leave both out."
            )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed} in TrainConfig; expected a whole number from 0 to {2**32 - 1}")


def check_sources(
    config: TrainConfig, *, model: object = None, tokenizer: object = None, rows: object = None, teacher: object = None
) -> None:
    """Refuse a run in which the configuration and the arguments of ``Trainer`` both specify something, or neither does.

    Raises:
        ConfigError: Something is specified twice or not at all.
    """
    if (model is None) != (tokenizer is None):
        raise ConfigError("model and tokenizer: one of them is missing. Expected both or none. Fix: pass both.")
    options = config.distill
    named = options.teacher or options.adapter or options.cache
    for what, given, key, value in (
        ("model", model, "base", config.base),
        ("rows", rows, "data.train", config.data.train),
        ("teacher", teacher, "distill", named),
    ):
        if given is not None and value:
            raise ConfigError(
                f"{what} and {key}={value!r}: both are given. Expected one of them. Fix: leave {key} out of the configuration."
            )
    if teacher is not None and config.objective != "distill":
        raise ConfigError(
            f"teacher: not used by objective={config.objective!r}. Expected objective='distill'. Fix: change one of them."
        )
    if not config.output:
        raise ConfigError(
            "output is missing. Expected the folder of the run. Fix: add it to the configuration, or pass output."
        )
    if rows is None and not config.data.train:
        raise ConfigError(
            "data.train is missing. Expected rows to train on. Fix: add it to the configuration, or pass rows."
        )
