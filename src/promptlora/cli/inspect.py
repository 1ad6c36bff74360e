"""``promptlora inspect``: the life of one token, what each projection does, the space of adapters."""

from __future__ import annotations

import json as json_library
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from promptlora.cli.console import (
    Base,
    Device,
    Dtype,
    Force,
    Hypernetwork,
    Json,
    Prompt,
    PromptFile,
    err,
    load,
    out,
    print_json,
    progress_bar,
    read_prompt,
    working,
)
from promptlora.errors import AttentionError, DataError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

    from promptlora.adaptation import PromptLoRA
    from promptlora.attention import Ablation, AdapterSpace, AttentionCapture, TokenLife

_SHADES = " ░▒▓█"


def inspect(
    text: Annotated[str | None, typer.Argument(help="The input to look at.", metavar="TEXT")] = None,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    token: Annotated[
        str | None, typer.Option(help="Which token to follow: its text, or its number; by default the last.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Layer, from 0; by default where attention changes most.")] = None,
    head: Annotated[int | None, typer.Option(help="Head, from 0; by default where attention changes most.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take TEXT as it stands, without the chat template.")] = False,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Switch the adapter on for q, k, v, o, q+k and all, and compare.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="With --ablate: rows of {prompt, input, outputs}, or texts one a line, as inputs."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="With --data: how many of the first rows.")] = 8,
    space: Annotated[
        Path | None, typer.Option(help="Compare adapters: a file with a prompt a line, or JSONL of {prompt, task}.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a page (HTML) to this file.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that exists.")] = False,
    hypernetwork: Hypernetwork = None,
    base: Base = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    force: Force = False,
    json: Json = False,
) -> None:
    """See the steering: one token's walk through attention, base beside adapted.

    Example: **promptlora inspect --prompt "Translate to Spanish." "The cat sat on the mat" --token cat --layer 12 --head 3**

    What each projection does: **promptlora inspect --ablate --prompt "Translate to Spanish." "The cat sat on the mat"**

    The space of adapters: **promptlora inspect --space prompts.txt -o space.html**
    """
    _check_options(text, prompt, prompt_file, ablate, data, space, token, layer, head)
    if output is not None:
        _check_output(output, overwrite)
    if space is not None:
        prompts, groups = read_prompts(space)
        lm = load(hypernetwork, base, dtype, device, force)
        _inspect_space(lm, prompts, groups, output, json)
        return
    instruction = None if prompt is None and prompt_file is None else read_prompt(prompt, prompt_file)
    if ablate:
        inputs = [({"input": text}, "")] if data is None else read_inputs(data, rows, needs_prompt=instruction is None)
        lm = load(hypernetwork, base, dtype, device, force)
        _inspect_ablation(lm, instruction, inputs, raw, output, json)
        return
    assert text is not None
    lm = load(hypernetwork, base, dtype, device, force)
    _inspect_token(lm, instruction, text, token, layer, head, raw, output, json)


def _check_options(
    text: str | None,
    prompt: str | None,
    prompt_file: str | None,
    ablate: bool,
    data: str | None,
    space: Path | None,
    token: str | None,
    layer: int | None,
    head: int | None,
) -> None:
    """Refuse options that do not go together, before anything is loaded.

    Raises:
        AttentionError: Two things asked for at once, or nothing.
    """
    followed = any(option is not None for option in (token, layer, head))
    prompted = prompt is not None or prompt_file is not None
    if space is not None and (text is not None or prompted or ablate or data is not None or followed):
        raise AttentionError(
            "--space takes its prompts from the file; expected no TEXT, --prompt, --ablate, --data or --token"
        )
    if space is None and data is not None and not ablate:
        raise AttentionError("--data was given without --ablate; add --ablate, or pass one TEXT")
    if space is None and ablate and (text is None) == (data is None):
        raise AttentionError("--ablate: expected one TEXT, or --data FILE")
    if ablate and followed:
        raise AttentionError("--ablate measures all layers and heads; expected no --token, --layer or --head")
    if ablate and data is None and not prompted:
        raise AttentionError('--ablate: expected --prompt "…" for the adapter')
    if space is None and not ablate and text is None:
        raise AttentionError("nothing to look at; expected a TEXT, --ablate or --space FILE")


