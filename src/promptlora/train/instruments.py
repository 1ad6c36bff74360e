"""Measures whether a hypernetwork steers by the prompt, or has collapsed to one LoRA for all prompts.

Margins say how much better the right adapter is than another one. The spread of the updates, computed in
``lora.geometry``, says how much of them depends on the prompt at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch

from promptlora.data import Batch
from promptlora.lora import LoRAWeights
from promptlora.lora.geometry import Spread, spread
from promptlora.text import gibberish
from promptlora.train.adapters import AdapterWriter
from promptlora.train.config import TrainConfig
from promptlora.train.objectives import Objective

QUIET = 0.02  # nats: a smaller margin counts as no margin
_SPREAD_PROMPTS = 16  # maximum number of adapters that are compared in a large batch
_PATIENCE = 3  # consecutive measurements without a margin before the warning


def margin_shift(tasks: Sequence[str]) -> int | None:
    """The number of places to rotate a batch's adapters so that prompts get the adapter of another task.

    This is the smallest shift with the fewest prompts that get their own task's adapter; None if all would.
    """
    count = len(tasks)
    clashes = {s: sum(tasks[i] == tasks[(i + s) % count] for i in range(count)) for s in range(1, count)}
    best = min(clashes, key=clashes.__getitem__, default=None)
    return None if best is None or clashes[best] == count else best


class Instruments:
    """Measures margins and spread on batches, and remembers the last margins.

    Args:
        config: The run's configuration.
        objective: Its plain loss is used for the margins.
        writer: Computes the adapters for random letters.
        sums: Sums values over processes.
    """

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        writer: AdapterWriter,
        sums: Callable[[Sequence[float]], list[float]],
    ) -> None:
        self.config, self.objective, self.writer, self.sums = config, objective, writer, sums
        self._margins: deque[float] = deque(maxlen=_PATIENCE)

    def nonsense(self, batch: Batch) -> list[str]:
        """A text of random letters in place of each prompt of a batch, with the same length."""
        longest = self.config.hypernetwork.max_prompt_tokens
        return [gibberish(prompt, i, longest) for i, prompt in enumerate(batch.prompts)]

    @torch.no_grad()
    def measure(self, batch: Batch, lora: LoRAWeights) -> dict[str, float | None]:
        """Margins and spread for a part of a batch and its adapters, by their names in ``StepMetrics``.

        With several processes, each value is the mean over the processes that could measure it. The result is empty if
        the hypernetwork has no generated part.
        """
        if not self.config.hypernetwork.generated:
            return {}
        own = list(range(len(batch.prompts)))
        several = len(own) > 1
        shift = margin_shift(batch.tasks)
        rotated = [(i + (shift or 0)) % len(own) for i in own]
        right = float(self.objective.measure(batch, lora, own))
        wrong = float(self.objective.measure(batch, lora, rotated)) - right
        noise = self.writer.of_texts(batch, self.nonsense(batch))
        flat = Spread(variance_ratio=0.0, effective_rank=0.0)
        apart = spread(lora.select(own[:_SPREAD_PROMPTS])) if several else flat
        measured: dict[str, tuple[float, bool]] = {
            "margin": (wrong, shift is not None),
            "gibberish_margin": (float(self.objective.measure(batch, noise, own)) - right, True),
            "mean_margin": (float(self.objective.measure(batch, lora.mean(), [0] * len(own))) - right, several),
            "variance_ratio": (apart.variance_ratio, several),
            "effective_rank": (apart.effective_rank, several),
        }
        sums = self.sums([v for value, there in measured.values() for v in (value * there, float(there))])
        return {name: sums[2 * i] / sums[2 * i + 1] if sums[2 * i + 1] else None for i, name in enumerate(measured)}

    def remember(self, *margins: float | None) -> None:
        """Record measured margins, oldest first."""
        self._margins.extend(margin for margin in margins if margin is not None)

    def warning(self, step: int) -> str | None:
        """One line if the last measurements after the warm-up all had a margin near 0; otherwise None."""
        settled = step > max(self.config.optim.warmup * self.config.steps, _PATIENCE * self.config.margin_every)
        if not settled or len(self._margins) < _PATIENCE or max(self._margins) >= QUIET:
            return None
        return (
            f"step {step}: the steering margin was below {QUIET} nats in the last {_PATIENCE} measurements; the "
            "prompt makes no difference yet; raise optim.lr or head_lr_factor, or mix more tasks in a batch"
        )
