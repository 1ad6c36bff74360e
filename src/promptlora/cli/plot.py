"""``promptlora plot``: draw a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from promptlora.cli.console import Json, out, print_json
from promptlora.errors import OutputError
from promptlora.extras import need
from promptlora.files import check_output, replacing_file

_PANELS = {
    "loss": ("loss", "validation_loss", "validation_static", "validation_wrong", "validation_in_context"),
    "margin (nats)": ("margin", "gibberish_margin", "mean_margin"),
    "spread of the updates": ("variance_ratio", "effective_rank"),
    "gradient norm": ("trunk_norm", "head_norm", "static_norm"),
}
_SMOOTH = 25  # number of steps over which the drawn training loss is averaged
_LABELS = {"loss": f"loss (mean of the last {_SMOOTH} steps)"}


def plot(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Output folder of a training run, or its metrics.jsonl.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="SVG, PNG or PDF to write.")] = None,
    json: Json = False,
) -> None:
    """Draw a run: loss, steering margins, spread of the adapters, gradient norms.

    The training loss is drawn as the mean of the last 25 steps; all else is drawn as measured. Without --output the last
    values are printed; --json prints all of them.

    Example: **promptlora plot runs/shipped -o run.svg**
    """
    from promptlora.train.metrics import read_metrics

    if output is not None:
        check_output(output, overwrite=True, folder=False)
        _kind(output)
    lines = read_metrics(run)
    if json:
        print_json(list(lines))
        return
    last = {key: line[key] for line in lines for key in line}
    for key, value in last.items():
        out.print(f"{key:22} {value:g}", highlight=False)
    if output is not None:
        draw(lines, output)
        out.print(f"{output}", highlight=False)


def _kind(path: Path) -> str:
    kind = path.suffix.removeprefix(".")
    if kind not in ("svg", "png", "pdf"):
        raise OutputError(f"{path}: {path.suffix or 'no suffix'}; expected .svg, .png or .pdf")
    return kind


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture of a run atomically.

    Raises:
        MissingExtraError: The extra ``plot`` is not installed.
        OutputError: The file type is not supported.
    """
    need("plot", "matplotlib")
    from matplotlib.backends import backend_agg
    from matplotlib.figure import Figure

    kind = _kind(path)
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    backend_agg.FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, _PANELS.items(), strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            if name == "loss":
                values = tuple(fmean(values[max(0, i + 1 - _SMOOTH) : i + 1]) for i in range(len(values)))
            axes.plot(steps, values, label=_LABELS.get(name, name.replace("_", " ")), linewidth=1.2)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8, frameon=False)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=140)
