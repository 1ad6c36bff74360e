"""The walk through attention as HTML: tokens, next words, heat maps, the flow diagram, every key, all heads.

Elements with ``data-at`` (``"token=5"``, ``"layer=3&head=2"``) and figures with ``data-row`` and ``data-column`` define
what a click on them selects; the page's script forwards the click. This module knows captures; it knows nothing of
Gradio.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from promptlora.inspect import AttentionCapture, Fold, flow_diagram, token_life
from promptlora.inspect.drawing import Pick, bars, heat_map, plain_zero, thumbnail, visible_text
from promptlora.inspect.life import TokenLife
from promptlora.inspect.sections import Section, layer_sections
from promptlora.ui.html import drawing, safe
from promptlora.ui.values import Inside


@dataclass(frozen=True)
class Place:
    """The place in the walk: a token, a layer and a head, and the key that was clicked, if any."""

    token: int
    layer: int
    head: int
    key: int | None = None


def _token(text: str) -> str:
    return f'<code dir="auto">{safe(visible_text(text))}</code>'


def _number(value: float, digits: int = 3) -> str:
    return "masked" if value == float("-inf") else f"{plain_zero(value, 0.5 * 10**-digits):.{digits}f}"


def _signed(value: float) -> str:
    if abs(value) < 5e-5:
        return '<span class="pl-soft">0.0000</span>'
    return f'<span class="{"pl-gain" if value > 0 else "pl-loss"}">{value:+.4f}</span>'


def _pair(base: str, adapted: str) -> str:
    """Base and adapted in one cell: side by side, or stacked on a phone."""
    return f'<span class="pl-pair"><span>{base}</span><span class="pl-second">{adapted}</span></span>'


# --- the whole model ---------------------------------------------------------------------------------------


def likely(inside: Inside) -> str:
    """The most probable first tokens of each model, as bars."""
    drawn = bars(
        [one.base for one in inside.likely],
        [one.token for one in inside.likely],
        "Probability of the first token of the answer",
        other=[one.adapted for one in inside.likely],
        top=max(max(one.base, one.adapted) for one in inside.likely),
    )
    return f'<div class="pl-likely">{drawing(drawn, "Probability of the first token of the answer")}</div>'


def changes(inside: Inside, place: Place) -> str:
    """How much each head's weights change at the token, as a map of heads by layers; a click opens the head."""
    table = inside.change[..., place.token].T
    heads, layers = list(range(table.shape[0])), list(inside.layers)
    mark = (place.head, layers.index(place.layer)) if place.layer in layers and place.head in heads else None
    shown = f"token {place.token} {visible_text(inside.tokens[place.token])}"
    drawn = heat_map(
        table,
        [f"head {n}" for n in heads],
        [str(n) for n in layers],
        f"Change of attention at {shown}",
        across="layer",
        mark=mark,
        cell=(20, 20),
        pick=Pick("head", heads, "layer", layers),
    )
    return f'<div class="pl-changes">{drawing(drawn, "Change of attention by head and layer")}</div>'


def token_chips(fold: Fold, here: int) -> str:
    """The text as numbered tokens. Each is a button, except folded runs; the selected token is marked."""
    cells = []
    for group, label in zip(fold.groups, fold.labels, strict=True):
        if len(group) > 1:
            cells.append(f'<span class="pl-token pl-fold"><small>{group[0]}–{group[-1]}</small>{safe(label)}</span>')
            continue
        (i,) = group
        cells.append(
            f'<button type="button" class="pl-token" data-at="token={i}" aria-pressed="{str(i == here).lower()}">'
            f"<small>{i}</small>{_token(fold.tokens[i])}</button>"
        )
    return f'<div class="pl-strip" role="group" aria-label="Tokens of the text">{"".join(cells)}</div>'


# --- one head ----------------------------------------------------------------------------------------------


def _tables(capture: AttentionCapture, fold: Fold, layer: int, head: int) -> tuple[Tensor, Tensor]:
    """The head's weights in the base and in the adapted model, folded, ``[rows, groups]``."""
    base = capture.base[layer]
    assert base.softmax is not None
    visible = base.softmax.visible[base.softmax.at(head)]
    adapted = (capture.adapted or capture.base)[layer]
    return fold.table(base.weights(head), visible), fold.table(adapted.weights(head), visible)


