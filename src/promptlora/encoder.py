"""``PromptEncoder``: prompt states ``[prompts, tokens, width]`` and their mask become a context ``[prompts, d]``.

A small transformer over the states, then attention pooling with learned queries. There is no dropout,
and positions come from the mask, so neither padding nor the other prompts of a batch change a context.
It knows nothing of text, tokens or LoRA.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from promptlora.config import HyperNetworkConfig


def sinusoidal_positions(positions: Int[Tensor, "p t"], width: int) -> Float[Tensor, "p t {width}"]:
    """Sine and cosine of each position at ``width / 2`` wavelengths (Vaswani et al. 2017, section 3.5)."""
    rates = torch.exp(torch.arange(0, width, 2, device=positions.device) * (-math.log(10000.0) / width))
    angles = positions[..., None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :width]


class _Block(nn.Module):
    """A pre-norm transformer layer, bidirectional, without dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "p t d"], mask: Bool[Tensor, "p t"]) -> Float[Tensor, "p t d"]:
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask[:, None, None, :]
        )  # [p, heads, t, d / heads]
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_mlp(x))


class AttentionPooling(nn.Module):
    """Learned queries attend to the states; what they gather is joined and projected to one vector."""

    def __init__(self, width: int, heads: int, queries: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(queries, width) / math.sqrt(width))
        self.norm = nn.LayerNorm(width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(queries * width, width)

    def forward(self, x: Float[Tensor, "p t d"], mask: Bool[Tensor, "p t"]) -> Float[Tensor, "p d"]:
        k, v = self.kv(self.norm(x)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        q = self.queries.unflatten(-1, (self.heads, -1)).expand(x.shape[0], -1, -1, -1)
        gathered = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask[:, None, None, :]
        )  # [p, heads, queries, d / heads]
        return self.out(gathered.transpose(1, 2).flatten(1))


class PromptEncoder(nn.Module):
    """Prompt states and mask to a context.

    Args:
        config: Widths and depths.
        state_size: Width of the prompt states, the base's hidden size.
    """

    def __init__(self, config: HyperNetworkConfig, state_size: int) -> None:
        super().__init__()
        width = config.context_size
        self.norm_in = nn.LayerNorm(state_size)
        self.project = nn.Linear(state_size, width)
        self.blocks = nn.ModuleList(_Block(width, config.encoder_heads) for _ in range(config.encoder_layers))
        self.pool = AttentionPooling(width, config.encoder_heads, config.pooling_queries)
        self.norm_out = nn.LayerNorm(width)

    def forward(
        self, prompt_states: Float[Tensor, "prompts tokens state"], prompt_mask: Bool[Tensor, "prompts tokens"]
    ) -> Float[Tensor, "prompts d"]:
        """Encode; ``prompt_mask`` is True where a token is real, on either side of the padding."""
        positions = (prompt_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        # What stands at a padded place, even a NaN, must not reach anything.
        states = prompt_states.masked_fill(~prompt_mask[..., None], 0.0).to(self.project.weight.dtype)
        x = self.project(self.norm_in(states))
        x = x + sinusoidal_positions(positions, x.shape[-1]).to(x.dtype)
        for block in self.blocks:
            x = block(x, prompt_mask)
        return self.norm_out(self.pool(x, prompt_mask))
