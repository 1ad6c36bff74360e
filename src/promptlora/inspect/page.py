"""Reports as one HTML file each: no script, no network, light and dark, readable on a phone.

It knows what is shown (a token's life, an ablation, a space of adapters); every text is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from promptlora.inspect.ablation import Ablation
from promptlora.inspect.drawing import heat_map, point_map, safe_text, visible_text
from promptlora.inspect.flow import flow_diagram
from promptlora.inspect.folding import Fold
from promptlora.inspect.life import TokenLife, change_map
from promptlora.inspect.markup import figure, figures, html_page, note, pair, signed, table
from promptlora.inspect.space import AdapterSpace
from promptlora.inspect.values import LAYER_VECTORS, TOKEN_VECTORS, AttentionCapture

# --- one token ---------------------------------------------------------------------------------------------


def _keys_table(life: TokenLife) -> str:
    sides = [side for side in (life.base, life.adapted) if side is not None]
    names = pair(["base", "adapted"]) if len(sides) > 1 else ""
    columns = ["q·k", f"×&nbsp;{life.scaling:.4g}", *(["capped"] if life.softcap is not None else []), "weight"]
    head = ["key", *(f"{column}{names}" for column in columns), *(["change"] if len(sides) > 1 else [])]
    rows = []
    for i, token in enumerate(life.tokens):
        hidden = [float(side.masked[i]) == -torch.inf for side in sides]
        row = [f"{i} <code>{safe_text(visible_text(token, 40))}</code>"]
        row.append(pair([f"{float(side.raw[i]):.3f}" for side in sides]))
        row.append(pair([f"{float(side.scaled[i]):.3f}" for side in sides]))
        if life.softcap is not None:
            row.append(pair(["" if h else f"{float(s.masked[i]):.3f}" for s, h in zip(sides, hidden, strict=True)]))
        weights = [
            '<span class="soft">masked</span>' if h else f"{float(s.weights[i]):.4f}"
            for s, h in zip(sides, hidden, strict=True)
        ]
        row.append(pair(weights))
        if life.change is not None:
            change = float(life.change[i])
            row.append(signed(change) if change else "")
        rows.append(row)
    sums = pair([f"{float(side.weights.sum()) + side.sink:.6f}" for side in sides])
    total = ["sum of the row", *[""] * (len(columns) - 1), sums, *([""] if len(sides) > 1 else [])]
    return table(head, [*rows, total], here=life.token)


_DISTANCE = (
    "The Jensen–Shannon distance between the weights with and without the adapter: 0 where nothing changes, 1 where they "
    "have nothing in common"
)


def _added(shares: Mapping[str, tuple[float, float, float]]) -> list[str]:
    """How much the adapter adds to each projection: lengths of base and delta, and the delta's share."""
    rows = [
        [safe_text(role), f"{base:.3f}", f"{delta:.3f}", f"{100 * share:.2f} %"]
        for role, (base, delta, share) in shares.items()
    ]
    return [
        "<h2>What the adapter adds to each projection, at this token</h2>",
        note("The share is the length of what is added, of both lengths together."),
        table(["projection", "length of base", "length of what is added", "share"], rows),
    ]


def _of(side: object | None, name: str) -> Tensor | None:
    found: Tensor | None = None if side is None else getattr(side, name)
    return found


def _vectors_table(vectors: Sequence[tuple[str, Tensor | None, Tensor | None]]) -> str:
    """Lengths of vectors of base and adapted, and how much they differ; those that the model lacks are left out."""
    both = any(other is not None for _, _, other in vectors)
    rows = []
    for words, base, other in vectors:
        if base is None or (both and other is None):
            continue
        row = [f"{words} ({len(base)} numbers)", f"{float(base.norm()):.3f}"]
        if other is not None:
            similar = float(torch.nn.functional.cosine_similarity(base, other, dim=0))
            row += [f"{float(other.norm()):.3f}", f"{float((other - base).norm()):.3f}", f"{similar:.3f}"]
        rows.append(row)
    return table(["vector", *(["length, base", "adapted", "of difference", "cosine"] if both else ["length"])], rows)


def _opening(capture: AttentionCapture, token: int, place: str, prompt: str | None) -> list[str]:
    """What is shown, the adapter's prompt, the text with the token framed, and the proof."""
    body = [f"<p>{place}.</p>"]
    if prompt is not None:
        body.append(f"<p>Adapter of the prompt: <q>{safe_text(prompt)}</q></p>")
    tokens = [
        f"<{'b' if i == token else 'span'}>{safe_text(visible_text(t, 40))}</{'b' if i == token else 'span'}>"
        for i, t in enumerate(capture.tokens)
    ]
    body.append(f'<div class="tokens">{"".join(tokens)}</div>')
    body.append(
        note(
            "Recomputed in float64 and compared with the model's own attention: the largest difference is "
            f"{capture.difference:.1e} of a tensor's largest value."
        )
    )
    return body


