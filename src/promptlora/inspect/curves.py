"""Curves over steps as SVG text, in the style of ``drawing``. It knows numbers and names; all text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from promptlora.inspect.drawing import svg_figure, svg_text

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT = 520, 200, 52, 34, 16


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        name: Name of the curve in the legend.
        kind: Its colour: ``soft``, ``hot``, ``gain`` or ``loss``.
        points: Step and value of each point; values that are not finite are left out.
    """

    name: str
    kind: str
    points: Sequence[tuple[float, float]]


def curves(drawn: Sequence[Curve], title: str, *, steps: int, across: str = "step") -> str:
    """Draw curves in one frame, from step 0 to the last planned step, so that a running curve grows to the right.

    Args:
        drawn: The curves, in the order of the legend.
        title: Title above the figure.
        steps: The last step.
        across: Label of the horizontal axis.
    """
    kept = [Curve(c.name, c.kind, [(x, y) for x, y in c.points if isfinite(y)]) for c in drawn]
    values = [y for curve in kept for _, y in curve.points]
    low, high = min([0.0, *values]), max(values, default=1.0) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / max(steps, 1),
            _TOP + _HEIGHT * (1 - (y - low) / ((high - low) or 1.0)),
        )

    body = [
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_HEIGHT}"/>',
        svg_text(_LEFT - 6, _TOP + 10, f"{high:.2f}", anchor="end", kind="soft"),
        svg_text(_LEFT - 6, _TOP + _HEIGHT, f"{low:.2f}", anchor="end", kind="soft"),
        svg_text(_LEFT, _TOP + _HEIGHT + 16, "0", anchor="middle", kind="soft"),
        svg_text(_WIDTH - _RIGHT, _TOP + _HEIGHT + 16, f"{across} {steps}", anchor="end", kind="soft"),
    ]
    for i, curve in enumerate(kept):
        at = [place(x, y) for x, y in curve.points]
        if at:
            line = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
            body.append(f'<path class="line {curve.kind}" d="M{line}"/>')
            body += [f'<circle class="{curve.kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in at]
        y = _TOP + _HEIGHT + 34 + 16 * i
        body.append(f'<rect class="{curve.kind}" x="{_LEFT}" y="{y - 8}" width="14" height="8"/>')
        told = curve.name + (f": {curve.points[-1][1]:.3f}" if curve.points else "")
        body.append(svg_text(_LEFT + 20, y, told))
    return svg_figure(_WIDTH, _TOP + _HEIGHT + 42 + 16 * len(kept), title, body)