def head_maps(capture: AttentionCapture, fold: Fold, place: Place) -> str:
    """The head's weights in base and adapted model, and their difference; a click on a cell selects its token."""
    base, adapted = _tables(capture, fold, place.layer, place.head)
    rows = [fold.groups[at][0] for at in fold.single]
    pick = Pick("token", rows, "key", [group[0] if len(group) == 1 else -1 for group in fold.groups])
    key = None if place.key is None else fold.place(place.key)
    cell = min(max(240 // len(fold.groups), 12), 26)
    drawn = []
    for name, title, values in (
        ("base", "Base", base),
        ("adapted", "Adapted", adapted),
        ("difference", "Adapted − base", adapted - base),
    ):
        signed = name == "difference"
        svg = heat_map(
            values,
            [fold.labels[at] for at in fold.single],
            fold.labels,
            title,
            across="looked at",
            down="who looks",
            signed=signed,
            top=None if signed else 1.0,
            mark=(rows.index(place.token), key),
            cell=(cell, cell),
            pick=pick,
        )
        drawn.append(f'<div class="pl-map" data-map="{name}">{drawing(svg, f"{title}: attention weights")}</div>')
    return f'<div class="pl-maps">{"".join(drawn)}</div>'


def all_heads(capture: AttentionCapture, fold: Fold, inside: Inside, place: Place) -> str:
    """Every head of the layer as a pair of small pictures, base and adapted; a click opens the head."""
    part = capture.base[place.layer].softmax
    if part is None:
        return ""
    buttons = []
    row = inside.layers.index(place.layer)
    for head in part.heads:
        base, adapted = _tables(capture, fold, place.layer, head)
        change = float(inside.change[row, head, place.token])
        buttons.append(
            f'<button type="button" class="pl-thumb" data-at="head={head}" aria-pressed="{str(head == place.head).lower()}">'
            f"<span>{thumbnail(base, f'Head {head}, base')}{thumbnail(adapted, f'Head {head}, adapted')}</span>"
            f"<small>head {head} · change {plain_zero(change):.3f}</small></button>"
        )
    return (
        f'<h3>All heads of layer {place.layer}</h3><p class="pl-soft">Left the base, right the adapted model; the change is '
        f"that of token {place.token}.</p><div class='pl-thumbs'>{''.join(buttons)}</div>"
    )


def _bar(value: float, kind: str) -> str:
    """A bar under a weight; empty if the bar would be only a dot."""
    return f'<span class="pl-bar pl-{kind}" style="width:{100 * min(value, 1.0):.1f}%"></span>' if value >= 0.01 else ""


def _keys(life: TokenLife, fold: Fold, key: int | None) -> str:
    """Every key of the row: scores, weights, change; a folded run has the sum of its weights."""
    base, adapted = life.base, life.adapted or life.base
    weights = [fold.columns(side.weights).tolist() for side in (base, adapted)]
    body = []
    for at, group in enumerate(fold.groups):
        if group[0] > life.token:
            continue
        first, second = (each[at] for each in weights)
        kind = "pl-here" if life.token in group else "pl-key" if key is not None and key in group else ""
        marked = f' class="{kind}"' if kind else ""
        if len(group) == 1:
            name = _token(life.tokens[group[0]])
            raw, score = (
                _pair(*(_number(float(getattr(side, part)[group[0]])) for side in (base, adapted)))
                for part in ("raw", "masked")
            )
        else:
            name, raw, score = safe(fold.labels[at]), "", ""
        bars_ = _pair(_bar(first, "base") + _number(first, 4), _bar(second, "adapted") + _number(second, 4))
        number = str(group[0]) if len(group) == 1 else f"{group[0]}–{group[-1]}"
        body.append(
            f"<tr{marked}><td>{number}</td><td class='pl-text'>{name}</td><td>{raw}</td><td>{score}</td>"
            f"<td class='pl-weight'>{bars_}</td><td>{_signed(second - first)}</td></tr>"
        )
    sides = _pair("base", "adapted")
    return (
        '<div class="pl-wide" tabindex="0" role="region" aria-label="Every key of this row"><table><thead><tr><th scope="col">#</th>'
        f'<th scope="col" class="pl-text">key</th><th scope="col">q·k{sides}</th><th scope="col">scaled{sides}</th>'
        f'<th scope="col">weight{sides}</th><th scope="col">change</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _gains(life: TokenLife) -> str:
    named = []
    for what, found in zip(("Gained", "Lost"), life.changes(), strict=True):
        told = ", ".join(f"{_token(life.tokens[i])} {_signed(change)}" for i, change in found if abs(change) >= 5e-5)
        named.append(f"{what} most: {told}" if told else f"None {what.lower()}")
    return ". ".join(named)


def walk(capture: AttentionCapture, inside: Inside, place: Place, *, folded: bool) -> str:
    """One token in one head: tokens, heat maps, the flow diagram, every key, all heads of the layer.

    Raises:
        AttentionError: A token, layer or head that was not captured.
    """
    fold = Fold.of(capture.tokens, inside.template if folded else [False] * len(capture.tokens), place.token)
    chips = token_chips(fold, place.token)
    if capture.base[place.layer].softmax is None:
        return chips + no_softmax(capture, place.layer, place.token)
    life = token_life(capture, place.token, place.layer, place.head)
    sides = (("base", life.base), ("adapted", life.adapted or life.base))
    sums = [(name, float(side.weights.sum()) + side.sink) for name, side in sides]
    total = "; ".join(
        f'{name} <output data-sum="{name}" data-sum-value="{value:.12f}">{value:.6f}</output>' for name, value in sums
    )
    left = len(life.tokens) - life.token - 1
    after = f" {left} later token{'s' if left > 1 else ''}: masked, weight 0." if left else ""
    return (
        f'<div class="pl-walk" data-layer="{life.layer}" data-head="{life.head}" data-token="{life.token}">{chips}'
        f"{head_maps(capture, fold, place)}<h3>From x to the new x</h3>"
        f'<div class="pl-flow">{drawing(flow_diagram(life, fold, place.key), "The flow of one token through one head")}</div>'
        f"<p>Token {life.token} {_token(life.tokens[life.token])}, layer {life.layer}, head {life.head}. "
        f"The weights of this row sum to: {total}.{after} {_gains(life)}.</p>{_keys(life, fold, place.key)}"
        f"{all_heads(capture, fold, inside, place)}{_proved(capture)}</div>"
    )


def _proved(capture: AttentionCapture) -> str:
    return (
        '<p class="pl-soft">Recomputed in float64 and compared with the model: largest relative difference '
        f"{capture.difference:.1e}.</p>"
    )


# --- layers without softmax weights ------------------------------------------------------------------------


def _section(section: Section) -> str:
    """A section as a table, with base and adapted in one cell."""
    sides = _pair(*section.sides) if len(section.sides) > 1 else ""
    head = "".join(
        f'<th scope="col"{" class=pl-text" if i == 0 else ""}>{safe(column.name)}{sides if column.sided else ""}</th>'
        for i, column in enumerate(section.columns)
    )
    rows = []
    for row in section.texts():
        (name, *_), *cells = ([safe(text) for text in texts] for texts in row)
        drawn = "".join(f"<td>{_pair(*texts) if len(texts) > 1 else texts[0]}</td>" for texts in cells)
        rows.append(f'<tr><td class="pl-text">{name}</td>{drawn}</tr>')
    return (
        f'<h3>{safe(section.title)}</h3><div class="pl-wide" tabindex="0" role="region" aria-label="{safe(section.title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def no_softmax(capture: AttentionCapture, layer: int, token: int) -> str:
    """The values of a layer without softmax weights for one token, and a note that the layer has none."""
    drawn = "".join(map(_section, layer_sections(capture, layer, token)))
    return (
        f'<div class="pl-walk" data-layer="{layer}" data-token="{token}"><p>Token {token} '
        f"{_token(capture.tokens[token])}, layer {layer}: {safe(capture.base[layer].note)}.</p>{drawn}{_proved(capture)}</div>"
    )
