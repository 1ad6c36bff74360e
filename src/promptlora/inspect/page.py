"""Reports as self-contained HTML files: no script, no network, light and dark mode, readable on a phone.

It knows the values that are shown (a token's life, an ablation, a space of adapters); all text is escaped.
"""

from __future__ import annotations

from torch import Tensor

from promptlora.inspect.ablation import Ablation
from promptlora.inspect.drawing import heat_map, point_map, safe_text, visible_text
from promptlora.inspect.flow import flow_diagram
from promptlora.inspect.folding import Fold
from promptlora.inspect.life import TokenLife, change_map
from promptlora.inspect.markup import figure, figures, html_page, note, pair, signed, table
from promptlora.inspect.sections import Section, ablation_section, layer_sections, token_sections
from promptlora.inspect.space import AdapterSpace
from promptlora.inspect.values import AttentionCapture

# --- one token ---------------------------------------------------------------------------------------------


_DISTANCE = (
    "The Jensen–Shannon distance between the weights with and without the adapter: 0 where nothing changes, 1 where they "
    "have nothing in common"
)


def _drawn(section: Section, first: str = "") -> list[str]:
    """A section as a heading, a note and a table; a figure, if there is one, comes before the table."""
    sides = pair(section.sides) if len(section.sides) > 1 else ""
    head = [safe_text(column.name) + (sides if column.sided else "") for column in section.columns]
    rows = []
    for cells, row in zip(section.texts(), section.rows, strict=True):
        drawn = []
        for column, texts, values in zip(section.columns, cells, row, strict=True):
            value = values[0]
            if column.signed and isinstance(value, float) and texts[0]:
                drawn.append(signed(value))
            elif column.text:
                drawn.append(f"<code>{safe_text(texts[0])}</code>")
            else:
                drawn.append(pair([safe_text(text) for text in texts]))
        rows.append(drawn)
    told = [note(section.note)] if section.note else []
    return [f"<h2>{safe_text(section.title)}</h2>", *told, first, table(head, rows, here=section.here)]


def _opening(capture: AttentionCapture, token: int, place: str, prompt: str | None) -> list[str]:
    """The start of a report: what it shows, the adapter's prompt, the text with the token framed, the verification."""
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
        life: The walk to show.
        capture: The capture that it was taken from; its other layers and heads are used for the map of changes.
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
    *before, vectors = token_sections(life)
    for section in before:
        body += _drawn(section)
    flow = figure(flow_diagram(life, Fold.of(life.tokens, [False] * len(life.tokens))))
    body += [
        *_drawn(vectors, first=flow),
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
    """The report of a layer without softmax weights for one token.

    Args:
        capture: A capture that includes the layer.
        layer: Index of the layer.
        token: The position of the token.
        prompt: The prompt of the adapter.
    """
    told = capture.base[layer].note
    body = _opening(capture, token, f"Layer {layer}", prompt)
    body.append(f"<p>{safe_text(told[:1].upper() + told[1:])}.</p>")
    for section in layer_sections(capture, layer, token):
        body += _drawn(section)
    return html_page(_life_of(capture, token), body)


# --- ablation and space ------------------------------------------------------------------------------------


def ablation_page(found: Ablation, prompt: str | None = None) -> str:
    """The effect of each projection: tables, and heat maps of layers by projections."""
    count = f"{found.inputs} input{'s' if found.inputs != 1 else ''}"
    body = [f"<p>The adapter switched on for some projections alone, against the base; means over {count}.</p>"]
    if prompt is not None:
        body.append(f"<p>Prompt: <q>{safe_text(prompt)}</q></p>")
    attention, output = found.by_layer(), found.outputs_by_layer()
    body += [*_drawn(ablation_section(found)), "<h2>Layers by projections</h2>"]
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
    """The map of adapters, their similarities, and the nearest neighbours of each prompt."""
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
