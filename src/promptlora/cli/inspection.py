"""What ``promptlora inspect`` prints: a token's life, an ablation, a space of adapters, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from promptlora.cli.console import err, out

if TYPE_CHECKING:
    from torch import Tensor

    from promptlora.adapt.prompt_lora import PromptLoRA
    from promptlora.inspect import Ablation, AdapterSpace, AttentionCapture, Layer, TokenLife

_SHADES = " ░▒▓█"


def next_tokens(lm: PromptLoRA, capture: AttentionCapture, count: int = 5) -> dict[str, list[dict[str, Any]]]:
    """The most probable next tokens of base and adapted."""
    from promptlora.inspect import token_texts as texts_of

    found: dict[str, list[dict[str, Any]]] = {}
    for name, walk in (("base", capture.base), ("adapted", capture.adapted)):
        if walk is not None:
            best = walk.next_token.topk(count)
            texts = texts_of(lm.tokenizer, best.indices.tolist())
            found[name] = [
                {"token": text, "probability": probability}
                for text, probability in zip(texts, best.values.exp().tolist(), strict=True)
            ]
    return found


def _shown(text: str, longest: int = 24) -> str:
    from promptlora.inspect import visible_text

    return escape(visible_text(text, longest))


def print_life(lm: PromptLoRA, life: TokenLife, capture: AttentionCapture) -> None:
    """One token's walk: every key, what the adapter adds, the steps from x to the new x, gains and losses."""
    out.print(
        f"token {life.token} [bold]{_shown(life.tokens[life.token])}[/], layer {life.layer}, head {life.head} "
        f"(reads key head {life.key_head})",
        highlight=False,
    )
    sides = [("base", life.base)] if life.adapted is None else [("base", life.base), ("adapted", life.adapted)]
    table = Table(
        title="every key: q·k, scaled, weight", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("key", no_wrap=True)
    capped = ["capped"] if life.softcap is not None else []
    for name, _ in sides:
        for column in ("q·k", f"×{life.scaling:.3g}", *capped, "weight"):
            table.add_column(f"{name if column == 'q·k' else ''}\n{column}", justify="right", no_wrap=True)
    if life.change is not None:
        table.add_column("\nchange", justify="right", no_wrap=True)
    for i, text in enumerate(life.tokens):
        cells = [f"{i} {_shown(text, 14)}"]
        for _, side in sides:
            hidden = float(side.masked[i]) == float("-inf")
            cells += [f"{float(side.raw[i]):.2f}", f"{float(side.scaled[i]):.3f}"]
            cells += ["" if hidden else f"{float(side.masked[i]):.3f}"] if capped else []
            cells.append("masked" if hidden else f"{float(side.weights[i]):.4f}")
        if life.change is not None:
            change = float(life.change[i])
            colour = "green" if change > 0 else "red" if change < 0 else "dim"
            cells.append(f"[{colour}]{change:+.4f}[/]" if change else "")
        table.add_row(*cells, style="bold" if i == life.token else None)
    sums = [f"{float(side.weights.sum()) + side.sink:.6f}" for _, side in sides]
    table.caption = "rows sum to " + " and ".join(sums)
    out.print(table)

    from promptlora.inspect.values import TOKEN_VECTORS

    _print_shares((life.adapted or life.base).shares)
    _print_steps(
        [name for name, _ in sides],
        {words: [getattr(side, name) for _, side in sides] for name, words in TOKEN_VECTORS.items()},
    )
    gains, losses = life.changes()
    for words, some in (("gained most attention", gains), ("lost most", losses)):
        if some:
            out.print(
                f"{words}: " + ", ".join(f"{i} {_shown(life.tokens[i])} {c:+.4f}" for i, c in some), highlight=False
            )
    _print_end(lm, capture)


def layer_values(capture: AttentionCapture, layer: int, token: int) -> dict[str, Any]:
    """What a layer without softmax weights has to show for one token, as plain values for JSON."""
    from promptlora.inspect.values import LAYER_VECTORS

    def side(one: Layer) -> dict[str, Any]:
        vectors = {name: getattr(one, name) for name in LAYER_VECTORS}
        shares = {
            role: {"base_norm": base, "delta_norm": delta, "share": share}
            for role, (base, delta, share) in _layer_shares(one, token).items()
        }
        return {"shares": shares, **{n: None if v is None else v[token].tolist() for n, v in vectors.items()}}

    base, adapted = capture.base[layer], None if capture.adapted is None else capture.adapted[layer]
    return {
        "tokens": list(capture.tokens),
        "token": token,
        "layer": layer,
        "kind": base.kind,
        "note": base.note,
        "base": side(base),
        "adapted": None if adapted is None else side(adapted),
        "difference": capture.difference,
    }


def print_layer(lm: PromptLoRA, capture: AttentionCapture, layer: int, token: int) -> None:
    """What a layer without softmax weights has to show for one token, and that it has none."""
    from promptlora.inspect.values import LAYER_VECTORS

    sides = [("base", capture.base[layer])]
    if capture.adapted is not None:
        sides.append(("adapted", capture.adapted[layer]))
    out.print(f"token {token} [bold]{_shown(capture.tokens[token])}[/], layer {layer}", highlight=False)
    out.print(escape(sides[0][1].note), highlight=False)
    _print_shares(_layer_shares(sides[-1][1], token))
    steps = {}
    for name, words in LAYER_VECTORS.items():
        vectors = [getattr(one, name) for _, one in sides]
        steps[words] = [None if vector is None else vector[token] for vector in vectors]
    _print_steps([name for name, _ in sides], steps)
    _print_end(lm, capture)


def _layer_shares(layer: Layer, token: int) -> dict[str, tuple[float, float, float]]:
    return {
        role: (float(step.base[token].norm()), float(step.delta[token].norm()), float(step.share[token]))
        for role, step in layer.projections.items()
    }


def _print_shares(shares: Mapping[str, tuple[float, float, float]]) -> None:
    table = Table(title="what the adapter adds to each projection, at this token", title_justify="left")
    for column in ("projection", "|base|", "|delta|", "share"):
        table.add_column(column, justify="left" if column == "projection" else "right")
    for role, (of_base, of_delta, share) in shares.items():
        table.add_row(role, f"{of_base:.3f}", f"{of_delta:.3f}", f"{100 * share:.2f} %")
    out.print(table)


def _print_steps(sides: Sequence[str], steps: Mapping[str, Sequence[Tensor | None]]) -> None:
    table = Table(title="from x to the new x: norms", title_justify="left")
    table.add_column("step")
    for name in sides:
        table.add_column(name, justify="right")
    for words, vectors in steps.items():
        if all(vector is not None for vector in vectors):
            table.add_row(words, *(f"{float(vector.norm()):.4f}" for vector in vectors if vector is not None))
    out.print(table)


def _print_end(lm: PromptLoRA, capture: AttentionCapture) -> None:
    """The most probable next tokens, and the proof."""
    for name, likely in next_tokens(lm, capture).items():
        words = ", ".join(f"{_shown(one['token'])} {one['probability']:.3f}" for one in likely)
        out.print(f"next token, {name}: {words}", highlight=False)
    err.print(f"recomputed and proved against the model: difference at most {capture.difference:.1e}", highlight=False)


def _heat(values: Sequence[float], top: float) -> list[str]:
    """Numbers with a shade before each, the fuller the larger."""
    steps = len(_SHADES) - 1
    return [f"{_SHADES[round(steps * min(v / top, 1.0)) if top else 0]} {v:.3f}" for v in values]


def print_ablation(found: Ablation) -> None:
    """What each choice changes, and the heat maps layers by projections."""
    attention, outputs = found.by_layer(), found.outputs_by_layer()
    count = f"{found.inputs} input{'s' if found.inputs != 1 else ''}"
    total = Table(title=f"change against the base, mean over layers and {count}", title_justify="left")
    for column in ("adapter on for", "attention (JS distance)", "output of o", "next token (KL)"):
        total.add_column(column, justify="left" if column == "adapter on for" else "right")
    if found.score:
        total.add_column("score", justify="right")
        total.add_row("nothing (base)", "0", "0", "0", f"{found.score['base']:.1f}")
    for i, choice in enumerate(found.choices):
        changed = f"{float(attention[:, i].mean()):.4f}" if found.layers else "–"
        cells = [choice, changed, f"{float(outputs[:, i].mean()):.4f}", f"{found.next_token[choice]:.4f}"]
        total.add_row(*cells, *([f"{found.score[choice]:.1f}"] if found.score else []))
    out.print(total)
    maps = [("change of attention, layers by projections", found.layers, attention)] if found.layers else []
    maps.append(("change of the output of o, layers by projections", found.output_layers, outputs))
    for title, layers, values in maps:
        table = Table(title=title, title_justify="left")
        table.add_column("layer", justify="right")
        for choice in found.choices:
            table.add_column(choice, justify="right")
        top = float(values.max())
        for number, row in zip(layers, values.tolist(), strict=True):
            table.add_row(str(number), *_heat(row, top))
        out.print(table)


def print_space(found: AdapterSpace) -> None:
    """Each prompt's place and nearest others."""
    table = Table(title="adapters: their place, and the nearest others (cosine, mean taken off)", title_justify="left")
    table.add_column("", justify="right")
    table.add_column("prompt", overflow="fold")
    table.add_column("task")
    table.add_column("place", justify="right")
    table.add_column("nearest", overflow="fold")
    for i, text in enumerate(found.prompts):
        near = ", ".join(f"{j} ({c:+.2f})" for j, c in found.nearest(i))
        x, y = found.points[i].tolist()
        table.add_row(str(i), escape(text), escape(found.groups[i]), f"{x:+.2f} {y:+.2f}", near)
    out.print(table)
    mean = float(found.cosine[~_diagonal(found)].mean())
    out.print(
        f"mean cosine of the whole updates {mean:.3f}; the map keeps {100 * found.kept:.0f} % of the spread",
        highlight=False,
    )
    if found.within is not None and found.between is not None:
        same = "" if found.same_group is None else f"; nearest of the same task {100 * found.same_group:.0f} %"
        out.print(f"cosine within a task {found.within:.3f}, between tasks {found.between:.3f}{same}", highlight=False)


def _diagonal(found: AdapterSpace) -> Tensor:
    import torch

    return torch.eye(len(found.prompts), dtype=torch.bool)
