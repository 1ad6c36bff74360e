"""What the studio made, as HTML fragments; every text of a visitor or a model is escaped.

It knows the studio's values; nothing of Gradio. Style is in ``style``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from torch import Tensor

from promptlora.inspect import AttentionCapture
from promptlora.inspect.ablation import Ablation
from promptlora.inspect.drawing import visible_text
from promptlora.inspect.life import TokenLife
from promptlora.ui.studio import Answers, Written

# Gradio's HTML component is a template: $, braces and backticks are written so that it finds none of its own.
_TEMPLATE = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;", "\x00": "\ufffd"})
_SHOWN = 6_000  # characters of a text that are put on the page


def safe(text: str) -> str:
    """A text for HTML, also as an attribute: nothing of it is markup or template."""
    return escape(str(text)[:_SHOWN], quote=True).translate(_TEMPLATE)


def size(nbytes: int) -> str:
    """Bytes for people: 3.7 MB."""
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.0f} kB"


def status(text: str, kind: str = "idle") -> str:
    """One line about what goes on: ``idle``, ``busy``, ``done`` or ``error``; read out by screen readers."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="pl-status pl-{kind}" role="{role}" data-kind="{kind}">{safe(text)}</p>'


def written(one: Written, kept: int, capacity: int) -> str:
    """Time, size and shape of an adapter, for a status line."""
    lora = one.lora
    when = f"kept from before (it took {one.seconds:.2f} s)" if one.reused else f"written in {one.seconds:.2f} s"
    return (
        f"adapter {when} · {size(lora.nbytes)} · rank {lora.rank} · {len(lora)} projections · {kept} of {capacity} kept"
    )


_WHO = (
    ("base", "Base", "without the prompt"),
    ("in_context", "In context", "the prompt stands before the input"),
    ("adapted", "Adapted", "the prompt is in the weights, not in the context"),
)


def answers(found: Answers) -> str:
    """Three answers to each input, side by side; below one another on a phone."""
    blocks = []
    for i, text in enumerate(found.inputs):
        cells = []
        for which, (name, title, note) in enumerate(_WHO):
            said = str(getattr(found, name)[i])
            read = found.read[i][1 if name == "in_context" else 0]
            told = f"{note} · {read} tokens read" + (f" · cut at {found.longest}" if found.cut[i][which] else "")
            waiting = "" if found.done else '<span class="pl-caret" aria-hidden="true"></span>'
            empty = '<span class="pl-soft">(no answer)</span>' if found.done and not said else ""
            cells.append(
                f'<div class="pl-cell pl-{name}"><h4>{title}<span class="pl-soft"> {told}</span></h4>'
                f'<div class="pl-answer" dir="auto" data-who="{name}" data-input="{i}">{safe(said)}{waiting}{empty}</div></div>'
            )
        blocks.append(
            f'<section class="pl-block"><h3 class="pl-input" dir="auto">{safe(text)}</h3>'
            f'<div class="pl-three">{"".join(cells)}</div></section>'
        )
    return f'<div class="pl-answers" aria-busy="{str(not found.done).lower()}" data-done="{str(found.done).lower()}">{"".join(blocks)}</div>'


# --- the walk ----------------------------------------------------------------------------------------------


def _token(text: str) -> str:
    return f'<code dir="auto">{safe(visible_text(text))}</code>'


def _number(value: float, digits: int = 3) -> str:
    return "masked" if value == float("-inf") else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    if abs(value) < 5e-5:
        return '<span class="pl-soft">0.0000</span>'
    return f'<span class="{"pl-gain" if value > 0 else "pl-loss"}">{value:+.4f}</span>'


def _bar(value: float, kind: str) -> str:
    """A bar under a weight; none where it would be a dot."""
    return f'<span class="pl-bar pl-{kind}" style="width:{100 * min(value, 1.0):.1f}%"></span>' if value >= 0.01 else ""


