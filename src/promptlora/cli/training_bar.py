"""The progress bar of ``promptlora train``, as a callback of the trainer."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from promptlora.cli.console import err
from promptlora.train.callbacks import Callback, StepMetrics

_SHOWN = {"margin": "margin", "gibberish_margin": "gibberish", "mean_margin": "mean", "validation_loss": "held out"}


class _TwoLines(Progress):
    """A bar with the instruments on the line below; beside it they would cut off step and time at 80 columns."""

    instruments = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.instruments:
            yield Text(self.instruments, overflow="ellipsis", no_wrap=True)


class TrainingBar(Callback):
    """Shows steps, loss and speed next to the bar, and the last value of each instrument below it.

    Args:
        steps: The last step of the run.
        shown: False hides the bar, as in all processes except the first.
        console: Console for the output; standard error by default.

    Attributes:
        last: The last value of each metric.
    """

    def __init__(self, steps: int, *, shown: bool, console: Console | None = None) -> None:
        self.shown = shown
        self.last: dict[str, float] = {}
        self._progress = _TwoLines(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err if console is None else console,
            disable=not shown,
        )
        self._task = self._progress.add_task("", total=steps, shown="")

    def on_start(self, step: int) -> None:
        """Show the bar."""
        self._progress.start()
        self._progress.update(self._task, completed=step)

    def on_step(self, metrics: StepMetrics) -> None:
        """Advance by one step."""
        self.last.update(metrics.measured)
        text = f"loss {metrics.loss:.3f}  {metrics.tokens_per_second:.0f} tok/s"
        measured = [f"{title} {self.last[name]:+.3f}" for name, title in _SHOWN.items() if name in self.last]
        self._progress.instruments = "  ".join(measured)
        self._progress.update(self._task, completed=metrics.step, shown=text)

    def on_warning(self, line: str) -> None:
        """Print a warning above the bar."""
        if self.shown:
            self._progress.console.print(f"[yellow]warning:[/] {escape(line)}", highlight=False)

    def on_end(self) -> None:
        """Stop updating and leave the bar on screen."""
        self._progress.stop()
