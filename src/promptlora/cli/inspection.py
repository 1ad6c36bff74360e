"""Prints the results of ``promptlora inspect`` as tables: a token's life, an ablation, a space of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from promptlora.cli.console import err, out

if TYPE_CHECKING:
    from torch import Tensor

    from promptlora.adapt.prompt_lora import PromptLoRA
    from promptlora.inspect import Ablation, AdapterSpace, AttentionCapture, TokenLife
    from promptlora.inspect.sections import Section

_SHADES = " ░▒▓█"


def next_tokens(lm: PromptLoRA, capture: AttentionCapture, count: int = 5) -> dict[str, list[dict[str, Any]]]:
    """The most probable next tokens of the base and of the adapted model."""
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


def print_section(section: Section) -> None:
    """Print a section as a table; a sided column becomes one column per side."""
    table = Table(title=section.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(section.columns):
        names = [f"{side}\n{column.name}" for side in section.sides] if column.sided else [column.name]
        for name in names:
            table.add_column(
                name, justify="left" if i == 0 else "right", no_wrap=column.text or column.sided or column.signed
            )
    for at, row in enumerate(section.texts()):
        cells = []
        for column, texts in zip(section.columns, row, strict=True):
            for text in texts:
                shown = _shown(text, 15) if column.text else escape(text)
                colour = "green" if text.startswith("+") else "red"
                cells.append(f"[{colour}]{shown}[/]" if column.signed and text else shown)
        table.add_row(*cells, style="bold" if at == section.here else None)
    out.print(table)


def print_life(lm: PromptLoRA, life: TokenLife, capture: AttentionCapture, *, tables: bool = True) -> None:
    """Print one token's walk: every key, what the adapter adds, the steps from x to the new x, gains and losses.

    Args:
        lm: Decodes the next tokens.
        life: The walk to print.
        capture: The capture that it was taken from.
        tables: False leaves out the tables.
    """
    from promptlora.inspect.sections import token_sections

    out.print(
        f"token {life.token} [bold]{_shown(life.tokens[life.token])}[/], layer {life.layer}, head {life.head} "
        f"(reads key head {life.key_head})",
        highlight=False,
    )
    for section in token_sections(life) if tables else ():
        print_section(section)
    gains, losses = life.changes()
    for words, some in (("gained most attention", gains), ("lost most", losses)):
        if some:
            out.print(
                f"{words}: " + ", ".join(f"{i} {_shown(life.tokens[i])} {c:+.4f}" for i, c in some), highlight=False
            )
    _print_end(lm, capture)


def print_layer(lm: PromptLoRA, capture: AttentionCapture, layer: int, token: int, *, tables: bool = True) -> None:
    """Print the values of a layer without softmax weights; ``tables`` False leaves out the tables."""
    from promptlora.inspect.sections import layer_sections

    out.print(f"token {token} [bold]{_shown(capture.tokens[token])}[/], layer {layer}", highlight=False)
    out.print(escape(capture.base[layer].note), highlight=False)
    for section in layer_sections(capture, layer, token) if tables else ():
        print_section(section)
    _print_end(lm, capture)


def _print_end(lm: PromptLoRA, capture: AttentionCapture) -> None:
    """Print the most probable next tokens and the result of the verification."""
    for name, likely in next_tokens(lm, capture).items():
        words = ", ".join(f"{_shown(one['token'])} {one['probability']:.3f}" for one in likely)
        out.print(f"next token, {name}: {words}", highlight=False)
    err.print(f"recomputed and proved against the model: difference at most {capture.difference:.1e}", highlight=False)


def _heat(values: Sequence[float], top: float) -> list[str]:
    """Numbers with a shade before each; a larger number has a fuller shade."""
    steps = len(_SHADES) - 1
    return [f"{_SHADES[round(steps * min(v / top, 1.0)) if top else 0]} {v:.3f}" for v in values]


def print_ablation(found: Ablation, *, maps: bool = True) -> None:
    """Print what each choice changes and, if ``maps`` is set, the heat maps of layers by projections."""
    from promptlora.inspect.sections import ablation_section

    print_section(ablation_section(found))
    if not maps:
        return
    attention, outputs = found.by_layer(), found.outputs_by_layer()
    drawn = [("change of attention, layers by projections", found.layers, attention)] if found.layers else []
    drawn.append(("change of the output of o, layers by projections", found.output_layers, outputs))
    for title, layers, values in drawn:
        table = Table(title=title, title_justify="left")
        table.add_column("layer", justify="right")
        for choice in found.choices:
            table.add_column(choice, justify="right")
        top = float(values.max())
        for number, row in zip(layers, values.tolist(), strict=True):
            table.add_row(str(number), *_heat(row, top))
        out.print(table)


def print_space(found: AdapterSpace) -> None:
    """Print each prompt's position and its nearest neighbours."""
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