def _lengths(base: Tensor | None, adapted: Tensor | None) -> str:
    """The lengths of a vector in both models, for a line of the walk."""
    found = [(name, vector) for name, vector in (("base", base), ("adapted", adapted)) if vector is not None]
    return "length: " + ", ".join(f"{name} {float(vector.norm()):.3f}" for name, vector in found) if found else ""


def _shares(shares: Mapping[str, float]) -> str:
    return " · ".join(f"{role} {100 * share:.1f} %" for role, share in shares.items())


def _list(rows: Sequence[tuple[str, str, str]]) -> str:
    """The steps of a walk: a name, what happens, its numbers."""
    lines = "".join(
        f"<li><b>{safe(name)}</b> <span>{safe(what)}</span> <span class='pl-soft'>{safe(numbers)}</span></li>"
        for name, what, numbers in rows
    )
    return f'<ol class="pl-steps">{lines}</ol>'


_ADDED = "how much of what leaves each projection the adapter adds at this token (share of its length)"


def _steps(life: TokenLife) -> str:
    """The way of the token's vector, one line a step."""
    base, adapted = life.base, life.adapted

    def lengths(pick: str) -> str:
        return _lengths(getattr(base, pick), None if adapted is None else getattr(adapted, pick))

    last = adapted or base
    capped = f", then bent at ±{life.softcap:g}" if life.softcap else ""
    sink = f"; {last.sink:.3f} of it goes to no token (a sink)" if last.sink else ""
    norm = [("norm", "the query of this head after its norm", lengths("q_normed"))] if last.q_normed is not None else []
    gate = [("gate", "what the sum is multiplied by", lengths("gate"))] if last.gate is not None else []
    return _list(
        [
            ("x", "the token's vector as it enters the block", lengths("x")),
            ("q, k, v, o", _ADDED, _shares({role: share for role, (_, _, share) in last.shares.items()})),
            *norm,
            ("q", "the query of this head, as it meets the keys", lengths("q")),
            ("q · k", f"the query asks every key (of key head {life.key_head}); later tokens are masked", ""),
            ("scale", f"every score times {life.scaling:.4f}{capped}", ""),
            ("softmax", f"scores become weights that sum to 1, see the table{sink}", ""),
            ("Σ w · v", "the values, each times its weight, added up", lengths("mixed")),
            *gate,
            ("o", "all heads together through o", lengths("out")),
            ("residual", "added to the token's vector", lengths("residual_after")),
        ]
    )


def _pair(base: str, adapted: str) -> str:
    """Base and adapted in one cell: side by side, on a phone below one another."""
    return f'<span class="pl-pair"><span>{base}</span><span class="pl-second">{adapted}</span></span>'


def walk(capture: AttentionCapture, life: TokenLife) -> str:
    """The walk of one token through one head: steps, sums, every key, gains and losses."""
    adapted = life.adapted or life.base
    sums = [(name, float(side.weights.sum()) + side.sink) for name, side in (("base", life.base), ("adapted", adapted))]
    total = "; ".join(
        f'{name} <output data-sum="{name}" data-sum-value="{value:.12f}">{value:.6f}</output>' for name, value in sums
    )
    gains, losses = life.changes()
    named = []
    for what, found in (("Gained", gains), ("Lost", losses)):
        told = ", ".join(f"{_token(life.tokens[i])} {_signed(change)}" for i, change in found)
        named.append(f"{what} most: {told}" if told else f"None {what.lower()}")
    body = []
    for i, text in enumerate(life.tokens[: life.token + 1]):
        b, a = life.base, adapted
        here = ' class="pl-here"' if i == life.token else ""
        weights = [
            (_bar(float(s.weights[i]), k), _number(float(s.weights[i]), 4)) for s, k in ((b, "base"), (a, "adapted"))
        ]
        body.append(
            f"<tr{here}><td>{i}</td><td class='pl-text'>{_token(text)}</td>"
            f"<td>{_pair(_number(float(b.raw[i])), _number(float(a.raw[i])))}</td>"
            f"<td>{_pair(_number(float(b.masked[i])), _number(float(a.masked[i])))}</td>"
            f"<td class='pl-weight'>{_pair(*(''.join(one) for one in weights))}</td>"
            f"<td>{_signed(float(a.weights[i] - b.weights[i]))}</td></tr>"
        )
    left = len(life.tokens) - life.token - 1
    after = f" {left} later token{'s' if left > 1 else ''}: masked, weight 0." if left else ""
    sides = _pair("base", "adapted")
    return (
        f'<div class="pl-walk" data-layer="{life.layer}" data-head="{life.head}" data-token="{life.token}">'
        f"<p>Token {life.token} {_token(life.tokens[life.token])}, layer {life.layer}, head {life.head}. "
        f"The weights of this row sum to: {total}.{after}</p><p>{'. '.join(named)}.</p>{_steps(life)}"
        '<div class="pl-wide" tabindex="0" role="region" aria-label="Every key of this row"><table><thead><tr><th scope="col">#</th>'
        f'<th scope="col" class="pl-text">key</th><th scope="col">q·k{sides}</th><th scope="col">scaled{sides}</th>'
        f'<th scope="col">weight{sides}</th><th scope="col">change</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{_proved(capture)}</div>"
    )