def _life_of(capture: AttentionCapture, token: int) -> str:
    return f"The life of token {token}, {visible_text(capture.tokens[token], 40)}"


def token_page(life: TokenLife, capture: AttentionCapture, prompt: str | None = None) -> str:
    """The life of one token, with heat maps of its head: base, adapted, difference.

    Args:
        life: What is shown.
        capture: What it was cut from; its other layers and heads make the map of changes.
        prompt: The prompt of the adapter.
    """
    place = f"Layer {life.layer}, head {life.head} (reads key head {life.key_head})"
    body = _opening(capture, life.token, place, prompt)
    gains, losses = life.changes()
    if life.adapted is not None:
        words = [
            f"{name}: "
            + (
                ", ".join(f"{i} <code>{safe_text(visible_text(life.tokens[i]))}</code> {signed(c)}" for i, c in some)
                or "none"
            )
            for name, some in (("Gained most attention", gains), ("Lost most", losses))
        ]
        body.append(f"<p>{'. '.join(words)}.</p>")
    sink = life.base.sink or (life.adapted.sink if life.adapted is not None else 0.0)
    body += [
        "<h2>Every key</h2>",
        note(
            "q·k says how well each key fits this token's query. It is multiplied by the scale; later tokens are masked; "
            "the softmax makes weights of what is left, which sum to 1"
            + (", with what goes to no token (the sink)." if sink else ".")
        ),
        _keys_table(life),
        *([] if life.adapted is None else _added(life.adapted.shares)),
        "<h2>From x to the new x</h2>",
        figure(flow_diagram(life, Fold.of(life.tokens, [False] * len(life.tokens)))),
        _vectors_table(
            [(words, getattr(life.base, name), _of(life.adapted, name)) for name, words in TOKEN_VECTORS.items()]
        ),
        "<h2>The whole head</h2>",
        note("A row for each token that looks, a column for each that is looked at; this token's row is framed."),
    ]
    here = capture.base[life.layer].weights(life.head)
    label = f"layer {life.layer}, head {life.head}"

    def drawn_head(values: Tensor, title: str, *, signed: bool = False) -> str:
        return heat_map(
            values,
            life.tokens,
            life.tokens,
            f"{title}, {label}",
            across="looked at",
            down="who looks",
            signed=signed,
            top=None if signed else 1.0,
            mark=(life.token, None),
        )

    if capture.adapted is None:
        return html_page(_life_of(capture, life.token), [*body, figures([drawn_head(here, "Base")])])
    there = capture.adapted[life.layer].weights(life.head)
    maps = [
        drawn_head(here, "Base"),
        drawn_head(there, "Adapted"),
        drawn_head(there - here, "Adapted minus base", signed=True),
    ]
    body.append(figures(maps))
    numbers, changes = change_map(capture.base, capture.adapted, life.token)
    if len(numbers) > 1:
        part = capture.base[life.layer].softmax
        assert part is not None
        mark = (numbers.index(life.layer), part.heads.index(life.head))
        columns = part.heads if len(part.heads) == changes.shape[1] else range(changes.shape[1])
        drawn = heat_map(
            changes,
            [f"layer {n}" for n in numbers],
            [str(h) for h in columns],
            "Change of attention at this token",
            across="head",
            mark=mark,
        )
        told = f"{_DISTANCE}. These are the weights of token {life.token}; the head that changes most has the strongest colour."
        body += ["<h2>All layers and heads</h2>", note(told), figure(drawn)]
    return html_page(_life_of(capture, life.token), body)


def layer_page(capture: AttentionCapture, layer: int, token: int, prompt: str | None = None) -> str:
    """What a layer without softmax weights has to show for one token.

    Args:
        capture: With that layer.
        layer: Its number.
        token: The position that is followed.
        prompt: The prompt of the adapter.
    """
    base, other = capture.base[layer], None if capture.adapted is None else capture.adapted[layer]
    shares = {
        role: (float(step.base[token].norm()), float(step.delta[token].norm()), float(step.share[token]))
        for role, step in (other or base).projections.items()
    }
    vectors = []
    for name, words in LAYER_VECTORS.items():
        first, second = getattr(base, name), _of(other, name)
        vectors.append((words, None if first is None else first[token], None if second is None else second[token]))
    body = _opening(capture, token, f"Layer {layer}", prompt)
    body += [
        f"<p>{safe_text(base.note[:1].upper() + base.note[1:])}.</p>",
        *([] if other is None else _added(shares)),
        "<h2>From x to the new x</h2>",
        _vectors_table(vectors),
    ]
    return html_page(_life_of(capture, token), body)


