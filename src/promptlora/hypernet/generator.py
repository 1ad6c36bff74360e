"""``ShapeGroupedLoRAGenerator``: generates a LoRA for every projection from a context and one embedding per projection.

It knows shapes of projections; it knows nothing of prompts, files or the base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from promptlora.errors import ConfigError
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.encoder import Encoded
from promptlora.hypernet.heads import head_parameters, make_head
from promptlora.lora import Free, LoRAWeights, Shared
from promptlora.lora.forms import Form
from promptlora.projections import Projection, group_by_shape, layer_of

_FIRST_GATE = 0.9


def context_layers(config: HyperNetworkConfig, projections: Sequence[Projection]) -> tuple[int, ...] | None:
    """The layers with a separate context, counted from 0; None if all layers share one context."""
    return tuple(sorted({layer_of(projection) for projection in projections})) if config.source == "layers" else None


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = x + self.mlp(self.norm(x))
        return mixed


class _TokenReading(nn.Module):
    """Projections attend to the encoded tokens of their prompt; the attention output is added to their features."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_tokens = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "p n d"], tokens: Float[Tensor, "p t d"], mask: Bool[Tensor, "p t"]
    ) -> Float[Tensor, "p n d"]:
        q = self.query(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [p, heads, n, d / heads]
        k, v = self.key_value(self.norm_tokens(tokens)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        gathered = F.scaled_dot_product_attention(
            q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask[:, None, None, :]
        )
        read: Tensor = x + self.out(gathered.transpose(1, 2).flatten(2))
        return read


def _gate_map(width: int) -> nn.Sequential:
    """Maps a context to the logit of a gate; initially about ``logit(0.9)`` for every context."""
    inner = max(1, width // 4)
    first, last = nn.Linear(width, inner), nn.Linear(inner, 1)
    nn.init.normal_(last.weight, std=0.1 / math.sqrt(inner))
    nn.init.constant_(last.bias, math.log(_FIRST_GATE / (1 - _FIRST_GATE)))
    return nn.Sequential(first, nn.GELU(), last)


def _added(part: Tensor | None, static: Tensor | None, prompts: int, dtype: torch.dtype | None) -> Tensor:
    """Add the generated and the static part of all projections of a shape, ``[prompts, n, ...]``, with one rounding."""
    if part is None:
        assert static is not None
        return static.to(dtype or static.dtype).expand(prompts, *(-1,) * static.ndim)
    both = part if static is None else part + static
    return both.to(dtype or both.dtype)


class ShapeGroupedLoRAGenerator(nn.Module):
    """Generates the LoRA of all projections from a context and one learned embedding per projection.

    The generated part comes from one head per shape, which handles all projections of that shape in one matmul. With
    ``config.static``, a learned LoRA that is the same for every prompt is added. At initialisation the adapted model
    equals the base, but gradients are not zero:

    - Heads that generate A and B: ``A = A0 + dA(context)``, ``B = B0 + dB(context)``. A0 is random; B0 and dB are zero.
    - Heads that generate cores: ``A @ (C0 + C(context)) @ B``, where A and B are learned and shared by all prompts. A
      is random with variance ``1 / in`` and B with variance ``1 / rank``, so both preserve unit variance, and the
      columns of A and the rows of B are nearly orthogonal. C0 and C are zero. The first gradient of C0 and of the head
      is therefore not zero, while the gradient of A and B is zero until the first step. The alternative, an identity C0
      and a zero B, would give the head no gradient.

    With ``config.bounds``, a head's output x becomes ``tanh(x * exp(-s0)) * exp(s)``, with one learned s per matrix
    that starts at ``s0 = config.bound_start`` (Code2LoRA's ``tanh(x) * exp(s)``, with a constant inside the tanh). The
    result is zero at the start because x is zero, and it cannot exceed ``exp(s)``. The constant makes the initial slope
    at zero equal to 1. Without it, the head would learn ``exp(3.5) = 33`` times more slowly, because Adam's steps do
    not depend on the scale. With ``config.gates``, the result is multiplied by :meth:`gate`.

    Args:
        config: Widths, rank, kind of head.
        projections: The projections to generate a LoRA for.
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
            if config.reads_tokens:
                self.reading = nn.ModuleList(
                    _TokenReading(width, config.encoder_heads) for _ in range(config.trunk_layers)
                )
            nn.init.normal_(self.context.weight, std=1 / math.sqrt(width))  # same magnitude as the embeddings
            self.gate_map = _gate_map(width) if config.gates else None
        layers = context_layers(config, self.projections) or ()
        grouped = [projection for group in self.groups.values() for projection in group]
        self._layer_index = [layers.index(layer_of(projection)) for projection in grouped] if layers else None
        self.heads = nn.ModuleDict()
        self.scales = nn.ParameterDict()  # s, one for each matrix that a head generates
        self.static_A, self.static_B = nn.ParameterDict(), nn.ParameterDict()
        self.factor_A, self.factor_B, self.static_C = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for (d_in, d_out), group in self.groups.items():
            key, n = f"{d_in}x{d_out}", len(group)
            if config.generated:
                self.heads[key] = make_head(config, d_in, d_out)
                if config.bounds:
                    outputs = 1 if config.shares_factors else 2
                    self.scales[key] = nn.Parameter(torch.full((outputs,), config.bound_start))
            if config.shares_factors:
                core = (rank,) if config.head == "diagonal" else (rank, rank)
                self.factor_A[key] = nn.Parameter(torch.randn(n, d_in, rank) / math.sqrt(d_in))
                self.factor_B[key] = nn.Parameter(torch.randn(n, rank, d_out) / math.sqrt(rank))
                if config.static:
                    self.static_C[key] = nn.Parameter(torch.zeros(n, *core))
            elif config.static:
                self.static_A[key] = nn.Parameter(torch.randn(n, d_in, rank) / math.sqrt(d_in))
                self.static_B[key] = nn.Parameter(torch.zeros(n, rank, d_out))
        self._copied_factors: dict[
            tuple[str, torch.dtype, bool], tuple[tuple[tuple[int, int], ...], Tensor, Tensor]
        ] = {}

    def features(self, prompts: Tensor | Encoded) -> Float[Tensor, "prompts n d"]:
        """The input of the heads for each prompt and projection; never zero, because it is the output of a LayerNorm.

        Args:
            prompts: The contexts ``[prompts, *layers, d]``; with ``config.reads_tokens``, also the encoded tokens.

        Raises:
            ConfigError: ``config.reads_tokens`` is set, but only contexts were given.
        """
        each: Tensor = self.context(prompts.context if isinstance(prompts, Encoded) else prompts)
        each = each[:, None, :] if self._layer_index is None else each[:, self._layer_index]
        x: Tensor = each + self.embeddings
        if self.config.reads_tokens:
            if not isinstance(prompts, Encoded):
                raise ConfigError(
                    "reads_tokens=true needs the encoded tokens. Fix: pass what PromptEncoder.encode gives"
                )
            for read, block in zip(self.reading, self.trunk, strict=True):
                x = block(read(x, prompts.tokens, prompts.mask))
        else:
            x = self.trunk(x)
        mixed: Tensor = self.norm(x)
        return F.normalize(mixed, dim=-1) * math.sqrt(mixed.shape[-1]) if self.config.normalises else mixed

    def gate(self, context: Float[Tensor, "prompts *layers d"]) -> Float[Tensor, " prompts"]:
        """The factor of the generated part for each prompt, in [0, 1]; initially about 0.9 for all prompts.

        Raises:
            ConfigError: The hypernetwork has no gate.
        """
        if not self.config.generated or self.gate_map is None:
            raise ConfigError(f"gate: this hypernetwork (head={self.config.head}) has none. Expected gate=true")
        each = self.gate_map(context).squeeze(-1)  # [prompts, *layers]
        gate: Tensor = torch.sigmoid(each.flatten(1).mean(1) if each.ndim > 1 else each)
        return gate

    def _generated(self, prompts: Tensor | Encoded) -> dict[str, tuple[Tensor, ...]]:
        """The outputs of the heads by shape: A and B, or the cores, each ``[prompts, n, ...]``."""
        context = prompts.context if isinstance(prompts, Encoded) else prompts
        gate = self.gate(context) if self.config.gates else None
        parts = self.features(prompts).split([len(group) for group in self.groups.values()], dim=1)
        found = {}
        for part, (key, head) in zip(parts, self.heads.items(), strict=True):
            written: tuple[Tensor, ...] = head(part)
            if self.config.bounds:
                slope = math.exp(-self.config.bound_start)
                written = tuple(torch.tanh(x * slope) * s.exp() for x, s in zip(written, self.scales[key], strict=True))
            if gate is not None:
                written = tuple(x * gate.view(-1, *(1,) * (x.ndim - 1)) for x in written)
            found[key] = written
        return found

    def forward(
        self,
        context: Tensor | Encoded,
        *,
        generated: bool = True,
        dtype: torch.dtype | None = None,
    ) -> LoRAWeights:
        """Generate the LoRA of each prompt.

        With gradients or in training mode, shared factors are views of the parameters and change with later training
        steps. Otherwise they are one copy for all calls until the parameters change, so that finished adapters stay as
        they are.

        Args:
            context: The contexts ``[prompts, d]`` (with ``config.source = "layers"``, one per layer), or the result of
                :meth:`PromptEncoder.encode`.
            generated: False returns only the static part, a multi-task LoRA that is the same for every prompt.
            dtype: Dtype of the LoRA, by default that of the parameters. All projections of a shape are cast at once.

        Raises:
            ConfigError: ``generated`` is False, but there is no static part.
        """
        if not generated and not self.config.static:
            raise ConfigError("generated=False needs a static part; this hypernetwork has static=False")
        prompts = (context.context if isinstance(context, Encoded) else context).shape[0]
        written = self._generated(context) if generated and self.config.generated else {}
        forms: dict[str, Form] = {}
        for (d_in, d_out), group in self.groups.items():
            key = f"{d_in}x{d_out}"
            statics = [self.static_C] if self.config.shares_factors else [self.static_A, self.static_B]
            matrices = [
                _added(part, static[key] if self.config.static else None, prompts, dtype).unbind(1)
                for part, static in zip(written.get(key, [None] * len(statics)), statics, strict=True)
            ]
            if self.config.shares_factors:
                A, B = self._factors(key, dtype)
                made = [Shared(*form) for form in zip(A.unbind(0), B.unbind(0), matrices[0], strict=True)]
                forms.update(zip((p.name for p in group), made, strict=True))
            else:
                pairs = [Free(*form) for form in zip(*matrices, strict=True)]
                forms.update(zip((p.name for p in group), pairs, strict=True))
        ordered = {projection.name: forms[projection.name] for projection in self.projections}
        return LoRAWeights(ordered, self.config.scaling, projections=self.projections)

    def _factors(self, key: str, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        """The shared factors of a shape, ``[n, in, rank]`` and ``[n, rank, out]``.

        In evaluation mode without gradients they are a copy, which is cached until the parameters change: adapters from
        separate calls share the same tensors (``LoRAWeights.stack`` detects shared factors by identity), and an optimizer
        step between two calls changes neither the first adapter nor leaves the second with old factors.
        """
        A, B = self.factor_A[key], self.factor_B[key]
        dtype = dtype or A.dtype
        if self.training or torch.is_grad_enabled():
            return A.to(dtype), B.to(dtype)
        place = (key, dtype, torch.is_inference_mode_enabled())
        # The address tells a copied module, whose parameters count their versions from 0 again.
        version = tuple((0 if matrix.is_inference() else matrix._version, matrix.data_ptr()) for matrix in (A, B))
        if place not in self._copied_factors or self._copied_factors[place][0] != version:
            self._copied_factors[place] = version, A.detach().to(dtype, copy=True), B.detach().to(dtype, copy=True)
        return self._copied_factors[place][1:]

    @torch.no_grad()
    def shared_factors(self, dtype: torch.dtype | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """The factors that all adapters share, ``name -> (A [in, rank], B [rank, out])``; empty in the free form."""
        if not self.config.shares_factors:
            return {}
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for (d_in, d_out), group in self.groups.items():
            A, B = self._factors(f"{d_in}x{d_out}", dtype)
            found.update(zip((p.name for p in group), zip(A.unbind(0), B.unbind(0), strict=True), strict=True))
        return found

    def train(self, mode: bool = True) -> ShapeGroupedLoRAGenerator:
        """Set training or evaluation mode."""
        self._copied_factors.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ShapeGroupedLoRAGenerator:
        self._copied_factors.clear()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._copied_factors.clear()
        super()._load_from_state_dict(*args, **options)

    def head_parameter_count(self) -> int:
        """The number of parameters of all heads, computed from the sizes."""
        if not self.config.generated:
            return 0
        return sum(head_parameters(self.config, d_in, d_out) for d_in, d_out in self.groups)
