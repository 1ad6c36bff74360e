"""Folding: the tokens of the chat template are shown together, so that the text's own tokens stand out.

Half of the tokens of a short chat come from the template, and they get most of the attention. A run of them becomes one
column with the sum of their weights, so every row still sums to 1. The last token is never folded, because the answer
starts from it. This module knows tokens and tables of weights; it knows nothing of models or of drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptlora.adapt.prompt_lora import PromptLoRA
from promptlora.inspect.capture import encode_text
from promptlora.inspect.drawing import visible_text


def template_tokens(lm: PromptLoRA, text: str) -> tuple[bool, ...]:
    """Which tokens of a text in its chat template come from the template.

    These are the tokens that the text shares, at both ends, with another text in the same template.

    Raises:
        AttentionError: See ``encode_text``.
    """
    ids = encode_text(lm, text)
    stripped = text.strip()
    probe = next(mark for mark in "0123" if not stripped.startswith(mark) and not stripped.endswith(mark))
    other = encode_text(lm, probe)
    shortest = min(len(ids), len(other))
    start = next((i for i in range(shortest) if ids[i] != other[i]), shortest)
    end = next((i for i in range(shortest - start) if ids[-1 - i] != other[-1 - i]), shortest - start)
    return tuple(i < start or i >= len(ids) - end for i in range(len(ids)))


@dataclass(frozen=True)
class Fold:
    """Tokens in groups, in text order.

    Attributes:
        tokens: The text of each token.
        groups: The tokens of each group; a group of several tokens is a folded run.
    """

    tokens: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokens: Sequence[str], folded: Sequence[bool], keep: int | None = None) -> Fold:
        """Fold runs of two or more marked tokens, except the last token.

        Args:
            tokens: The text of each token.
            folded: Which tokens are folded.
            keep: A further token that is not folded, because the walk follows it.
        """
        groups: list[list[int]] = []
        for i, fold in enumerate(folded):
            alone = not fold or i in (keep, len(tokens) - 1)
            if alone or not groups or not _open(groups[-1], folded, keep):
                groups.append([i])
            else:
                groups[-1].append(i)
        return cls(tuple(tokens), tuple(map(tuple, groups)))

    @property
    def single(self) -> tuple[int, ...]:
        """Indices of the groups with one token; only these are shown as rows."""
        return tuple(at for at, group in enumerate(self.groups) if len(group) == 1)

    @property
    def labels(self) -> tuple[str, ...]:
        """A label per group: the token, or the number of folded tokens."""
        return tuple(
            visible_text(self.tokens[group[0]]) if len(group) == 1 else f"template ({len(group)})"
            for group in self.groups
        )

    def place(self, token: int) -> int:
        """The index of a token's group."""
        return next(at for at, group in enumerate(self.groups) if token in group)

    def columns(self, weights: Tensor) -> Tensor:
        """Convert weights of tokens to weights of groups: ``[…, tokens]`` to ``[…, groups]``."""
        return torch.stack([weights[..., list(group)].sum(dim=-1) for group in self.groups], dim=-1)

    def table(self, weights: Tensor, visible: Tensor) -> Tensor:
        """One head's weights ``[tokens, tokens]`` as ``[rows, groups]``; NaN if the row sees no token of the group."""
        rows = [self.groups[at][0] for at in self.single]
        seen = self.columns(visible[rows].to(weights.dtype)) > 0
        return self.columns(weights[rows]).masked_fill(~seen, torch.nan)


def _open(group: Sequence[int], folded: Sequence[bool], keep: int | None) -> bool:
    """Whether a folded token may join this group."""
    return folded[group[-1]] and group[-1] != keep
