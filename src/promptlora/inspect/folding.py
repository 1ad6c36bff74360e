"""Folding: the tokens that the chat template writes are shown together, so that the text's own tokens stand out.

Half of the tokens of a short chat come from the template and take most of the attention. A run of them becomes one
column that holds the sum of their weights, so every row still adds up to 1. The last token is never folded: the answer
starts from it. This module knows tokens and tables of weights; nothing of models or of how they are drawn.
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
    """Which tokens of a text in its chat template the template wrote.

    They are what the text has in common, at both ends, with another text in the same template.

    Raises:
        AttentionError: As for ``encode_text``.
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
    """Tokens in groups, in the order of the text.

    Attributes:
        tokens: The text of each token.
        groups: The tokens of each group; a group of several is a folded run.
    """

    tokens: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokens: Sequence[str], folded: Sequence[bool], keep: int | None = None) -> Fold:
        """Fold runs of two or more marked tokens, but not the last token.

        Args:
            tokens: The text of each token.
            folded: Which tokens are folded.
            keep: A token that is not folded either, since it is followed.
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
        """The groups of one token, by their place; only these are shown as rows."""
        return tuple(at for at, group in enumerate(self.groups) if len(group) == 1)

    @property
    def labels(self) -> tuple[str, ...]:
        """A label for each group: the token, or how many are folded."""
        return tuple(
            visible_text(self.tokens[group[0]]) if len(group) == 1 else f"template ({len(group)})"
            for group in self.groups
        )

    def place(self, token: int) -> int:
        """The group of a token."""
        return next(at for at, group in enumerate(self.groups) if token in group)

    def columns(self, weights: Tensor) -> Tensor:
        """Weights of the tokens as weights of the groups: ``[…, tokens]`` to ``[…, groups]``."""
        return torch.stack([weights[..., list(group)].sum(dim=-1) for group in self.groups], dim=-1)

    def table(self, weights: Tensor, visible: Tensor) -> Tensor:
        """One head's weights ``[tokens, tokens]`` as ``[rows, groups]``; NaN where the row sees no token of the group."""
        rows = [self.groups[at][0] for at in self.single]
        seen = self.columns(visible[rows].to(weights.dtype)) > 0
        return self.columns(weights[rows]).masked_fill(~seen, torch.nan)


def _open(group: Sequence[int], folded: Sequence[bool], keep: int | None) -> bool:
    """Whether a folded token may join this group."""
    return folded[group[-1]] and group[-1] != keep
