"""``ShapeGroupedLoRAGenerator``: context and one embedding per projection become a LoRA for every projection.

It knows shapes of projections; nothing of prompts, files or the base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from promptlora.errors import ConfigError
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.heads import head_parameters, make_head
from promptlora.lora import LoRAWeights
from promptlora.projections import Projection, group_by_shape, layer_of


def context_layers(config: HyperNetworkConfig, projections: Sequence[Projection]) -> tuple[int, ...] | None:
    """The layers that have a context of their own, counted from 0; None where all share one."""
    return tuple(sorted({layer_of(projection) for projection in projections})) if config.source == "layers" else None


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = x + self.mlp(self.norm(x))
        return mixed


class ShapeGroupedLoRAGenerator(nn.Module):
    """Context and one learned embedding per projection to A and B of all projections.

    The generated part comes from one head pair per shape, all projections of a shape in one matmul. With
    ``config.static`` a learned LoRA, the same for every prompt, is added: A = A0 + dA(context),
    B = B0 + dB(context). B starts at zero, so the adapted model starts as the base.

    Args:
        config: Widths, rank, kind of head.
        projections: What to write for.
    """

    def __init__(self, config: HyperNetworkConfig, projections: Sequence[Projection]) -> None:
        super().__init__()
        self.config = config
        self.projections = tuple(projections)
        self.groups = group_by_shape(self.projections)
        width, rank = config.context_size, config.rank
        if config.generated:
            self.embeddings = nn.Parameter(torch.randn(len(self.projections), width))  # in the order of the groups
            self.context = nn.Linear(width, width)
            self.trunk = nn.Sequential(*(_ResidualBlock(width) for _ in range(config.trunk_layers)))
            self.norm = nn.LayerNorm(width)
            nn.init.normal_(self.context.weight, std=1 / math.sqrt(width))  # as large as the embeddings
        layers = context_layers(config, self.projections) or ()
        grouped = [projection for group in self.groups.values() for projection in group]
        self._layer_index = [layers.index(layer_of(projection)) for projection in grouped] if layers else None
        self.heads = nn.ModuleDict()
        self.static_A = nn.ParameterDict()
        self.static_B = nn.ParameterDict()
        for (d_in, d_out), group in self.groups.items():
            key = f"{d_in}x{d_out}"
            if config.generated:
                self.heads[key] = make_head(config, d_in, d_out)
            if config.static:
                self.static_A[key] = nn.Parameter(torch.randn(len(group), d_in, rank) / math.sqrt(d_in))
                self.static_B[key] = nn.Parameter(torch.zeros(len(group), rank, d_out))

    def features(self, context: Float[Tensor, "prompts *layers d"]) -> Float[Tensor, "prompts n d"]:
        """What enters the heads, for each prompt and projection; never zero, as it leaves a LayerNorm."""
        each: Tensor = self.context(context)
        each = each[:, None, :] if self._layer_index is None else each[:, self._layer_index]
        mixed: Tensor = self.norm(self.trunk(each + self.embeddings))
        return mixed

    def forward(
        self, context: Float[Tensor, "prompts *layers d"], *, generated: bool = True, strength: float | None = None
    ) -> LoRAWeights:
        """Write the LoRA of each prompt.

        Args:
            context: The encoded prompts; with ``config.source = "layers"`` a context for each layer.
            generated: False leaves the static part alone: multi-task LoRA, the same for every prompt.
            strength: Factor of the generated A and B; by default as configured.

        Raises:
            ConfigError: ``generated=False`` without a static part.
        """
        if not generated and not self.config.static:
            raise ConfigError("generated=False needs a static part; this hypernetwork has static=False")
        prompts = context.shape[0]
        generated = generated and self.config.generated
        factor = self.config.strength if strength is None else strength
        features = self.features(context) if generated else context.new_zeros(prompts, len(self.projections), 0)
        parts = features.split([len(group) for group in self.groups.values()], dim=1)
        matrices = {}
        for part, (shape, group) in zip(parts, self.groups.items(), strict=True):
            key = f"{shape[0]}x{shape[1]}"
            if generated:
                A, B = self.heads[key](part)  # [prompts, n, in, rank], [prompts, n, rank, out]
                if factor != 1:
                    A, B = A * factor, B * factor
                if self.config.static:
                    A, B = A + self.static_A[key], B + self.static_B[key]
            else:
                A = self.static_A[key].expand(prompts, -1, -1, -1)
                B = self.static_B[key].expand(prompts, -1, -1, -1)
            for projection, a, b in zip(group, A.unbind(1), B.unbind(1), strict=True):
                matrices[projection.name] = (a, b)
        ordered = {projection.name: matrices[projection.name] for projection in self.projections}
        return LoRAWeights(ordered, self.config.scaling, projections=self.projections)

    def head_parameter_count(self) -> int:
        """Parameters of all heads, by arithmetic."""
        if not self.config.generated:
            return 0
        return sum(head_parameters(self.config, d_in, d_out) for d_in, d_out in self.groups)
