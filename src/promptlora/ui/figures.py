"""Plotly figures: attention as heat maps, and what each projection changes.

It knows numbers and labels. Plotly reads a little HTML in labels, so all of them are escaped. Colours are strong or
transparent, never white, so that light and dark pages share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from torch import Tensor

from promptlora.inspect import AttentionCapture
from promptlora.inspect.ablation import Ablation
from promptlora.inspect.drawing import visible_text
from promptlora.ui.studio import Inside

_BLUE = [[0.0, "rgba(47,129,247,0)"], [1.0, "rgba(47,129,247,1)"]]
_BOTH = [[0.0, "rgba(214,79,24,1)"], [0.5, "rgba(128,128,128,0)"], [1.0, "rgba(18,148,90,1)"]]
_REMOVED = ["zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale", "resetScale"]  # the download stays
_LABELS = 32
_GREY, _LINE = "#7d8590", "rgba(128,136,145,.35)"


def _label(text: str) -> str:
    return escape(visible_text(text, 12))


def _layout(figure: Any, title: str, height: int) -> Any:
    figure.update_layout(
        title={"text": title, "font": {"size": 14}, "x": 0.0, "xref": "paper"},
        height=height,
        margin={"l": 8, "r": 8, "t": 40, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": _GREY, "size": 11, "family": "system-ui, sans-serif"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": _GREY, "activecolor": "#2f81f7", "remove": _REMOVED},
        dragmode=False,
    )
    axes = {
        "showgrid": False,
        "zeroline": False,
        "automargin": True,
        "linecolor": _LINE,
        "mirror": True,
        "showline": True,
    }
    figure.update_xaxes(**axes)
    figure.update_yaxes(**axes)
    return figure


def _bar(title: str) -> dict[str, Any]:
    """The bar that says what the colours mean."""
    return {
        "title": {"text": title, "side": "right"},
        "thickness": 8,
        "outlinewidth": 0,
        "len": 0.95,
        "tickformat": ".2~g",
    }


def _ticks(tokens: Sequence[str]) -> dict[str, Any]:
    """At most ``_LABELS``: those of a long text would run into one another."""
    step = max(1, -(-len(tokens) // _LABELS))
    at = list(range(0, len(tokens), step))
    return {"tickvals": at, "ticktext": [_label(tokens[i]) for i in at]}


def _rows(weights: Tensor, visible: Tensor) -> list[list[float | None]]:
    return [
        [round(w, 5) if seen else None for w, seen in zip(row, mask, strict=True)]
        for row, mask in zip(weights.tolist(), visible.tolist(), strict=True)
    ]


def attention_maps(capture: AttentionCapture, layer: int, head: int, token: int) -> tuple[Any, Any, Any]:
    """Weights of one head in base and adapted model, and their difference; the row of one token is framed."""
    base = capture.base[layer]
    adapted = (capture.adapted or capture.base)[layer]
    first, second = base.weights(head), adapted.weights(head)
    assert base.softmax is not None
    visible = base.softmax.visible[base.softmax.at(head)]
    names = [f"{i} {_label(text)}" for i, text in enumerate(capture.tokens)]
    told = [[f"{row} → {key}" for key in names] for row in names]
    figures = []
    for title, meaning, values, scale, low, high in (
        ("Base", "weight", first, _BLUE, 0.0, 1.0),
        ("Adapted", "weight", second, _BLUE, 0.0, 1.0),
        ("Adapted − base", "gained or lost", second - first, _BOTH, None, None),
    ):
        top = float((second - first).abs().max()) or 1e-6
        heat = go.Heatmap(
            z=_rows(values, visible),
            colorscale=scale,
            zmin=-top if low is None else low,
            zmax=top if high is None else high,
            text=told,
            hovertemplate="%{text}: %{z:.4f}<extra></extra>",
            hoverongaps=False,
            colorbar=_bar(meaning),
        )
        figure = _layout(go.Figure(heat), title, max(380, 130 + 12 * min(len(names), _LABELS)))
        figure.update_xaxes(tickangle=-60, **_ticks(capture.tokens))
        figure.update_yaxes(autorange="reversed", **_ticks(capture.tokens))
        figure.add_shape(
            type="rect",
            x0=-0.5,
            x1=len(names) - 0.5,
            y0=token - 0.5,
            y1=token + 0.5,
            line={"color": _GREY, "width": 1.5},
        )
        figures.append(figure)
    return figures[0], figures[1], figures[2]


def _table(
    values: list[list[float]], rows: Sequence[str], columns: Sequence[str], what: str, title: str, axes: tuple[str, str]
) -> Any:
    heat = go.Heatmap(
        z=[[None if v != v else round(v, 6) for v in row] for row in values],
        x=list(columns),
        y=list(rows),
        colorscale=_BLUE,
        zmin=0.0,
        hovertemplate=f"{axes[0]} %{{y}}, {axes[1]} %{{x}}: {what} %{{z:.4f}}<extra></extra>",
        colorbar=_bar(what),
    )
    figure = _layout(go.Figure(heat), title, 420)
    figure.update_xaxes(title=axes[1], type="category")
    figure.update_yaxes(title=axes[0], type="category", autorange="reversed")
    return figure


def change_figure(inside: Inside) -> Any:
    """Where the adapter changes attention: layers by heads."""
    heads = [str(i) for i in range(inside.change.shape[1])]
    return _table(
        inside.change.tolist(), [str(i) for i in inside.layers], heads, "JS distance",
        "Change of attention", ("layer", "head"),
    )  # fmt: skip


def ablation_figure(found: Ablation) -> Any:
    """What each choice of projections changes: layers by choices."""
    return _table(
        found.by_layer().tolist(), [str(i) for i in found.layers], [escape(c) for c in found.choices], "JS distance",
        "Change of attention", ("layer", "adapter on for"),
    )  # fmt: skip