def _proved(capture: AttentionCapture) -> str:
    return (
        '<p class="pl-soft">Recomputed in float64 and compared with the model: largest relative difference '
        f"{capture.difference:.1e}.</p>"
    )


def no_softmax(capture: AttentionCapture, layer: int, token: int) -> str:
    """What a layer without softmax weights has to show for one token, and that it has none."""
    base = capture.base[layer]
    adapted = base if capture.adapted is None else capture.adapted[layer]

    def lengths(pick: str) -> str:
        first, second = getattr(base, pick), getattr(adapted, pick)
        return "" if first is None or second is None else _lengths(first[token], second[token])

    shares = {role: float(step.share[token]) for role, step in adapted.projections.items()}
    steps = [
        ("x", "the token's vector as it enters the block", lengths("x")),
        (", ".join(shares), _ADDED, _shares(shares)),
        ("state", "one running state a head, no table of weights", lengths("into_o")),
        ("o", "all heads together through o", lengths("out")),
        ("residual", "added to the token's vector", lengths("residual_after")),
    ]
    return (
        f'<div class="pl-walk" data-layer="{layer}" data-token="{token}"><p>Token {token} '
        f"{_token(capture.tokens[token])}, layer {layer}: {safe(base.note)}.</p>{_list(steps)}{_proved(capture)}</div>"
    )


# --- ablation ----------------------------------------------------------------------------------------------


def ablation(found: Ablation) -> str:
    """What each choice of projections changes, one line a choice."""
    rows = []
    for choice in found.choices:
        distance = float(found.attention[choice].nanmean()) if found.layers else 0.0
        output = float(found.output[choice].mean())
        rows.append(
            f'<tr data-choice="{safe(choice)}"><th scope="row" class="pl-text">{safe(choice)}</th><td>{distance:.4f}</td>'
            f"<td>{100 * output:.1f} %</td><td>{found.next_token[choice]:.3f}</td></tr>"
        )
    return (
        '<div class="pl-wide" tabindex="0" role="region" aria-label="What each projection changes"><table class="pl-ablation"><thead><tr>'
        '<th scope="col" class="pl-text">adapter on for</th><th scope="col">attention (JS distance)</th>'
        '<th scope="col">output of o</th><th scope="col">next token (KL, nats)</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div><p class='pl-soft'>Mean over {found.inputs} "
        f"input{'s' if found.inputs != 1 else ''}, all layers and heads, against the base. v and o alone cannot change attention in "
        "the first layer; what they change there reaches the attention of later ones.</p>"
    )


def token_strip(tokens: Sequence[str], here: int) -> str:
    """The text as tokens with their numbers; the chosen one is framed."""
    cells = "".join(
        f'<span class="pl-token{" pl-here" if i == here else ""}"><small>{i}</small>{_token(text)}</span>'
        for i, text in enumerate(tokens)
    )
    return f'<div class="pl-strip">{cells}</div>'
