"""A diagram of one token's way through one head: x, q, keys, scores, softmax, mix, o, residual.

Every box shows its numbers, the base's in grey and the adapted model's in colour. The width of the line from a key to
the mix is proportional to the weight of that key. ``flow_diagram`` draws one token, for a page that swaps figures.
``flow_figure`` draws all tokens of a text into one file, in which a click on a token switches the diagram without a
script. This module knows the life of a token; it knows nothing of captures or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from promptlora.inspect.drawing import safe_text, svg_figure, svg_text, visible_text
from promptlora.inspect.folding import Fold
from promptlora.inspect.life import Side, TokenLife

WIDTH = 1180
_X, _Q, _KEY, _MIX, _O = (12, 116), (158, 120), (328, 122), (902, 112), (1046, 122)  # left edge and width of each box
_SCORES, _BARS, _BAR, _WEIGHTS, _WIRE = (526, 594), 614, 106, (772, 826), 832
_TOP, _STEP, _BOX = 84, 32, 84
_MOST = 7  # keys with their own row; the others are summed in one row


@dataclass(frozen=True)
class _Row:
    """One row between query and mix: a key, a folded run, all other keys, or the sink."""

    label: str
    token: int | None
    scores: tuple[float, ...]
    weights: tuple[float, ...]
    marked: bool = False


def _sides(life: TokenLife) -> list[tuple[str, Side]]:
    """The sides with their colours."""
    return [("hot", life.base)] if life.adapted is None else [("soft", life.base), ("hot", life.adapted)]


def _rows(life: TokenLife, fold: Fold, key: int | None, most: int) -> list[_Row]:
    """The keys with the highest weight in either model, in text order, and the sum of the others."""
    sides = [side for _, side in _sides(life)]
    weights = [fold.columns(side.weights).tolist() for side in sides]
    seen = [at for at, group in enumerate(fold.groups) if any(float(sides[0].masked[i]) != -inf for i in group)]
    own = fold.place(life.token)
    first = [own, *([fold.place(key)] if key is not None and fold.place(key) in seen else [])]
    by_weight = sorted(seen, key=lambda at: (at not in first, -max(each[at] for each in weights)))
    # Allow one more row than fits: otherwise the row of the others could stand for a single key.
    shown = set(by_weight if len(by_weight) <= most + 1 else by_weight[:most])
    rows = []
    for at in seen:
        if at not in shown:
            continue
        group = fold.groups[at]
        single = len(group) == 1
        rows.append(
            _Row(
                label=f"{group[0]} {visible_text(life.tokens[group[0]], 12)}" if single else fold.labels[at],
                token=group[0] if single else None,
                scores=tuple(float(side.masked[group[0]]) for side in sides) if single else (),
                weights=tuple(each[at] for each in weights),
                marked=key is not None and key in group,
            )
        )
    left = [at for at in seen if at not in shown]
    if left:
        count = sum(len(fold.groups[at]) for at in left)
        rows.append(_Row(f"{count} other tokens", None, (), tuple(sum(each[at] for at in left) for each in weights)))
    if any(side.sink for side in sides):
        rows.append(_Row("no token (sink)", None, (), tuple(side.sink for side in sides)))
    return rows


def _lengths(x: float, y: float, values: Sequence[tuple[str, float]]) -> str:
    """A line of text with vector lengths, one per side."""
    names = ("base", "adapted") if len(values) > 1 else ("length",)
    lines = [
        svg_text(x, y + 14 * i, f"{name} {value:.3f}", anchor="middle", kind=kind)
        for i, (name, (kind, value)) in enumerate(zip(names, values, strict=True))
    ]
    return "".join(lines)


def _box(place: tuple[int, int], middle: float, head: str, values: Sequence[tuple[str, float]], below: str = "") -> str:
    left, width = place
    top, centre = middle - _BOX / 2, left + width / 2
    return (
        f'<rect class="box" x="{left}" y="{top:.1f}" width="{width}" height="{_BOX}" rx="6"/>'
        + svg_text(centre, top + 18, head, anchor="middle", kind="title")
        + _lengths(centre, top + 37, values)
        + (svg_text(centre, top + _BOX - 9, below, anchor="middle", kind="soft") if below else "")
    )


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """A straight arrow along one axis."""
    across, down = (to_x > x) - (to_x < x), (to_y > y) - (to_y < y)
    head = f"M{to_x:.1f} {to_y:.1f}l{-7 * across - 4 * abs(down):.0f} {-7 * down - 4 * abs(across):.0f}"
    head += f"l{8 * abs(down):.0f} {8 * abs(across):.0f}z"
    end_x, end_y = to_x - 5 * across, to_y - 5 * down
    return f'<path class="wire" d="M{x:.1f} {y:.1f}L{end_x:.1f} {end_y:.1f}"/><path class="soft" d="{head}"/>'


def _curve(kind: str, x: float, y: float, to_x: float, to_y: float, width: float) -> str:
    half = (x + to_x) / 2
    return (
        f'<path class="{kind}" stroke-width="{width:.2f}" '
        f'd="M{x:.1f} {y:.1f}C{half:.1f} {y:.1f} {half:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"/>'
    )


def _line(row: _Row, y: float, middle: float, kinds: Sequence[str], pick: str) -> str:
    """A key's row: from the query through its score and its weight to the mix."""
    left, width = _KEY
    chip = (
        f'<rect class="{"mark" if row.marked else "box"}" x="{left}" y="{y - 11:.1f}" width="{width}" height="22" rx="4"/>'
        + svg_text(left + 8, y + 4, row.label, kind="" if row.token is not None else "soft")
    )
    if row.token is not None and pick:
        chip = f"<g{pick.format(row.token)}>{chip}</g>"
    parts = [_curve("wire", _Q[0] + _Q[1], middle, left, y, 1.0), chip]
    for end, score, kind in zip(_SCORES, row.scores, kinds, strict=False):
        parts.append(svg_text(end, y + 4, f"{score:.2f}", anchor="end", kind=kind))
    for i, (weight, kind) in enumerate(zip(row.weights, kinds, strict=True)):
        at, high = (y - 9 + 10 * i, 8) if len(kinds) > 1 else (y - 6, 12)
        parts.append(
            f'<rect class="{kind}" x="{_BARS}" y="{at:.1f}" width="{_BAR * min(weight, 1.0):.1f}" height="{high}"/>'
        )
        parts.append(svg_text(_WEIGHTS[i], y + 4, f"{weight:.3f}", anchor="end", kind=kind))
    for weight, kind in zip(row.weights, kinds, strict=True):
        drawn = "stream" if kind == "hot" else "trace"
        parts.append(_curve(drawn, _WIRE, y, _MIX[0], middle, 12 * weight if weight >= 0.005 else 0.0))
    return f'<g class="line">{"".join(parts)}</g>'


