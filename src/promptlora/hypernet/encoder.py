"""``PromptEncoder``: encodes prompt states ``[prompts, tokens, width]`` and their mask into a context ``[prompts, d]``.

The encoder joins two paths: a small transformer over the states with attention pooling by learned queries, and the
plain mean of the states. With ``prompt_format = "chat"`` there is a third path, from the last state. All read standardised states. The hidden states of a language model share a large common
component (the means of two prompts are nearly parallel), so without standardisation the contexts of different prompts
would start almost equal. There is no dropout, positions come from the mask and statistics are frozen, so neither
padding nor the other prompts of a batch change a context.

If a prompt's states come from two models, each model has its own statistics, projection and learned vector. The
transformer attends to the states of both, and the mean is taken over those of the first. This file knows nothing of
text, tokens or LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from promptlora.errors import ConfigError
from promptlora.hypernet.config import HyperNetworkConfig


def sinusoidal_positions(
    positions: Int[Tensor, "p t"], width: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "p t {width}"]:
    """Sine and cosine of each position at ``width / 2`` wavelengths (Vaswani et al. 2017, section 3.5)."""
    # In bfloat16 an angle above 256 would be off by more than a radian: angles have at least the precision of float32.
    steps = torch.arange(0, width, 2, device=positions.device, dtype=torch.promote_types(dtype, torch.float32))
    rates = torch.exp(steps * (-math.log(10000.0) / width))
    angles = positions[..., None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :width].to(dtype)


def _spread(values: Float[Tensor, "n ... state"]) -> Float[Tensor, "... state"]:
    """Standard deviation of each channel, but at least a tenth of the median over channels.

    MiniLM has an almost constant channel. Divided by its own standard deviation, the rounding errors of float16 or of
    another device would become the largest value of the state.
    """
    std = values.std(0)
    median = std.masked_fill(std == 0, torch.nan).nanmedian(dim=-1, keepdim=True).values.nan_to_num(0.0)
    return torch.maximum(std, median / 10).clamp(min=1e-6)


class Encoded(NamedTuple):
    """The generator's input: one context per prompt, the encoded tokens, and the mask of the real tokens."""

    context: Float[Tensor, "prompts *layers d"]
    tokens: Float[Tensor, "prompts tokens d"]
    mask: Bool[Tensor, "prompts tokens"]


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
        left: Tensor = x + self.mlp(self.norm_mlp(x))
        return left