def _check_output(path: Path, overwrite: bool) -> None:
    if path.is_dir() or (path.exists() and not overwrite):
        what = "is a folder" if path.is_dir() else "exists already"
        raise OutputError(f"{path}: {what}; expected a new file; choose another path or pass --overwrite")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: no such folder as {path.parent}; create it first")


def _write_page(path: Path | None, page: str) -> None:
    if path is None:
        return
    from promptlora.files import replacing_file

    try:
        with replacing_file(path) as temporary:
            temporary.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error}); choose another path") from error
    err.print(f"wrote {escape(str(path))}", highlight=False)


# --- what files hold ---------------------------------------------------------------------------------------


def _lines(path: Path, what: str) -> list[tuple[int, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected {what}") from error
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def read_prompts(path: Path) -> tuple[list[str], list[str] | None]:
    """Prompts of a file, one a line, or ``{prompt, task}`` a line in a .jsonl file; each prompt once.

    Returns:
        The prompts, and their tasks where the file has them.

    Raises:
        DataError: A file that cannot be read, a line that does not fit, or fewer than two prompts.
    """
    found: dict[str, str] = {}
    for number, line in _lines(path, "a prompt a line"):
        if path.suffix != ".jsonl":
            found.setdefault(line, "")
            continue
        try:
            value = json_library.loads(line)
        except json_library.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error.msg}); expected an object with a prompt") from error
        given = value.get("prompt") if isinstance(value, dict) else None
        if not isinstance(given, str) or not given.strip():
            raise DataError(f"{path}:{number}: prompt={given!r}; expected a text")
        found.setdefault(given, str(value.get("task") or ""))
    if len(found) < 2:
        raise DataError(f"{path}: {len(found)} prompts; expected two or more, one a line")
    return list(found), list(found.values()) if any(found.values()) else None


def read_inputs(source: str, count: int, *, needs_prompt: bool) -> list[tuple[dict[str, Any], str]]:
    """Inputs for an ablation: rows with their prompts, or the lines of a text file.

    Returns:
        For each, ``{input, outputs, metric}`` (the last two from rows alone) and its prompt.

    Raises:
        DataError: A file that cannot be read, or lines without a prompt when none was given.
    """
    path = Path(source)
    if path.suffix == ".txt":
        if needs_prompt:
            raise DataError(f'{path}: a text file has inputs alone; expected --prompt "…" with it, or rows in JSONL')
        lines = [({"input": line}, "") for _, line in _lines(path, "an input a line")[:count]]
        if not lines:
            raise DataError(f"{path}: empty; expected an input a line")
        return lines
    from promptlora.data import read_rows

    return [
        ({"input": row.input, "outputs": row.outputs, "metric": row.metric}, row.prompt)
        for row in read_rows(path)[:count]
    ]


# --- one token ---------------------------------------------------------------------------------------------


def _inspect_token(
    lm: PromptLoRA,
    prompt: str | None,
    text: str,
    token: str | None,
    layer: int | None,
    head: int | None,
    raw: bool,
    output: Path | None,
    json: bool,
) -> None:
    from promptlora.attention import capture_attention, encode_text, find_token, most_changed, token_life, token_page
    from promptlora.attention import token_texts as texts_of

    position = find_token(texts_of(lm.tokenizer, encode_text(lm, text, raw=raw)), token)
    with working("writing the adapter") as say:
        lora = None if prompt is None else lm.adapt(prompt)
        say("walking through attention")
        heads = None if head is None else [head]
        capture = capture_attention(lm, text, lora, None if layer is None else [layer], heads, raw=raw)
    at_layer, at_head = most_changed(capture, position)
    life = token_life(capture, position, at_layer, at_head)
    if json:
        print_json(
            {
                "prompt": prompt,
                "text": text,
                **life.to_dict(),
                "difference": capture.difference,
                "next": _next(lm, capture),
            }
        )
    else:
        _print_life(lm, life, capture)
    _write_page(output, token_page(life, capture, prompt) if output else "")


def _next(lm: PromptLoRA, capture: AttentionCapture, count: int = 5) -> dict[str, list[dict[str, Any]]]:
    """The most probable next tokens of base and adapted."""
    from promptlora.attention import token_texts as texts_of

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
    from promptlora.attention import visible_text

    return escape(visible_text(text, longest))