# --- ablation and space ------------------------------------------------------------------------------------


def ablation_page(found: Ablation, prompt: str | None = None) -> str:
    """What each projection does: tables and heat maps layers by projections."""
    count = f"{found.inputs} input{'s' if found.inputs != 1 else ''}"
    body = [f"<p>The adapter switched on for some projections alone, against the base; means over {count}.</p>"]
    if prompt is not None:
        body.append(f"<p>Prompt: <q>{safe_text(prompt)}</q></p>")
    attention, output = found.by_layer(), found.outputs_by_layer()
    head = ["adapter on for", "attention (JS distance)", "output of o (relative)", "next token (KL, nats)"]
    rows = []
    for i, choice in enumerate(found.choices):
        changed = f"{float(attention[:, i].mean()):.4f}" if found.layers else "no softmax"
        row = [choice, changed, f"{float(output[:, i].mean()):.4f}", f"{found.next_token[choice]:.4f}"]
        rows.append([*row, f"{found.score[choice]:.1f}"] if found.score else row)
    if found.score:
        head.append("score")
        rows.insert(0, ["nothing (base)", "0", "0", "0", f"{found.score['base']:.1f}"])
    body += ["<h2>Mean over layers</h2>", table(head, rows), "<h2>Layers by projections</h2>"]
    body.append(
        note(
            f"{_DISTANCE}. In the first layer v alone and o alone change no attention: it is settled before they come in. "
            "The output of o: the length of its change, relative to its own."
        )
    )
    labels, outputs = [[f"layer {n}" for n in numbers] for numbers in (found.layers, found.output_layers)]
    maps = [heat_map(attention, labels, found.choices, "Change of attention", cell=(40, 16))] if found.layers else []
    maps.append(heat_map(output, outputs, found.choices, "Change of the output of o", cell=(40, 16)))
    body.append(figures(maps))
    if found.layers:
        strongest = max(float(found.attention[choice].nan_to_num(0.0).max()) for choice in found.choices)
        body += ["<h2>Layers by heads</h2>", note("Change of attention; all maps have the same scale.")]
        maps = []
        for choice in found.choices:
            by_head = found.attention[choice]
            heads = [str(h) for h in range(by_head.shape[1])]
            maps.append(heat_map(by_head, labels, heads, f"Adapter on for {choice}", across="head", top=strongest))
        body.append(figures(maps))
    return html_page("What each projection does", body)


def space_page(space: AdapterSpace) -> str:
    """The map of adapters, their similarities, and each prompt's nearest."""
    count = len(space.prompts)
    body = [
        f"<p>{count} prompts. Cosine similarity of their weight updates with the mean update taken off, so that what all "
        f"adapters share does not hide what differs. The map keeps {100 * space.kept:.0f} % of the spread.</p>"
    ]
    if space.within is not None and space.between is not None:
        same = (
            ""
            if space.same_group is None
            else f"; the nearest prompt is of the same task for {100 * space.same_group:.0f} %"
        )
        body.append(f"<p>Mean cosine within a task {space.within:.3f}, between tasks {space.between:.3f}{same}.</p>")
    labels, numbers = [f"{i} {p}" for i, p in enumerate(space.prompts)], [str(i) for i in range(count)]
    body.append(
        figures(
            [
                point_map(space.points, space.prompts, space.groups, "The space of adapters"),
                heat_map(space.cosine_centred, labels, numbers, "Cosine, mean taken off", signed=True, top=1.0),
            ]
        )
    )
    rows = []
    for i, text in enumerate(space.prompts):
        near = "; ".join(f"{j} {safe_text(visible_text(space.prompts[j], 60))} ({c:+.2f})" for j, c in space.nearest(i))
        rows.append(
            [
                str(i),
                f'<td class="text">{safe_text(text)}</td>',
                f'<td class="text">{near}</td>',
                f"{float(space.norm[i]):.3f}",
            ]
        )
    body += ["<h2>Nearest prompts</h2>", table(["#", "prompt", "nearest", "norm of update"], rows)]
    return html_page("The space of adapters", body)
