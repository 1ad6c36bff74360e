"""The steps of a refinement: many adapters in one batch, each with its own loss, clipping, moments and best step.

An adapter's result does not depend on the rest of the batch. This file knows the host, items and adapters; it knows
nothing of prompt texts, hypernetworks or teachers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptlora.adapt.refine.movable import Movable
from promptlora.adapt.refine.rows import Item, Task
from promptlora.adapt.refine.settings import RefineSettings
from promptlora.data import ids_and_labels
from promptlora.host import Host
from promptlora.losses import TeacherTargets, distillation_loss, sft_loss
from promptlora.schedule import learning_rate_factor

_BETAS = (0.9, 0.98)
_WARMUP, _FINAL = 0.1, 0.0
_TOKENS = {"cpu": 1024}  # tokens per part, including padding, which limits the memory of activations
_TOKENS_ELSEWHERE = 16384

Drawn = tuple[int, Item, list[int]]  # adapter, row, and one of the row's answers


@dataclass(frozen=True, kw_only=True)
class RefineStep:
    """The progress of a refinement after one step. Values per prompt are in the order of the prompts.

    Attributes:
        step: The number of finished steps, including this one.
        steps: The total number of steps; a refinement may need fewer.
        loss: Mean loss of this step's rows before the update, in nats; None for a finished adapter.
        kept_back: The last measured loss of the held-out rows; None if there are none.
        best: The step of the best adapter so far; 0 is the start.
        active: The number of adapters that are still trained.
    """

    step: int
    steps: int
    loss: tuple[float | None, ...]
    kept_back: tuple[float | None, ...]
    best: tuple[int, ...]
    active: int


@dataclass
class Outcome:
    """The best adapter of a task so far.

    Attributes:
        values: The trainable values of the adapter.
        start: The name of its start.
        step: The step after which it was taken; 0 is the start.
        first: Loss of the held-out rows with the given adapter; None if there are no held-out rows.
        score: Loss of the held-out rows with the best adapter.
        last: The last measured loss of the held-out rows.
        loss: Loss of the rows of the last step.
        waited: The number of measurements since the best one.
        note: A description of what went wrong.
        before: Values, start and step of the previous adapter, whose loss is known to be finite.
    """

    values: Tensor
    start: str
    step: int = 0
    first: float | None = None
    score: float | None = None
    last: float | None = None
    loss: float | None = None
    waited: int = 0
    note: str = ""
    before: tuple[Tensor, str, int] | None = None

    def undo(self) -> None:
        """Go back to the previous adapter, if there is one."""
        if self.before is not None:
            (self.values, self.start, self.step), self.before = self.before, None


class Refinement:
    """A running refinement; several starts of a task are trained in parallel until the best one is chosen.

    Args:
        host: The host that runs the base.
        tasks: The training data of each adapter.
        movable: The adapters: those of all tasks for the first start, then those of all tasks for the next start.
        starts: The names of the starts; the first is the adapter that the caller gave.
        settings: The settings.
    """

    def __init__(
        self, host: Host, tasks: Sequence[Task], movable: Movable, starts: Sequence[str], settings: RefineSettings
    ) -> None:
        self.host, self.tasks, self.movable, self.settings = host, tasks, movable, settings
        self.who = [(number, start) for start in starts for number in range(len(tasks))]
        self.values = movable.start.clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.values], betas=_BETAS)
        self.racing = len(starts) > 1
        self.stopped = False
        self.best = [Outcome(movable.start[number].clone(), starts[0]) for number in range(len(tasks))]
        self._budget = _TOKENS.get(host.device.type, _TOKENS_ELSEWHERE)

    def run(self, on_step: Callable[[RefineStep], None] | None, stop: Callable[[], bool]) -> list[Outcome]:
        """Run the steps. If ``stop`` returns True, the run ends after the current step with the best adapters."""
        steps = self.settings.steps
        self._measure(0)
        if self.racing and not self.settings.race_steps:
            self._choose()
        for step in range(1, steps + 1):
            if not self.who:
                break
            if stop():
                self.stopped = True
                break
            self._move(step)
            decided = self.racing and step == min(self.settings.race_steps, steps)
            if decided or step % self.settings.measure_every == 0 or step == steps:
                self._measure(step)
            if decided:
                self._choose()
            if on_step:
                on_step(self._shown(step))
        self._confirm()
        return self.best

    # --- one step ----------------------------------------------------------------------------------------

    def _move(self, step: int) -> None:
        settings = self.settings
        rows: list[Drawn] = [
            (at, item, answer)
            for at, (number, _) in enumerate(self.who)
            for item, answer in self.tasks[number].drawn(step - 1, settings.rows_per_step, settings.seed)
        ]
        losses, slopes = self._losses(rows, slopes=True)
        norms = slopes.norm(dim=1)
        fine = (losses.isfinite() & norms.isfinite()).tolist()
        said, lengths = losses.tolist(), norms.tolist()  # an accelerator is read once, not once per adapter
        left = {number for (number, _), one in zip(self.who, fine, strict=True) if one}
        for at, (number, start) in enumerate(self.who):
            best = self.best[number]
            if fine[at]:
                if best.start == start or not self.racing:
                    best.loss = said[at]
            elif number not in left:
                best.undo()  # without held-out rows, the last step was taken without a measurement
                best.note = (
                    f"step {step}: loss {said[at]:g}, gradient norm {lengths[at]:g}; expected finite numbers; "
                    f"the adapter of step {best.step} is returned; lower lr or look at the rows"
                )
        if not all(fine):
            kept = [at for at, one in enumerate(fine) if one]
            self._keep(kept)
            slopes, norms = slopes[kept], norms[kept]
        if not self.who:
            return
        self.values.grad = slopes * (settings.clip / norms.clamp(min=settings.clip))[:, None]
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * learning_rate_factor(step - 1, settings.steps, _WARMUP, _FINAL)
        self.optimizer.step()
        self.values.grad = None
        for at, (number, start) in enumerate(self.who):
            if not self.tasks[number].kept and (not self.racing or start == self.best[number].start):
                self._take(number, at, step)

    def _take(self, number: int, at: int, step: int, score: float | None = None) -> None:
        """Record the current adapter as the best of its task."""
        best = self.best[number]
        best.before = None if self.tasks[number].kept else (best.values, best.start, best.step)
        best.values, best.start = self.values[at].detach().clone(), self.who[at][1]
        best.step, best.score, best.waited = step, score, 0

    def _keep(self, rows: Sequence[int]) -> None:
        """Continue with only some of the adapters and their optimizer moments."""
        index = torch.tensor(rows, dtype=torch.long, device=self.values.device)
        state = self.optimizer.state.get(self.values, {})
        self.who = [self.who[at] for at in rows]
        self.values = self.values.detach()[index].clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.values], betas=_BETAS)
        if state:
            self.optimizer.state[self.values] = {
                key: value.clone() if key == "step" else value[index] for key, value in state.items()
            }

    # --- losses ------------------------------------------------------------------------------------------

    def _losses(self, rows: Sequence[Drawn], *, slopes: bool = False) -> tuple[Tensor, Tensor]:
        """The mean loss ``[adapters]`` of each adapter's rows, and its gradients ``[adapters, numbers]``.

        Rows of similar length are batched together, as many as fit. A row's loss does not depend on the others, so the
        gradients of the parts add up. Other threads can use the base between two parts and during backward passes.
        """
        counts = Counter(at for at, _, _ in rows)
        device = self.values.device
        losses = torch.zeros(len(self.who), device=device)
        total = torch.zeros_like(self.values)
        for part in self._parts(rows):
            index = [at for at, _, _ in part]
            # Copied before the forward pass: a copy to an accelerator waits for the work before it.
            owners = torch.tensor(index, device=device)
            share = torch.tensor([1 / counts[at] for at in index], device=device)
            with torch.set_grad_enabled(slopes):
                lora = self.movable.lora(self.values)
                each = row_losses(self.host, [(item, answer) for _, item, answer in part], lora, index)
                if slopes:
                    total += torch.autograd.grad((each * share).sum(), self.values)[0]
            losses.index_add_(0, owners, (each.detach() * share).to(losses))
        return losses, total

    def _parts(self, rows: Sequence[Drawn]) -> list[list[Drawn]]:
        """Parts of rows of similar length, sorted by adapter within a part, so that hooks need no gather."""
        ordered = sorted(rows, key=lambda row: len(row[1].ids) + len(row[2]))
        parts: list[list[Drawn]] = []
        for row in ordered:
            length = len(row[1].ids) + len(row[2])
            if not parts or (len(parts[-1]) + 1) * length > self._budget:
                parts.append([])
            parts[-1].append(row)
        return [sorted(part, key=lambda row: row[0]) for part in parts]

    def _measure(self, step: int) -> None:
        """Measure the loss of the held-out rows, record the best step, and stop adapters without progress."""
        rows: list[Drawn] = [
            (at, item, item.answers[0]) for at, (number, _) in enumerate(self.who) for item in self.tasks[number].kept
        ]
        if not rows:
            return
        losses = self._losses(rows)[0].tolist()
        ended = set()
        for at, (number, start) in enumerate(self.who):
            if not self.tasks[number].kept:
                continue
            best, loss = self.best[number], losses[at]
            if step == 0 and best.first is None:
                best.first = best.score = loss
            if not self.racing or start == best.start:
                best.last = loss
            if math.isfinite(loss) and (best.score is None or not loss >= best.score):
                self._take(number, at, step, loss)
                best.last = loss
            elif not self.racing:
                best.waited += 1
                if best.waited >= self.settings.patience:
                    ended.add(at)
        if ended:
            self._keep([at for at in range(len(self.who)) if at not in ended])

    def _confirm(self) -> None:
        """Undo the last step of adapters without held-out rows if it led to a loss that is not finite."""
        rows: list[Drawn] = [
            (at, item, item.answers[0])
            for at, (number, start) in enumerate(self.who)
            if not self.tasks[number].kept and self.best[number].step and self.best[number].start == start
            for item in self.tasks[number].items
        ]
        losses = self._losses(rows)[0].tolist()
        for at in {at for at, _, _ in rows}:
            best = self.best[self.who[at][0]]
            if not math.isfinite(losses[at]):
                best.note = (
                    f"step {best.step} led to a loss of {losses[at]:g}; the adapter before it is returned; lower lr"
                )
                best.undo()

    def _choose(self) -> None:
        """Continue with the best start of each task, by the loss of held-out rows or, without them, training rows."""
        rows: list[Drawn] = [
            (at, item, item.answers[0])
            for at, (number, _) in enumerate(self.who)
            for item in self.tasks[number].kept or self.tasks[number].items
        ]
        losses = [loss if math.isfinite(loss) else math.inf for loss in self._losses(rows)[0].tolist()]
        first: dict[int, int] = {}
        for at, (number, _) in enumerate(self.who):
            if number not in first or losses[at] < losses[first[number]]:
                first[number] = at
        for number, at in first.items():
            if not self.tasks[number].kept and losses[at] < math.inf:
                self._take(number, at, self.settings.race_steps)
        self.racing = False
        self._keep(sorted(first.values()))

    def _shown(self, step: int) -> RefineStep:
        moving = {number for number, _ in self.who}
        return RefineStep(
            step=step,
            steps=self.settings.steps,
            loss=tuple(best.loss if number in moving else None for number, best in enumerate(self.best)),
            kept_back=tuple(best.last for best in self.best),
            best=tuple(best.step for best in self.best),
            active=len(moving),
        )


def row_losses(host: Host, rows: Sequence[tuple[Item, list[int]]], lora: object, index: Sequence[int]) -> Tensor:
    """The loss of each row ``[rows]`` in nats per token: cross-entropy of the answer, or KL from the teacher.

    Args:
        host: The host that runs the base.
        rows: Rows with the answer to use for each; either all or none have a teacher's distributions.
        lora: The adapters.
        index: Row i uses adapter ``index[i]``.
    """
    input_ids, labels = ids_and_labels([(item.ids, answer) for item, answer in rows], host.pad)
    hidden = host.hidden(input_ids, lora, index)  # type: ignore[arg-type]
    targets = teacher_of([item for item, _ in rows])
    if targets is None:
        return sft_loss(hidden, labels, host.lm_head, row_weight="row", reduce=False)
    return distillation_loss(hidden, labels, host.lm_head, targets, row_weight="row", reduce=False)


def teacher_of(items: Sequence[Item]) -> TeacherTargets | None:
    """The teacher's distributions of some rows, concatenated; None if the rows have none."""
    found = [item.targets for item in items if item.targets is not None]
    if not found:
        return None
    return TeacherTargets(
        torch.cat([targets.log_probs for targets in found]),
        torch.cat([targets.ids for targets in found if targets.ids is not None]),
    )
