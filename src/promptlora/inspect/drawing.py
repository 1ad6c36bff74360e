"""Heat maps, bars and maps of points as SVG text: no library, no network, readable in light and dark.

It knows numbers and labels; every label is escaped. Each cell also has its value in a ``<title>``, which is shown on
hover and read by screen readers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from torch import Tensor

LIGHT = "--ink:#1f2328;--soft:#59636e;--paper:#fff;--line:#d1d9e0;--hot:#0b57d0;--gain:#0a7d48;--loss:#c4320a"
DARK = "--ink:#e6edf3;--soft:#9198a1;--paper:#0d1117;--line:#3d444d;--hot:#7cb0ff;--gain:#56d397;--loss:#ff9a70"
RULES = """\
.pl text{fill:var(--ink);font:11px ui-monospace,Consolas,monospace}
.pl .title{font:600 13px system-ui,sans-serif}.pl .soft{fill:var(--soft)}
.pl .back{fill:var(--paper)}.pl .hot{fill:var(--hot)}.pl .gain{fill:var(--gain)}.pl .loss{fill:var(--loss)}
.pl .frame{fill:none;stroke:var(--line)}.pl .mark{fill:none;stroke:var(--ink);stroke-width:1.5}
.pl .box{fill:var(--paper);stroke:var(--line)}.pl .wire{fill:none;stroke:var(--soft);stroke-opacity:.55}
.pl .trace{fill:none;stroke:var(--soft);stroke-opacity:.3}.pl .stream{fill:none;stroke:var(--hot);stroke-opacity:.5}
.pl .ground{fill:none;stroke:var(--line);stroke-width:6}
.pl .line{fill:none;stroke-width:2}.pl .line.hot{stroke:var(--hot)}.pl .line.soft{stroke:var(--soft)}
"""
STYLE = f".pl{{{LIGHT}}}\n@media (prefers-color-scheme:dark){{.pl{{{DARK}}}}}\n{RULES}"
_STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)
_CHARACTER = 6.7  # width of a character in the labels' font
_SHAPES = 6
_NOTHING = 5e-7  # smaller values are rounding errors; they are drawn and written as 0


def without_style(svg: str) -> str:
    """A figure without its style, for a page that has ``RULES`` and the colours itself."""
    return _STYLE.sub("", svg)


def plain_zero(value: float, least: float = 5e-5) -> float:
    """The value, or 0.0 if it would be printed as a zero with a sign."""
    return 0.0 if abs(value) < least else value


def visible_text(text: str, longest: int = 18) -> str:
    """A readable form of a token: line ends and spaces visible, control characters replaced, long tokens truncated."""
    shown = text.replace("\r", "\u240d").replace("\n", "\u23ce").replace("\t", "\u21e5")
    shown = "".join(c if c.isprintable() else "\ufffd" for c in shown)
    shown = (
        f"\u00b7{shown[1:]}"
        if shown.startswith(" ") and shown.strip()
        else shown.replace(" ", "\u00b7")
        if not shown.strip()
        else shown
    )
    return shown if len(shown) <= longest else shown[: longest - 1] + "\u2026"


def safe_text(text: str) -> str:
    """A text that is valid in HTML and XML: escaped, without control characters and text direction marks."""
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text), quote=True)


@dataclass(frozen=True)
class Pick:
    """What a click on a cell selects, written into the figure for the page's script.

    Attributes:
        row: What a row stands for (``"token"``).
        rows: The number of each row.
        column: What a column stands for.
        columns: The number of each column.
    """

    row: str
    rows: Sequence[int]
    column: str
    columns: Sequence[int]

    def attributes(self) -> str:
        """The attributes of the figure's SVG element."""
        rows, columns = (",".join(map(str, numbers)) for numbers in (self.rows, self.columns))
        return f' data-row="{self.row}" data-rows="{rows}" data-column="{self.column}" data-columns="{columns}"'


def svg_figure(width: float, height: float, title: str, body: Sequence[str], attributes: str = "") -> str:
    """A complete SVG that also works as a file of its own; ``attributes`` and ``body`` must already be markup."""
    label = safe_text(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="pl" role="img" aria-label="{label}"{attributes} '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">'
        f"<style>{STYLE}</style>"
        f'<rect class="back" width="{width:.0f}" height="{height:.0f}"/>'
        f'<text class="title" x="8" y="18">{label}</text>{"".join(body)}</svg>\n'
    )