def _drawn(life: TokenLife, fold: Fold, key: int | None, rows: int, pick: str) -> tuple[float, list[str]]:
    """Height and parts of the diagram; ``rows`` is the minimum number of rows to leave room for."""
    sides = _sides(life)
    kinds = [kind for kind, _ in sides]
    lines = _rows(life, fold, key, _MOST)
    high = _STEP * max(len(lines), rows, 4)
    middle, ground = _TOP + high / 2, _TOP + high + 54
    shares = {} if life.adapted is None else {role: 100 * s[2] for role, s in life.adapted.shares.items()}

    def added(role: str) -> str:
        return f"adapter {shares[role]:.1f} %" if role in shares else ""

    def lengths(name: str) -> list[tuple[str, float]]:
        found = [(kind, getattr(side, name)) for kind, side in sides]
        return [(kind, float(vector.norm())) for kind, vector in found if vector is not None]

    capped = f", bent at ±{life.softcap:g}" if life.softcap else ""
    heads = (
        (_KEY[0], "keys k", f"{added('k')} here" if added("k") else f"of key head {life.key_head}"),
        (_SCORES[0] - 62, f"q·k × {life.scaling:.3g}{capped}", "later tokens masked"),
        (_BARS, "softmax: weights", "they sum to 1"),
        (_WIRE - 8, "weight · v", f"{added('v')} here" if added("v") else ""),
    )
    gate = "× gate" if life.base.gate is not None else ""
    end = _O[0] + _O[1] / 2
    parts = [
        *(svg_text(x, 46, head, kind="title") + svg_text(x, 61, told, kind="soft") for x, head, told in heads),
        f'<path class="ground" d="M12 {ground:.1f}H{WIDTH - 12}"/>',
        _arrow(_X[0] + _X[1] / 2, ground, _X[0] + _X[1] / 2, middle + _BOX / 2),
        svg_text(_X[0] + _X[1] / 2 + 8, middle + _BOX / 2 + 22, "norm", kind="soft"),
        _box(_X, middle, "x", lengths("x"), f"{life.token} {visible_text(life.tokens[life.token], 10)}"),
        _arrow(_X[0] + _X[1], middle, _Q[0], middle),
        _box(_Q, middle, "query q", lengths("q"), added("q")),
        _box(_MIX, middle, "mix", lengths("mixed"), gate),
        _arrow(_MIX[0] + _MIX[1], middle, _O[0], middle),
        _box(_O, middle, "o (all heads)", lengths("out"), added("o")),
        _arrow(end, middle + _BOX / 2, end, ground - 11),
        f'<circle class="back" cx="{end}" cy="{ground:.1f}" r="11"/><circle class="mark" cx="{end}" cy="{ground:.1f}" r="11"/>',
        svg_text(end, ground + 4, "+", anchor="middle", kind="title"),
        *_residual(ground, lengths("residual_before"), lengths("residual_after")),
        *(_line(row, _TOP + _STEP * (i + 0.5), middle, kinds, pick) for i, row in enumerate(lines)),
    ]
    return ground + 38, parts