def _print_life(lm: PromptLoRA, life: TokenLife, capture: AttentionCapture) -> None:
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

    shares = Table(title="what the adapter adds to each projection, at this token", title_justify="left")
    for column in ("projection", "|base|", "|delta|", "share"):
        shares.add_column(column, justify="left" if column == "projection" else "right")
    for role, (of_base, of_delta, share) in (life.adapted or life.base).shares.items():
        shares.add_row(role, f"{of_base:.3f}", f"{of_delta:.3f}", f"{100 * share:.2f} %")
    out.print(shares)

    steps = Table(title="from x to the new x: norms", title_justify="left")
    steps.add_column("step")
    for name, _ in sides:
        steps.add_column(name, justify="right")
    for name, words in (
        ("x", "x, what enters"),
        ("q_before", "q, as projected"),
        ("q_normed", "q, after its norm"),
        ("q", "q, as it meets the keys"),
        ("mixed", "weighted sum of values"),
        ("gate", "gate"),
        ("out", "output of o, all heads"),
        ("residual_before", "residual before"),
        ("residual_after", "residual after"),
    ):
        vectors: list[Tensor | None] = [getattr(side, name) for _, side in sides]
        if all(vector is not None for vector in vectors):
            steps.add_row(words, *(f"{float(vector.norm()):.4f}" for vector in vectors if vector is not None))
    out.print(steps)

    gains, losses = life.changes()
    for words, some in (("gained most attention", gains), ("lost most", losses)):
        if some:
            out.print(
                f"{words}: " + ", ".join(f"{i} {_shown(life.tokens[i])} {c:+.4f}" for i, c in some), highlight=False
            )
    for name, likely in _next(lm, capture).items():
        words = ", ".join(f"{_shown(one['token'])} {one['probability']:.3f}" for one in likely)
        out.print(f"next token, {name}: {words}", highlight=False)
    err.print(f"recomputed and proved against the model: difference at most {capture.difference:.1e}", highlight=False)


# --- ablation ----------------------------------------------------------------------------------------------


def _inspect_ablation(
    lm: PromptLoRA,
    prompt: str | None,
    inputs: Sequence[tuple[dict[str, Any], str]],
    raw: bool,
    output: Path | None,
    json: bool,
) -> None:
    from promptlora.attention import ablate, ablation_page
    from promptlora.evaluation import score as score_answer

    rows = [row for row, _ in inputs]
    scored = all(row.get("outputs") for row in rows)

    def score(number: int, answer: str) -> float:
        return score_answer(rows[number]["metric"], answer, rows[number]["outputs"])

    with progress_bar() as progress:
        lora = lm.adapt(prompt if prompt is not None else [own for _, own in inputs])
        bar = progress.add_task("inputs", total=len(rows))
        found = ablate(
            lm,
            [row["input"] for row in rows],
            lora,
            raw=raw,
            score=score if scored else None,
            on_row=lambda done: progress.update(bar, completed=done),
        )
    if json:
        print_json({"prompt": prompt, **found.to_dict()})
    else:
        _print_ablation(found)
    _write_page(output, ablation_page(found, prompt) if output else "")


def _heat(values: Sequence[float], top: float) -> list[str]:
    """Numbers with a shade before each, the fuller the larger."""
    steps = len(_SHADES) - 1
    return [f"{_SHADES[round(steps * min(v / top, 1.0)) if top else 0]} {v:.3f}" for v in values]


def _print_ablation(found: Ablation) -> None:
    attention, outputs = found.by_layer(), found.outputs_by_layer()
    total = Table(title=f"change against the base, mean over layers and {found.inputs} inputs", title_justify="left")
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


# --- the space of adapters ---------------------------------------------------------------------------------


def _inspect_space(
    lm: PromptLoRA, prompts: list[str], groups: list[str] | None, output: Path | None, json: bool
) -> None:
    from promptlora.attention import adapter_space, space_page

    with working(f"writing {len(prompts)} adapters"):
        found = adapter_space(lm.adapt(prompts), prompts, groups)
    if json:
        print_json(found.to_dict())
    else:
        _print_space(found)
    _write_page(output, space_page(found) if output else "")


def _print_space(found: AdapterSpace) -> None:
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
