"""``HyperNetworkConfig``: the shape of a hypernetwork."""

from __future__ import annotations

from dataclasses import dataclass

from promptlora.errors import ConfigError
from promptlora.settings import at_most, check, not_negative, one_of, positive

HEAD_KINDS = ("full", "shared", "rankwise", "lowrank")
PROMPT_SOURCES = ("embeddings", "hidden", "layers")


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
        check(self)
        at_most(self, 1 << 20, "max_prompt_tokens")
        at_most(self, 1 << 16, "context_size", "head_bottleneck")
        at_most(self, 1 << 12, "rank", "encoder_heads", "pooling_queries", "source_layer", "first_layer")
        at_most(self, 256, "encoder_layers", "trunk_layers")
        one_of(self, "source", PROMPT_SOURCES)
        one_of(self, "head", HEAD_KINDS)
        positive(
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
        not_negative(self, "vectors")
        if self.first_layer < 0:
            raise ConfigError(f"first_layer={self.first_layer}; expected 0 or more")

    @property
    def scaling(self) -> float:
        """``alpha / rank``."""
        return self.alpha / self.rank
