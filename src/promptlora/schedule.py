"""The schedule of a learning rate, for training and refinement alike. It knows numbers alone."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, steps: int, warmup: float, final: float) -> float:
    """Linear warm-up from 0, then a cosine to ``final``; 1 at the top. ``step`` is counted from 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
