"""Reports as one HTML file each: no script, no network, light and dark, readable on a phone.

It knows what is shown (a token's life, an ablation, a space of adapters); every text is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from promptlora.attention.ablation import Ablation
from promptlora.attention.drawing import heat_map, point_map, safe_text, visible_text
from promptlora.attention.life import TokenLife, change_map
from promptlora.attention.space import AdapterSpace
from promptlora.attention.values import AttentionCapture

_CSS = """\
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--paper:#fff;--line:#d1d9e0;--band:#f3f6f9;--gain:#0a7d48;--loss:#c4320a}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--paper:#0d1117;--line:#3d444d;--band:#161b22;--gain:#56d397;--loss:#ff9a70}}
*{box-sizing:border-box}body{margin:0 auto;max-width:62rem;padding:1rem;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.15rem;margin-top:2rem}.soft{color:var(--soft)}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:6px;margin:.75rem 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}caption{text-align:left;padding:.4rem .6rem;color:var(--soft)}
th,td{padding:.25rem .6rem;text-align:right;white-space:nowrap}th:first-child,td:first-child,th.text,td.text{text-align:left}.text{white-space:normal;min-width:14rem;text-align:left}
thead th{border-bottom:1px solid var(--line)}tbody tr:nth-child(even){background:var(--band)}tr.here{outline:2px solid currentColor;outline-offset:-2px}
.gain{color:var(--gain)}.loss{color:var(--loss)}.tokens{display:flex;flex-wrap:wrap;gap:2px;font:14px ui-monospace,Consolas,monospace}
.tokens span{padding:0 .3em;border:1px solid var(--line);border-radius:3px}.tokens b{padding:0 .3em;border:2px solid currentColor;border-radius:3px}
code,pre{font:14px ui-monospace,Consolas,monospace}svg{display:block}
"""


def html_page(title: str, body: Sequence[str]) -> str:
    """A whole page; ``body`` is HTML already, the title is not."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe_text(title)}</title><style>{_CSS}</style></head>\n<body><main>\n<h1>{safe_text(title)}</h1>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", here: int | None = None) -> str:
    """A table of cells that are HTML already, scrollable on a narrow screen."""
    named = f"<caption>{safe_text(caption)}</caption>" if caption else ""
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row)
        lines.append(f'<tr class="here">{cells}</tr>' if i == here else f"<tr>{cells}</tr>")
    texts = {i for row in rows[:1] for i, cell in enumerate(row) if cell.startswith("<td")}
    headings = "".join(
        f'<th scope="col"{" class=text" if i in texts else ""}>{safe_text(h)}</th>' for i, h in enumerate(head)
    )
    return (
        f'<div class="wide" tabindex="0"><table>{named}<thead><tr>{headings}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _figure(svg: str) -> str:
    return f'<div class="wide" tabindex="0">{svg}</div>'


def _signed(value: float) -> str:
    kind = "gain" if value > 0 else "loss" if value < 0 else "soft"
    return f'<span class="{kind}">{value:+.4f}</span>'


# --- one token ---------------------------------------------------------------------------------------------


def _keys_table(life: TokenLife) -> str:
    sides = [("", life.base)] if life.adapted is None else [("base ", life.base), ("adapted ", life.adapted)]
    capped = life.softcap is not None
    head = ["key"]
    for name, _ in sides:
        head += [f"{name}q·k", f"× {life.scaling:.4g}", *(["capped"] if capped else []), "weight"]
    rows = []
    for i, token in enumerate(life.tokens):
        row = [f"{i} <code>{safe_text(visible_text(token, 40))}</code>"]
        for _, side in sides:
            hidden = float(side.masked[i]) == -torch.inf
            row += [f"{float(side.raw[i]):.4f}", f"{float(side.scaled[i]):.4f}"]
            row += ["" if hidden else f"{float(side.masked[i]):.4f}"] if capped else []
            row.append('<span class="soft">masked</span>' if hidden else f"{float(side.weights[i]):.4f}")
        if life.change is not None:
            change = float(life.change[i])
            row.append(_signed(change) if change else "")
        rows.append(row)
    total = ["sum of the row"]
    for _, side in sides:
        total += ["", "", *([""] if capped else []), f"{float(side.weights.sum()) + side.sink:.6f}"]
    if life.change is not None:
        head.append("change")
        total.append("")
    return _table(head, [*rows, total], here=life.token)


def _projection_rows(life: TokenLife) -> list[list[str]]:
    side = life.adapted or life.base
    rows = []
    for role, (base, delta, share) in side.shares.items():
        rows.append([safe_text(role), f"{base:.4f}", f"{delta:.4f}", f"{100 * share:.2f} %"])
    return rows


def _vector_rows(life: TokenLife) -> list[list[str]]:
    rows = []
    names = {
        "x": "x, what enters",
        "q_before": "q, as projected",
        "q_normed": "q, after its norm",
        "q": "q, as it meets the keys",
        "mixed": "weighted sum of values",
        "gate": "gate",
        "out": "output of o (all heads)",
        "residual_before": "residual before",
        "residual_after": "residual after",
    }
    for name, words in names.items():
        base = getattr(life.base, name)
        if base is None:
            continue
        row = [words, f"{float(base.norm()):.4f}", str(len(base))]
        if life.adapted is not None:
            other = getattr(life.adapted, name)
            if other is None:
                continue
            similar = torch.nn.functional.cosine_similarity(base, other, dim=0)
            row += [f"{float(other.norm()):.4f}", f"{float((other - base).norm()):.4f}", f"{float(similar):.4f}"]
        rows.append(row)
    return rows


def token_page(life: TokenLife, capture: AttentionCapture, prompt: str | None = None) -> str:
    """The life of one token, with heat maps of its head: base, adapted, difference.

    Args:
        life: What is shown.
        capture: What it was cut from; its other layers and heads make the map of changes.
        prompt: The prompt of the adapter.
    """
    shown = visible_text(life.tokens[life.token], 40)
    body = [
        f"<p>Layer {life.layer}, head {life.head} (reads key head {life.key_head}), token {life.token} "
        f"<code>{safe_text(shown)}</code>.</p>"
    ]
    if prompt is not None:
        body.append(f"<p>Adapter of the prompt: <q>{safe_text(prompt)}</q></p>")
    tokens = [
        f"<{'b' if i == life.token else 'span'}>{safe_text(visible_text(t, 40))}</{'b' if i == life.token else 'span'}>"
        for i, t in enumerate(life.tokens)
    ]
    body.append(f'<div class="tokens">{"".join(tokens)}</div>')
    body.append(
        f'<p class="soft">Recomputed in float64 and compared with the model\'s own attention: the largest difference is '
        f"{capture.difference:.1e} of a tensor's largest value.</p>"
    )
    gains, losses = life.changes()
    if life.adapted is not None:
        words = [
            f"{name}: "
            + (
                ", ".join(f"{i} <code>{safe_text(visible_text(life.tokens[i]))}</code> {_signed(c)}" for i, c in some)
                or "none"
            )
            for name, some in (("Gained most attention", gains), ("Lost most", losses))
        ]
        body.append(f"<p>{'. '.join(words)}.</p>")
    body += ["<h2>Every key</h2>", _keys_table(life)]
    body += [
        "<h2>What the adapter adds to each projection, at this token</h2>",
        _table(["projection", "norm of base", "norm of delta", "share of delta"], _projection_rows(life)),
    ]
    head = ["vector", "norm", "width"] + (
        ["adapted", "norm of difference", "cosine"] if life.adapted is not None else []
    )
    body += ["<h2>From x to the new x</h2>", _table(head, _vector_rows(life))]
    body.append("<h2>The whole head</h2>")
    here = capture.base[life.layer].weights(life.head)
    label = f"layer {life.layer}, head {life.head}"
    row = (life.token, life.token)

    def figure(values: Tensor, title: str, *, signed: bool = False) -> str:
        drawn = heat_map(
            values,
            life.tokens,
            life.tokens,
            f"{title}, {label}",
            across="looked at",
            down="who looks",
            signed=signed,
            top=None if signed else 1.0,
            mark=row,
        )
        return _figure(drawn)

    body.append(figure(here, "Base"))
    if capture.adapted is not None:
        there = capture.adapted[life.layer].weights(life.head)
        body.append(figure(there, "Adapted"))
        body.append(figure(there - here, "Adapted minus base", signed=True))
        numbers, table = change_map(capture.base, capture.adapted)
        if len(capture.base.layers) > 1 and numbers:
            part = capture.base[life.layer].softmax
            assert part is not None
            mark = (numbers.index(life.layer), part.heads.index(life.head))
            rows = [f"layer {n}" for n in numbers]
            title = "Change of attention (Jensen–Shannon distance, mean over tokens)"
            columns = [str(h) for h in range(table.shape[1])]
            body.append(_figure(heat_map(table, rows, columns, title, across="head", mark=mark)))
    return html_page(f"The life of {shown}", body)


# --- ablation and space ------------------------------------------------------------------------------------


def ablation_page(found: Ablation, prompt: str | None = None) -> str:
    """What each projection does: tables and heat maps layers by projections."""
    body = [f"<p>The adapter switched on for some projections alone; means over {found.inputs} inputs.</p>"]
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
    body += ["<h2>Change against the base, mean over layers</h2>", _table(head, rows)]
    if found.layers:
        labels = [f"layer {n}" for n in found.layers]
        body.append(_figure(heat_map(attention, labels, found.choices, "Change of attention", cell=(40, 16))))
    labels = [f"layer {n}" for n in found.output_layers]
    body.append(_figure(heat_map(output, labels, found.choices, "Change of the output of o", cell=(40, 16))))
    for choice in found.choices:
        if found.layers:
            table = found.attention[choice]
            rows_ = [f"layer {n}" for n in found.layers]
            title = f"Change of attention by head, {choice}"
            body.append(_figure(heat_map(table, rows_, [str(h) for h in range(table.shape[1])], title, across="head")))
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
    body.append(_figure(point_map(space.points, space.prompts, space.groups, "The space of adapters")))
    labels = [f"{i} {p}" for i, p in enumerate(space.prompts)]
    body.append(
        _figure(
            heat_map(
                space.cosine_centred,
                labels,
                [str(i) for i in range(count)],
                "Cosine, mean taken off",
                signed=True,
                top=1.0,
            )
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
    body += ["<h2>Nearest prompts</h2>", _table(["", "prompt", "nearest", "norm of update"], rows)]
    return html_page("The space of adapters", body)