class AttentionPooling(nn.Module):
    """Learned queries attend to the states; their outputs are concatenated and projected to one vector."""

    def __init__(self, width: int, heads: int, queries: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(queries, width) / math.sqrt(width))
        self.norm = nn.LayerNorm(width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(queries * width, width)

    def forward(self, x: Float[Tensor, "p t d"], mask: Bool[Tensor, "p t"]) -> Float[Tensor, "p d"]:
        """Pool the states; the mask is True where a state is real."""
        k, v = self.kv(self.norm(x)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        q = self.queries.unflatten(-1, (self.heads, -1)).expand(x.shape[0], -1, -1, -1)
        gathered = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask[:, None, None, :]
        )  # [p, heads, queries, d / heads]
        joined: Tensor = self.out(gathered.transpose(1, 2).flatten(1))
        return joined


class PromptEncoder(nn.Module):
    """Encodes prompt states and their mask into one context, or into one context per layer.

    Args:
        config: Widths and depths.
        state_size: Width of the prompt states; with ``config.two_parts`` the last channel marks the part of a state.
        layers: The layers that get a context, for ``config.source = "layers"``. The states then cover all layers,
            ``[prompts, tokens, layers, state]``, and the layers share everything except their statistics.
    """

    token_mean: Tensor
    token_std: Tensor
    prompt_mean: Tensor
    prompt_std: Tensor
    last_mean: Tensor
    last_std: Tensor

    def __init__(self, config: HyperNetworkConfig, state_size: int, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        width = config.context_size
        self.layers = None if layers is None else list(layers)
        self.two_parts = config.two_parts
        if self.two_parts:
            state_size -= 1
        shape = (state_size,) if self.layers is None else (len(self.layers), state_size)
        of_tokens = (2, state_size) if self.two_parts else shape
        self.register_buffer("token_mean", torch.zeros(of_tokens))
        self.register_buffer("prompt_mean", torch.zeros(shape))
        self.register_buffer("token_std", torch.ones(of_tokens))
        self.register_buffer("prompt_std", torch.ones(shape))
        self.reads_last = config.prompt_format == "chat"
        if self.reads_last:
            self.register_buffer("last_mean", torch.zeros(shape))
            self.register_buffer("last_std", torch.ones(shape))
            self.project_last = nn.Linear(state_size, width)
        self.project = nn.Linear(state_size, width)
        if self.two_parts:
            self.project_second = nn.Linear(state_size, width)
            self.parts = nn.Parameter(torch.randn(2, width) / 2)
        self.blocks = nn.ModuleList(_Block(width, config.encoder_heads) for _ in range(config.encoder_layers))
        self.pool = AttentionPooling(width, config.encoder_heads, config.pooling_queries)
        self.project_mean = nn.Linear(state_size, width)
        self.norm_out = nn.LayerNorm(width)
        nn.init.normal_(self.project_mean.weight, std=1 / math.sqrt(state_size))
        if self.reads_last:
            nn.init.normal_(self.project_last.weight, std=1 / math.sqrt(state_size))
        nn.init.normal_(self.pool.out.weight, std=0.1 / math.sqrt(self.pool.out.in_features))

    @torch.no_grad()
    def fit_statistics(self, states: Sequence[Float[Tensor, "_ *layers state"]]) -> None:
        """Fit mean and standard deviation, of tokens and of the prompts' means, to the states of some prompts.

        Args:
            states: For each of two or more prompts, ``[tokens, state]`` or ``[tokens, layers, state]``. The first token
                is excluded from the token statistics, because in many models it is an attention sink whose state is a
                hundred times as long as the others.

        Raises:
            ConfigError: There are fewer than two prompts.
        """
        if len(states) < 2:
            raise ConfigError(f"statistics of {len(states)} prompts; expected two or more; add tasks or paraphrases")
        parts = [[self._chosen(s) for s in states]]
        if self.two_parts:
            parts = [[s[s[:, -1] == part, :-1] for s in states] for part in (0, 1)]
        for part, of_prompts in enumerate(parts):
            tokens = torch.cat([s[1:] if len(s) > 1 else s for s in of_prompts]).float()
            at = part if self.two_parts else slice(None)
            self.token_mean[at] = tokens.mean(0)
            self.token_std[at] = _spread(tokens)
        means = torch.stack([self._standardize(s, 0).mean(0) for s in parts[0]])
        self.prompt_mean.copy_(means.mean(0))
        self.prompt_std.copy_(_spread(means))
        if self.reads_last:
            lasts = torch.stack([s[-1] for s in parts[-1]]).float()
            self.last_mean.copy_(lasts.mean(0))
            self.last_std.copy_(_spread(lasts))

    def _chosen(self, states: Float[Tensor, "*axes state"]) -> Float[Tensor, "*chosen state"]:
        """The states of the layers that get a context."""
        return states if self.layers is None else states[..., self.layers, :]

    def _standardize(self, states: Float[Tensor, "... state"], part: int) -> Float[Tensor, "... state"]:
        mean, std = self.token_mean, self.token_std
        if self.two_parts:
            mean, std = mean[part], std[part]
        return ((states.to(mean.dtype) - mean) / std).clamp(-5, 5)

    def _embed(
        self, states: Float[Tensor, "p t state"], mask: Bool[Tensor, "p t"], part: int
    ) -> tuple[Float[Tensor, "p t d"], Float[Tensor, "p state"]]:
        """The transformer's input for the states of one part, and the mean of these states."""
        # Values at padded positions, even NaN, must not affect any result.
        states = states.masked_fill(~mask[..., None], 0.0)
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        x = self.project_second(states) if part else self.project(states)
        x = x + sinusoidal_positions(positions, x.shape[-1], x.dtype)
        return x, states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    def forward(
        self, prompt_states: Float[Tensor, "prompts tokens *layers state"], prompt_mask: Bool[Tensor, "prompts tokens"]
    ) -> Float[Tensor, "prompts *chosen d"]:
        """Only the contexts; see :meth:`encode`."""
        return self.encode(prompt_states, prompt_mask).context

    def encode(
        self, prompt_states: Float[Tensor, "prompts tokens *layers state"], prompt_mask: Bool[Tensor, "prompts tokens"]
    ) -> Encoded:
        """Encode prompts; ``prompt_mask`` is True where a token is real. Padding may be on either side."""
        mean_of, std_of = self.prompt_mean, self.prompt_std
        last = self._last(prompt_states, prompt_mask) if self.reads_last else None
        if self.two_parts:
            values, second = prompt_states[..., :-1], prompt_mask & (prompt_states[..., -1] > 0)
            first = prompt_mask & ~second
            x, mean = self._embed(self._standardize(values, 0), first, 0)
            y, _ = self._embed(self._standardize(values, 1), second, 1)
            x = torch.where(second[..., None], y + self.parts[1], x + self.parts[0])
        else:
            states = self._standardize(self._chosen(prompt_states), 0)
            if self.layers is not None:  # each layer is treated as a separate prompt
                states = states.transpose(1, 2).flatten(0, 1)
                prompt_mask = prompt_mask.repeat_interleave(len(self.layers), dim=0)
                prompts = len(prompt_states)
                mean_of, std_of = mean_of.repeat(prompts, 1), std_of.repeat(prompts, 1)
            x, mean = self._embed(states, prompt_mask, 0)
        for block in self.blocks:
            x = block(x, prompt_mask)
        mean = ((mean - mean_of) / std_of).clamp(-5, 5)
        gathered = self.pool(x, prompt_mask) + self.project_mean(mean)
        context: Tensor = self.norm_out(gathered if last is None else gathered + last)
        if self.layers is not None:
            context = context.unflatten(0, (-1, len(self.layers)))
        return Encoded(context, x, prompt_mask)

    def _last(
        self, states: Float[Tensor, "p t *layers state"], mask: Bool[Tensor, "p t"]
    ) -> Float[Tensor, "prompts d"]:
        """The part of the context that comes from each prompt's last state, where the base's answer would start.

        With one context per layer, ``prompts`` counts each prompt once per layer.
        """
        places = torch.arange(mask.shape[1], device=mask.device)
        at = torch.where(mask, places, 0).amax(1)
        last = self._chosen(states[torch.arange(len(at), device=at.device), at])
        if self.two_parts:
            last = last[..., :-1]
        last = ((last.to(self.last_mean.dtype) - self.last_mean) / self.last_std).clamp(-5, 5)
        projected: Tensor = self.project_last(last)
        return projected if self.layers is None else projected.flatten(0, 1)
