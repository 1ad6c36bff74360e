"""What a training run reports while it runs: ``StepMetrics``, and ``Callback``, which receives these reports.

The progress bar of the command line, the log files of a run and a user's own code all use this one mechanism.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from promptlora.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """The metrics of one step; a metric that was not measured in this step is None.

    Attributes:
        step: Number of steps done, including this one.
        loss: The objective's loss without penalties, in nats (``reconstruct``: relative squared distance).
        margin: Steering margin: the loss with the adapter of another task's prompt minus the loss with the right one.
        gibberish_margin: The same margin with adapters of random letters.
        mean_margin: The same margin with the mean of the batch's updates.
        variance_ratio: Variance of the updates of the batch's prompts divided by the squared norm of their mean.
        effective_rank: Number of directions in which these updates differ.
        validation_loss: Loss on the rows of held-out tasks, averaged over tasks.
        validation_wrong: The same loss with another task's adapter.
        validation_static: The same loss with only the static part.
        validation_in_context: The same as ``validation_loss``, with the prompt also in the context.
        tokens_per_second: Tokens of the batch without padding, divided by the duration of the step.
        lr: Learning rate of the trunk.
        trunk_norm: Gradient norm of encoder and trunk, before clipping.
        head_norm: Gradient norm of the heads, before clipping.
        static_norm: Gradient norm of the static part, before clipping.
    """

    step: int
    loss: float
    margin: float | None = None
    gibberish_margin: float | None = None
    mean_margin: float | None = None
    variance_ratio: float | None = None
    effective_rank: float | None = None
    validation_loss: float | None = None
    validation_wrong: float | None = None
    validation_static: float | None = None
    validation_in_context: float | None = None
    tokens_per_second: float
    lr: float
    trunk_norm: float
    head_norm: float
    static_norm: float

    @property
    def measured(self) -> dict[str, float]:
        """The metrics that were measured in this step, ``step`` included."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Callback:
    """Receives the events of a run. Override the methods that you need; all of them do nothing by default.

    Every process of a distributed run calls its own callbacks. An exception in a callback stops the run in the same way
    as an exception in the loop itself: without a checkpoint of the current step.
    """

    def on_start(self, step: int) -> None:
        """The run starts, or resumes after ``step`` steps."""

    def on_step(self, metrics: StepMetrics) -> None:
        """A step is done."""

    def on_validation(self, step: int, losses: Mapping[str, float]) -> None:
        """The held-out tasks were evaluated; the keys are the ``validation_*`` fields of :class:`StepMetrics`."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """A checkpoint is complete in ``folder``."""

    def on_warning(self, line: str) -> None:
        """The run shows a problem; called once per run for each kind of warning."""

    def should_stop(self) -> bool:
        """Whether to stop after this step, with a checkpoint. If one process returns True, all of them stop."""
        return False

    def on_end(self) -> None:
        """The run has ended: it finished, was stopped, or failed."""


Given = Callback | Callable[[StepMetrics], object]  # what a user may pass as a callback


class _OnStep(Callback):
    """Wraps a plain function as a callback."""

    def __init__(self, function: Callable[[StepMetrics], object]) -> None:
        self.function = function

    def on_step(self, metrics: StepMetrics) -> None:
        self.function(metrics)


def as_callback(given: Given) -> Callback:
    """Return a callback unchanged, and wrap any other callable in a callback that calls it after each step.

    Raises:
        ConfigError: The argument is neither a callback nor a callable, or it is a class instead of an instance.
    """
    if isinstance(given, Callback):
        return given
    if not callable(given) or (isinstance(given, type) and issubclass(given, Callback)):
        raise ConfigError(
            f"callbacks: {given!r} is not a callback. Expected a train.Callback or a function of StepMetrics. Fix: pass an object."
        )
    return _OnStep(given)


class CallbackList(Callback):
    """Combines several callbacks; leaving ``with`` calls each ``on_end``, in reverse order, also after an error.

    Args:
        callbacks: The callbacks in calling order.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)
        self._ending = ExitStack()
        self._warned = False

    def __enter__(self) -> CallbackList:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def on_start(self, step: int) -> None:
        """Start each callback; if one fails, its ``on_end`` is called too."""
        for callback in self.callbacks:
            self._ending.callback(callback.on_end)
            callback.on_start(step)

    def after_step(self, metrics: StepMetrics, warning: str | None) -> None:
        """Report a step, its validation if there was one, and the first warning.

        Args:
            metrics: The metrics of the step.
            warning: A description of a problem after this step, or None.
        """
        losses = {name: value for name, value in metrics.measured.items() if name.startswith("validation_")}
        warns = warning is not None and not self._warned
        self._warned = self._warned or warns
        for callback in self.callbacks:
            callback.on_step(metrics)
            if losses:
                callback.on_validation(metrics.step, losses)
            if warning is not None and warns:
                callback.on_warning(warning)

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Report a checkpoint."""
        for callback in self.callbacks:
            callback.on_checkpoint(step, folder)

    def should_stop(self) -> bool:
        """Ask every callback, even when one has said so already, because a callback may count its calls."""
        answers = [callback.should_stop() for callback in self.callbacks]
        return any(answers)