def svg_text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "", turn: bool = False) -> str:
    """A text in a figure, escaped; ``kind`` is its class, ``turn`` slants it."""
    turned = f' transform="rotate(-55 {x:.1f} {y:.1f})"' if turn else ""
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}{turned}>{safe_text(text)}</text>'


def heat_map(
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    *,
    across: str = "",
    down: str = "",
    signed: bool = False,
    top: float | None = None,
    mark: tuple[int, int | None] | None = None,
    cell: tuple[int, int] = (20, 16),
    pick: Pick | None = None,
) -> str:
    """A table of numbers as coloured cells; larger numbers have stronger colours.

    Args:
        values: ``[rows, columns]``; NaN leaves a cell empty.
        rows: A label for each row.
        columns: A label for each column.
        title: Title above the figure.
        across: Label of the column axis.
        down: Label of the row axis.
        signed: Use two colours for positive and negative numbers.
        top: The value with the full colour; by default the largest value.
        mark: A cell to frame; without a column, the whole row.
        cell: Width and height of a cell.
        pick: What a click on a cell selects, in a page with a script.
    """
    table = values.tolist()
    largest = plain_zero(max((abs(v) for row in table for v in row if v == v), default=0.0), _NOTHING)
    strongest = top or largest or 1.0
    row_labels = [visible_text(label) for label in rows]
    column_labels = [visible_text(label) for label in columns]
    left = 16 + _CHARACTER * max([len(label) for label in row_labels] + [len(down) // 2 or 1])
    width, height = cell
    longest = _CHARACTER * max((len(label) for label in column_labels), default=0)
    turn = longest > width  # labels that do not fit above their cells are slanted
    above = 34 + (14 if across else 0) + (0.82 * longest if turn else 8)
    body: list[str] = []
    for j, label in enumerate(column_labels):
        x, anchor = (j + 0.6, "start") if turn else (j + 0.5, "middle")
        body.append(svg_text(left + x * width, above - 5, label, anchor=anchor, turn=turn))
    for i, (label, row) in enumerate(zip(row_labels, table, strict=True)):
        y = above + i * height
        body.append(svg_text(left - 5, y + height * 0.72, label, anchor="end"))
        for j, value in enumerate(row):
            if value != value:
                continue
            value = plain_zero(value)
            kind = "hot" if not signed else "gain" if value > 0 else "loss"
            strength = min(abs(value) / strongest, 1.0)
            told = safe_text(
                f"{row_labels[i]} \u2192 {column_labels[j]}: {value:+.4f}"
                if signed
                else f"{row_labels[i]} \u2192 {column_labels[j]}: {value:.4f}"
            )
            body.append(
                f'<rect class="{kind}" x="{left + j * width:.1f}" y="{y:.1f}" width="{width}" height="{height}" '
                f'fill-opacity="{strength:.3f}"><title>{told}</title></rect>'
            )
    wide, high = width * len(column_labels), height * len(row_labels)
    body.append(f'<rect class="frame" x="{left:.1f}" y="{above:.1f}" width="{wide}" height="{high}"/>')
    if mark is not None:
        row_at, column_at = mark
        x, framed = (left, wide) if column_at is None else (left + column_at * width, width)
        body.append(
            f'<rect class="mark" x="{x:.1f}" y="{above + row_at * height:.1f}" width="{framed}" height="{height}"/>'
        )
    if across:
        body.append(svg_text(left, 34, across, kind="soft"))
    scale = f"full colour = {'±' if signed else ''}{strongest:.3g}" if top or largest else "nothing changes"
    scale += f"; rows: {down}" if down else ""
    body.append(svg_text(8, above + high + 18, scale, kind="soft"))
    slant = 0.6 * _CHARACTER * max((len(label) for label in column_labels[-3:]), default=0) if turn else 0.0
    needed = max(left + wide + slant + 8, 8 + 8 * len(title), 8 + _CHARACTER * len(scale))
    return svg_figure(needed, above + high + 28, title, body, "" if pick is None else pick.attributes())


def thumbnail(values: Tensor, title: str, size: float = 72.0) -> str:
    """A table of weights as a small picture without labels: five shades, one path each.

    Args:
        values: ``[rows, columns]``, 0 … 1; NaN leaves a cell empty.
        title: Description for screen readers.
        size: Width of the picture; the height follows from the shape.
    """
    count = max(values.shape)
    shades = (values.nan_to_num(0.0).clamp(0.0, 1.0) * 5).ceil().int()
    shades[values.nan_to_num(0.0) < 0.02] = 0
    body = []
    for shade in range(1, 6):
        cells = "".join(f"M{j} {i}h1v1h-1z" for i, j in (shades == shade).nonzero().tolist())
        if cells:
            body.append(f'<path class="hot" fill-opacity="{shade / 5:.1f}" d="{cells}"/>')
    rows, columns = values.shape
    return (
        f'<svg class="pl" role="img" aria-label="{safe_text(title)}" viewBox="0 0 {columns} {rows}" '
        f'width="{size * columns / count:.0f}" height="{size * rows / count:.0f}">{"".join(body)}'
        f'<rect class="frame" width="{columns}" height="{rows}" vector-effect="non-scaling-stroke"/></svg>'
    )


def bars(
    values: Sequence[float],
    labels: Sequence[str],
    title: str,
    *,
    other: Sequence[float] | None = None,
    top: float = 1.0,
) -> str:
    """One bar per label, from 0 to ``top``; with ``other``, a second bar below it (base above, adapted below)."""
    shown = [visible_text(label) for label in labels]
    left, step, full = 16 + _CHARACTER * max(map(len, shown), default=1), 26 if other is not None else 18, 260
    body: list[str] = []
    for i, label in enumerate(shown):
        y = 34 + i * step
        body.append(svg_text(left - 5, y + 10, label, anchor="end"))
        lines = [(values[i], "hot", y)] if other is None else [(values[i], "soft", y), (other[i], "hot", y + 11)]
        for value, kind, at in lines:
            long = full * min(max(value / top, 0.0), 1.0)
            body.append(f'<rect class="{kind}" x="{left:.1f}" y="{at}" width="{long:.1f}" height="9"/>')
            body.append(svg_text(left + long + 5, at + 9, f"{plain_zero(value):.3f}"))
    if other is not None:
        body.append(svg_text(8, 34 + len(shown) * step + 12, "grey: base; colour: adapted", kind="soft"))
    return svg_figure(max(left + full + 60, 8 * len(title)), 34 + len(shown) * step + 24, title, body)


def point_map(
    points: Tensor, labels: Sequence[str], groups: Sequence[str], title: str, names: Mapping[int, str] | None = None
) -> str:
    """Points in a plane, each with its number; groups differ in shape and colour and are named in the legend.

    Args:
        points: ``[n, 2]``.
        labels: A text for each point, shown on hover.
        groups: The group of each point; a group without a name is not in the legend.
        title: Title above the figure.
        names: Points that are labelled with a name in large type instead of their number.
    """
    chosen = names or {}
    size, edge = 380.0, 30.0
    low, high = points.amin(dim=0), points.amax(dim=0)
    span = float((high - low).max()) or 1.0
    kinds = list(dict.fromkeys(groups))
    body = [f'<rect class="frame" x="{edge}" y="{edge}" width="{size}" height="{size}"/>']
    for i, (x, y) in enumerate(((points - (low + high) / 2) / span + 0.5).tolist()):
        px, py = edge + 14 + x * (size - 44), edge + size - 14 - y * (size - 28)  # room for a number at the right
        told = chosen.get(i, str(i))
        ring = f'<circle class="mark" cx="{px:.1f}" cy="{py:.1f}" r="9"/>' if i in chosen else ""
        body.append(
            f"<g><title>{safe_text(f'{told} {labels[i]}')}</title>{_symbol(kinds.index(groups[i]), px, py)}{ring}"
            f"{svg_text(px + (12 if ring else 7), py + 4, told, kind='title' if ring else '')}</g>"
        )
    legend = [name for name in kinds if name]
    for i, name in enumerate(legend):
        body.append(_symbol(kinds.index(name), edge + 6, edge + size + 16 + 16 * i))
        body.append(svg_text(edge + 18, edge + size + 20 + 16 * i, visible_text(name, 48)))
    return svg_figure(max(size + 2 * edge, 8 * len(title)), size + 2 * edge + 16 * len(legend), title, body)


def _symbol(number: int, x: float, y: float) -> str:
    """A mark for a group: circle, square, triangle, diamond, ring, box; then again in the other colours."""
    kind = ("hot", "loss", "gain", "soft")[number // _SHAPES % 4]
    shape = number % _SHAPES
    if shape == 0:
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    if shape == 1:
        return f'<rect class="{kind}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    if shape == 2:
        return f'<path class="{kind}" d="M{x:.1f} {y - 5.5:.1f}l5.5 10h-11z"/>'
    if shape == 3:
        return f'<path class="{kind}" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"/>'
    if shape == 4:
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    return f'<rect class="mark" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
