"""The distance of a prompt from the prompts that a hypernetwork was trained on.

A prompt is described by the mean of its states. All descriptions are standardised over the training prompts, and the
distance of two prompts is one minus the cosine of their descriptions. The distances of prompts from held-out task
categories define which distances are large. Only vectors are stored, no text. This file knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from promptlora.errors import CheckpointError, ConfigError
from promptlora.reading import read_tensors

FAR = 0.9  # a prompt is far if at least this share of the held-out prompts is nearer
_FORMAT = "promptlora.training-prompts/1"
_NAMES = ("prompts", "mean", "std", "heldout")


@dataclass(frozen=True)
class PromptDistance:
    """How far a prompt is from the nearest training prompt.

    Attributes:
        distance: One minus the cosine to the nearest training prompt, from 0 (the same) to 2.
        share: The share of prompts from held-out task categories that are nearer, from 0 to 1.
        far_above: The distance above which a prompt is called far.
    """

    distance: float
    share: float
    far_above: float

    @property
    def far(self) -> bool:
        """Whether the prompt is farther away than 90 % of the prompts from held-out categories."""
        return self.distance > self.far_above

    def to_dict(self) -> dict[str, float | bool]:
        """The values for JSON."""
        return {**asdict(self), "far": self.far}

    def __str__(self) -> str:
        numbers = f"(distance {self.distance:.2f}; far is above {self.far_above:.2f})"
        if self.far:
            return (
                f"This prompt is far from all training prompts {numbers}. Check the answers before you use its adapter."
            )
        return f"This prompt is near the training prompts {numbers}."


def describe(
    states: Float[Tensor, "prompts tokens *layers state"], mask: Bool[Tensor, "prompts tokens"], two_parts: bool
) -> Float[Tensor, "prompts width"]:
    """The mean state of each prompt, from the output of ``PromptStates.batch``; with two parts, that of the embedder.

    Args:
        states: The states of the prompts' tokens.
        mask: True where a token is real.
        two_parts: Whether the last channel marks the part that a state belongs to.
    """
    if two_parts:
        mask = mask & (states[..., -1] == 0)
        states = states[..., :-1]
    if states.ndim == 4:
        states = states.mean(2)
    states = states.float().masked_fill(~mask[..., None], 0.0)
    return states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class TrainingPrompts:
    """The descriptions of training prompts, and the distances of held-out prompts from them.

    Args:
        prompts: Standardised descriptions of unit length.
        mean: The mean of the descriptions, for standardising.
        std: The standard deviation of the descriptions, for standardising.
        heldout: The distances of prompts from held-out categories.
    """

    def __init__(
        self,
        prompts: Float[Tensor, "prompts width"],
        mean: Float[Tensor, " width"],
        std: Float[Tensor, " width"],
        heldout: Float[Tensor, " heldout"],
    ) -> None:
        self.prompts, self.mean, self.std = prompts, mean, std
        self.heldout = heldout.sort().values

    @classmethod
    def fit(
        cls, descriptions: Float[Tensor, "prompts width"], heldout: Float[Tensor, "heldout width"]
    ) -> TrainingPrompts:
        """Fit to the descriptions (:func:`describe`) of training prompts and of prompts from held-out categories.

        Raises:
            ConfigError: There are fewer than two training prompts, or no held-out prompt.
        """
        if len(descriptions) < 2 or not len(heldout):
            raise ConfigError(
                f"{len(descriptions)} training prompts and {len(heldout)} held-out ones. Expected at least 2 and 1. Fix: set "
                "validation.tasks."
            )
        # With two parts, the narrower one is padded with zeros on the right; the zeros are removed.
        width = 1 + int(descriptions.abs().amax(0).nonzero()[-1])
        descriptions = descriptions[:, :width]
        mean, std = descriptions.mean(0), descriptions.std(0).clamp(min=1e-6)
        prompts = F.normalize((descriptions - mean) / std, dim=1).bfloat16()
        made = cls(prompts, mean, std, torch.zeros(1))
        return cls(prompts, mean, std, made._nearest(heldout))

    def _nearest(self, descriptions: Float[Tensor, "some width"]) -> Float[Tensor, " some"]:
        """The distance of each description to the nearest training prompt."""
        given = descriptions[:, : len(self.mean)].float().cpu()
        given = F.normalize((given - self.mean) / self.std, dim=1)
        cosines = given @ F.normalize(self.prompts.float(), dim=1).T
        return (1 - cosines.max(1).values).clamp(min=0)

    def distances(self, descriptions: Float[Tensor, "some width"]) -> list[PromptDistance]:
        """The distances of prompts, given their descriptions (:func:`describe`)."""
        found = self._nearest(descriptions)
        shares = torch.searchsorted(self.heldout, found) / len(self.heldout)
        limit = float(self.heldout[math.ceil(FAR * len(self.heldout)) - 1])
        return [PromptDistance(d, s, limit) for d, s in zip(found.tolist(), shares.tolist(), strict=True)]

    def write(self, file: Path) -> None:
        """Write to a safetensors file."""
        tensors = {name: getattr(self, name).contiguous() for name in _NAMES}
        save_file(tensors, file, metadata={"format": _FORMAT})

    @classmethod
    def read(cls, file: Path) -> TrainingPrompts:
        """Read what :meth:`write` wrote.

        Raises:
            CheckpointError: The file is damaged or in another format.
        """
        tensors, metadata = read_tensors(file, CheckpointError, fix="fetch it again, or remove it")
        if metadata.get("format") != _FORMAT or set(tensors) != set(_NAMES) or not _fit(tensors):
            raise CheckpointError(
                f"{file}: not the training prompts of a hypernetwork. Expected {_FORMAT!r} with {', '.join(_NAMES)}. Fix: "
                "fetch it again, or remove it."
            )
        return cls(*(tensors[name] for name in _NAMES))


def _fit(tensors: dict[str, Tensor]) -> bool:
    prompts, mean, std, heldout = (tensors[name] for name in _NAMES)
    shapes: Sequence[bool] = (
        prompts.ndim == 2 and len(prompts) > 0,
        mean.shape == std.shape == prompts.shape[1:],
        heldout.ndim == 1 and len(heldout) > 0,
    )
    return all(shapes) and bool((std > 0).all())
