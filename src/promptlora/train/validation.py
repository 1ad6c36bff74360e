"""Losses on the rows of held-out tasks, which show whether training generalises to unseen prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import torch

from promptlora.data import Row, ids_and_labels, tokenize_rows
from promptlora.host import Host
from promptlora.hypernet.network import HyperNetwork
from promptlora.lora import LoRAWeights
from promptlora.losses import sft_loss
from promptlora.text import PromptStates
from promptlora.train.config import TrainConfig

_ROWS = 64  # rows per forward pass


class Validation:
    """Rows of held-out tasks, and their loss in nats, averaged over tokens, then over rows, then over tasks.

    Args:
        base: The frozen base.
        rows: The rows.
        config: The run's configuration.
    """

    def __init__(self, base: Host, rows: Sequence[Row], config: TrainConfig) -> None:
        self.base, self.config = base, config
        self.prompts = {row.task: row.prompt for row in rows}
        self.tasks = list(self.prompts)
        self.right = {task: i for i, task in enumerate(self.tasks)}  # task to its own adapter, then to the next task's
        self.wrong = {task: (i + 1) % len(self.tasks) for task, i in self.right.items()}
        self.examples, _ = tokenize_rows(base.tokenizer, rows, config.data)

    def measure(self, hypernetwork: HyperNetwork, states: PromptStates) -> dict[str, float | None]:
        """Losses with the right adapters, other tasks' adapters, the static part, and with the prompt in context."""
        training = hypernetwork.training
        hypernetwork.eval()
        try:
            with torch.no_grad():
                encoded = hypernetwork.encode(*states.batch([self.prompts[task] for task in self.tasks]))
                dtype = self.base.model.dtype
                lora = hypernetwork.write(encoded, dtype=dtype)
                shown_lora, static = lora, None
                if self.config.hypernetwork.context_flag:
                    shown_lora = hypernetwork.write(encoded, True, dtype=dtype)
                if self.config.hypernetwork.static:
                    static = hypernetwork.write(encoded, generated=False, dtype=dtype)
        finally:
            hypernetwork.train(training)
        generated = self.config.hypernetwork.generated
        shown = self.config.data.in_context_share > 0
        return {
            "validation_loss": self.loss(lora, self.right),
            "validation_wrong": self.loss(lora, self.wrong) if generated and len(self.tasks) > 1 else None,
            "validation_static": self.loss(static, self.right) if generated and static is not None else None,
            "validation_in_context": self.loss(shown_lora, self.right, in_context=True) if shown else None,
        }

    def loss(self, lora: LoRAWeights, adapter_of: dict[str, int], *, in_context: bool = False) -> float:
        """The loss if the rows of each task have adapter ``adapter_of[task]``."""
        return fmean(self.by_task(lora, adapter_of, in_context=in_context).values())

    @torch.no_grad()
    def by_task(self, lora: LoRAWeights, adapter_of: dict[str, int], *, in_context: bool = False) -> dict[str, float]:
        """The same as :meth:`loss`, separately for each task."""
        losses: dict[str, list[float]] = defaultdict(list)
        read = [
            (self.base.render(e.text, self.prompts[e.task]) if in_context else e.input_ids, e.answers[0], e.task)
            for e in self.examples
        ]
        read.sort(key=lambda row: len(row[0]) + len(row[1]))  # rows of similar length together, to reduce padding
        for start in range(0, len(read), _ROWS):
            chosen = read[start : start + _ROWS]
            input_ids, labels = ids_and_labels([(ids, answer) for ids, answer, _ in chosen], 0)
            hidden = self.base.hidden(input_ids, lora, [adapter_of[task] for _, _, task in chosen])
            each = sft_loss(hidden, labels, self.base.lm_head, row_weight="row", reduce=False)
            for (_, _, task), value in zip(chosen, each.tolist(), strict=True):
                losses[task].append(value)
        return {task: fmean(values) for task, values in losses.items()}
