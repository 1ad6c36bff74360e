"""What the studio made, as HTML fragments; every text of a visitor or a model is escaped.

It knows the studio's values; nothing of Gradio. Style is in ``style``.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from promptlora.attention import AttentionCapture
from promptlora.attention.ablation import Ablation
from promptlora.attention.drawing import visible_text
from promptlora.attention.life import Side, TokenLife
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
        for name, title, note in _WHO:
            said = str(getattr(found, name)[i])
            read = found.read[i][1 if name == "in_context" else 0]
            waiting = "" if found.done else '<span class="pl-caret" aria-hidden="true"></span>'
            empty = '<span class="pl-soft">(no answer)</span>' if found.done and not said else ""
            cells.append(
                f'<div class="pl-cell pl-{name}"><h4>{title}<span class="pl-soft"> {note} · {read} tokens read</span></h4>'
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
    kind = "pl-gain" if value > 5e-5 else "pl-loss" if value < -5e-5 else "pl-soft"
    return f'<span class="{kind}">{value:+.4f}</span>'


def _bar(value: float, kind: str) -> str:
    return f'<span class="pl-bar pl-{kind}" style="width:{100 * min(max(value, 0.0), 1.0):.1f}%"></span>'


def _steps(life: TokenLife) -> str:
    """The way of the token's vector, one line a step."""
    sides = [("base", life.base)] + ([("adapted", life.adapted)] if life.adapted is not None else [])

    def norms(pick: str) -> str:
        found = [(name, getattr(side, pick)) for name, side in sides]
        return ", ".join(f"{name} |·| = {float(vector.norm()):.3f}" for name, vector in found if vector is not None)

    last: Side = sides[-1][1]
    shares = " · ".join(f"{role} {100 * share:.1f} %" for role, (_, _, share) in last.shares.items())
    capped = f", bent at ±{life.softcap:g}" if life.softcap else ""
    rows = [
        ("x", "the token's vector as it enters the block", norms("x")),
        ("q, k, v", "the projections; how much of each the adapter adds at this token (norm share)", shares),
        ("q", "the query of this head, as it meets the keys", norms("q")),
        ("q · k", "the query asks every key; later tokens are masked", f"key head {life.key_head}"),
        ("scale", f"every score times {life.scaling:.4f}{capped}", ""),
        ("softmax", "scores become weights, see the table", ""),
        ("Σ w · v", "the weighted sum of the values", norms("mixed")),
        ("o", "all heads together through o", norms("out")),
        ("residual", "added to the stream", norms("residual_after")),
    ]
    lines = "".join(
        f"<li><b>{safe(name)}</b> <span>{safe(what)}</span> <span class='pl-soft'>{safe(numbers)}</span></li>"
        for name, what, numbers in rows
    )
    return f'<ol class="pl-steps">{lines}</ol>'


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
        body.append(
            f"<tr{here}><td>{i}</td><td class='pl-text'>{_token(text)}</td><td>{_number(float(b.raw[i]))}</td>"
            f"<td>{_number(float(a.raw[i]))}</td><td>{_number(float(b.masked[i]))}</td><td>{_number(float(a.masked[i]))}</td>"
            f"<td class='pl-weight'>{_bar(float(b.weights[i]), 'base')}{_number(float(b.weights[i]), 4)}</td>"
            f"<td class='pl-weight'>{_bar(float(a.weights[i]), 'adapted')}{_number(float(a.weights[i]), 4)}</td>"
            f"<td>{_signed(float(a.weights[i] - b.weights[i]))}</td></tr>"
        )
    left = len(life.tokens) - life.token - 1
    after = f" {left} later token{'s' if left > 1 else ''}: masked, weight 0." if left else ""
    return (
        f'<div class="pl-walk" data-layer="{life.layer}" data-head="{life.head}" data-token="{life.token}">'
        f"<p>Token {life.token} {_token(life.tokens[life.token])}, layer {life.layer}, head {life.head}. "
        f"The weights of this row sum to: {total}.{after}</p><p>{'. '.join(named)}.</p>{_steps(life)}"
        '<div class="pl-wide" tabindex="0" role="region" aria-label="Every key of this row"><table><thead><tr><th scope="col">#</th>'
        '<th scope="col" class="pl-text">key</th><th scope="col">q·k base</th><th scope="col">q·k adapted</th>'
        '<th scope="col">scaled base</th><th scope="col">scaled adapted</th><th scope="col">weight base</th>'
        f'<th scope="col">weight adapted</th><th scope="col">change</th></tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        f'<p class="pl-soft">Recomputed in float64 and compared with the model: largest relative difference '
        f"{capture.difference:.1e}.</p></div>"
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