def _residual(ground: float, before: Sequence[tuple[str, float]], after: Sequence[tuple[str, float]]) -> list[str]:
    """The lengths of the residual stream, at both ends of its line."""

    def told(values: Sequence[tuple[str, float]]) -> str:
        names = ("base", "adapted") if len(values) > 1 else ("length",)
        return ", ".join(f"{name} {value:.3f}" for name, (_, value) in zip(names, values, strict=True))

    left = f"residual before: {told(before)}" if before else "residual"
    right = f"residual after: {told(after)}" if after else ""
    return [
        svg_text(12, ground + 26, left, kind="soft"),
        svg_text(WIDTH - 12, ground + 26, right, anchor="end", kind="soft"),
    ]


def _summary(life: TokenLife) -> str:
    """A description of the diagram, for screen readers and as its title."""
    return (
        f"Token {life.token} {visible_text(life.tokens[life.token])} in layer {life.layer}, head {life.head}"
        + (": base in grey, adapted in colour" if life.adapted is not None else "")
    )  # fmt: skip


def flow_diagram(life: TokenLife, fold: Fold, key: int | None = None) -> str:
    """The diagram of one token, for a page.

    Args:
        life: The token's walk, base and adapted.
        fold: Which tokens are shown together.
        key: A key to show and to frame, even if its weight is small.
    """
    height, parts = _drawn(life, fold, key, 0, ' data-at="token={}"')
    return svg_figure(WIDTH, height, _summary(life), parts)


def flow_figure(lives: Sequence[TokenLife], fold: Fold, at: int) -> str:
    """Draw the diagrams of all tokens of a text into one file; a click on a token shows its diagram.

    Args:
        lives: One walk per token, all in the same layer and head.
        fold: Which tokens are shown together.
        at: Index in ``lives`` of the diagram that is shown first.
    """
    rows = max(len(_rows(life, fold, None, _MOST)) for life in lives)
    frames, height = [], 0.0
    for i, life in enumerate(lives):
        height, parts = _drawn(life, fold, None, rows, "")
        title = safe_text(_summary(life))
        shown = svg_text(WIDTH - 12, 18, _summary(life), anchor="end", kind="soft")
        frames.append(
            f'<g class="step{" first" if i == at else ""}" id="token-{life.token}"><title>{title}</title>'
            f"{shown}{''.join(parts)}</g>"
        )
    chips, x = [], 12.0
    for life in lives:
        label = visible_text(life.tokens[life.token])
        wide = 16 + 6.7 * len(label)
        chips.append(
            f'<a href="#token-{life.token}"><rect class="box" x="{x:.1f}" y="{height:.1f}" width="{wide:.1f}" height="24" '
            f'rx="4"/>{svg_text(x + 8, height + 16, label)}</a>'
        )
        x += wide + 6
    told = "open this figure by itself and click a token: the diagram moves to it"
    chips.append(svg_text(x + 8, height + 16, told, kind="soft"))
    title = f"Layer {lives[0].layer}, head {lives[0].head}: from x to the new x"
    hidden = "<style>.step{display:none}.step.first,.step:target{display:inline}svg:has(.step:target) .first:not(:target){display:none}</style>"
    return svg_figure(WIDTH, height + 36, title, [hidden, *frames, *chips])
