"""Heat maps, bars and maps of points as SVG text: no library, no network, readable in light and dark.

It knows numbers and labels; every label is escaped. Values are also written into each cell's ``<title>``, so that
pointing at it, or a screen reader, tells them.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from torch import Tensor

STYLE = """\
.pl{--ink:#1f2328;--soft:#59636e;--paper:#fff;--line:#d1d9e0;--hot:#0b57d0;--gain:#0a7d48;--loss:#c4320a}
@media (prefers-color-scheme:dark){.pl{--ink:#e6edf3;--soft:#9198a1;--paper:#0d1117;--line:#3d444d;--hot:#7cb0ff;--gain:#56d397;--loss:#ff9a70}}
.pl text{fill:var(--ink);font:11px ui-monospace,Consolas,monospace}
.pl .title{font:600 13px system-ui,sans-serif}.pl .soft{fill:var(--soft)}
.pl .back{fill:var(--paper)}.pl .hot{fill:var(--hot)}.pl .gain{fill:var(--gain)}.pl .loss{fill:var(--loss)}
.pl .frame{fill:none;stroke:var(--line)}.pl .mark{fill:none;stroke:var(--ink);stroke-width:1.5}
"""
_CHARACTER = 6.7  # width of one in the labels' font
_SHAPES = 6


def visible_text(text: str, longest: int = 18) -> str:
    """A token for people: line ends and spaces shown, control characters replaced, cut when long."""
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
    """A text as HTML and XML take it: escaped, and without control characters or marks that turn the direction."""
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text), quote=True)


def _svg(width: float, height: float, title: str, body: Sequence[str]) -> str:
    """A whole SVG that also stands alone in a file."""
    label = safe_text(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="pl" role="img" aria-label="{label}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">'
        f"<style>{STYLE}</style>"
        f'<rect class="back" width="{width:.0f}" height="{height:.0f}"/>'
        f'<text class="title" x="8" y="18">{label}</text>{"".join(body)}</svg>\n'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "", turn: bool = False) -> str:
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
) -> str:
    """A table of numbers as coloured cells: the stronger, the larger the number.

    Args:
        values: ``[rows, columns]``; NaN leaves a cell empty.
        rows: A label for each row.
        columns: A label for each column.
        title: Stands above.
        across: What the columns are.
        down: What the rows are.
        signed: Positive and negative numbers in two colours.
        top: The number of the full colour; the largest by default.
        mark: A cell to frame; without a column, the whole row.
        cell: Width and height of a cell.
    """
    table = values.tolist()
    strongest = top or max((abs(v) for row in table for v in row if v == v), default=0.0) or 1.0
    row_labels = [visible_text(label) for label in rows]
    column_labels = [visible_text(label) for label in columns]
    left = 16 + _CHARACTER * max([len(label) for label in row_labels] + [len(down) // 2 or 1])
    width, height = cell
    longest = _CHARACTER * max((len(label) for label in column_labels), default=0)
    turn = longest > width  # labels that do not fit above their cells stand slanted
    above = 34 + (14 if across else 0) + (0.82 * longest if turn else 8)
    body: list[str] = []
    for j, label in enumerate(column_labels):
        x, anchor = (j + 0.6, "start") if turn else (j + 0.5, "middle")
        body.append(_text(left + x * width, above - 5, label, anchor=anchor, turn=turn))
    for i, (label, row) in enumerate(zip(row_labels, table, strict=True)):
        y = above + i * height
        body.append(_text(left - 5, y + height * 0.72, label, anchor="end"))
        for j, value in enumerate(row):
            if value != value:
                continue
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
        body.append(_text(left, 34, across, kind="soft"))
    scale = f"full colour = {'±' if signed else ''}{strongest:.3g}" + (f"; rows: {down}" if down else "")
    body.append(_text(8, above + high + 18, scale, kind="soft"))
    slant = 0.6 * _CHARACTER * max((len(label) for label in column_labels[-3:]), default=0) if turn else 0.0
    needed = max(left + wide + slant + 8, 8 + 8 * len(title), 8 + _CHARACTER * len(scale))
    return _svg(needed, above + high + 28, title, body)


def bars(values: Sequence[float], labels: Sequence[str], title: str, *, other: Sequence[float] | None = None) -> str:
    """One bar for each label, 0 … 1; with ``other`` a second one below it (base above, adapted below)."""
    shown = [visible_text(label) for label in labels]
    left, step, full = 16 + _CHARACTER * max(map(len, shown), default=1), 26 if other is not None else 18, 260
    body: list[str] = []
    for i, label in enumerate(shown):
        y = 34 + i * step
        body.append(_text(left - 5, y + 10, label, anchor="end"))
        lines = [(values[i], "hot", y)] if other is None else [(values[i], "soft", y), (other[i], "hot", y + 11)]
        for value, kind, at in lines:
            body.append(
                f'<rect class="{kind}" x="{left:.1f}" y="{at}" width="{full * min(max(value, 0.0), 1.0):.1f}" height="9"/>'
            )
            body.append(_text(left + full * min(max(value, 0.0), 1.0) + 5, at + 9, f"{value:.3f}"))
    if other is not None:
        body.append(_text(8, 34 + len(shown) * step + 12, "grey: base; colour: adapted", kind="soft"))
    return _svg(max(left + full + 60, 8 * len(title)), 34 + len(shown) * step + 24, title, body)


def point_map(points: Tensor, labels: Sequence[str], groups: Sequence[str], title: str) -> str:
    """Points in a plane, each with its number; groups differ in shape and strength, the legend names them."""
    size, edge = 380.0, 30.0
    low, high = points.amin(dim=0), points.amax(dim=0)
    span = float((high - low).max()) or 1.0
    names = list(dict.fromkeys(groups))
    body = [f'<rect class="frame" x="{edge}" y="{edge}" width="{size}" height="{size}"/>']
    for i, (x, y) in enumerate(((points - (low + high) / 2) / span + 0.5).tolist()):
        px, py = edge + 14 + x * (size - 44), edge + size - 14 - y * (size - 28)  # room for a number at the right
        body.append(
            f"<g><title>{safe_text(f'{i} {labels[i]}')}</title>{_symbol(names.index(groups[i]), px, py)}"
            f"{_text(px + 7, py + 4, str(i))}</g>"
        )
    legend = [name for name in names if name]
    for i, name in enumerate(legend):
        body.append(_symbol(names.index(name), edge + 6, edge + size + 16 + 16 * i))
        body.append(_text(edge + 18, edge + size + 20 + 16 * i, visible_text(name, 48)))
    return _svg(max(size + 2 * edge, 8 * len(title)), size + 2 * edge + 16 * len(legend), title, body)


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
