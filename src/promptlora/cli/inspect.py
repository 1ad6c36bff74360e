"""``promptlora inspect``: the life of one token, the effect of each projection, the space of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

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
    print_json,
    progress_bar,
    read_prompt,
    working,
)
from promptlora.cli.inspection import (
    next_tokens,
    print_ablation,
    print_layer,
    print_life,
    print_space,
)
from promptlora.errors import AttentionError, DataError, OutputError
from promptlora.files import check_output, replacing_file
from promptlora.reading import is_dir, json_lines, read_text

if TYPE_CHECKING:
    from promptlora.adapt.prompt_lora import PromptLoRA


def inspect(
    text: Annotated[str | None, typer.Argument(help="The input to look at.", metavar="TEXT")] = None,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    token: Annotated[
        str | None, typer.Option(help="Token to follow: its text or its number. Default: the last.")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(help="Layer, counted from 0. Default: where the adapter changes the weights of the token most."),
    ] = None,
    head: Annotated[
        int | None,
        typer.Option(help="Head, counted from 0. Default: where the adapter changes the weights of the token most."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Use TEXT as it is, without the chat template.")] = False,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Turn the adapter on for q, k, v, o, q+k and all in turn, and compare.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="With --ablate: inputs, as rows of {prompt, input, outputs} or as a text file with one input per line."
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="With --data: use only this many of the first rows.")
    ] = 8,
    space: Annotated[
        Path | None, typer.Option(help="Compare adapters: a file with one prompt per line, or JSONL of {prompt, task}.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write an HTML page to this file, and print less.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that exists.")] = False,
    hypernetwork: Hypernetwork = None,
    base: Base = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Follow one token through attention, in the base and in the adapted model.

    Without --layer and --head, the head is shown whose weights at this token differ most with and without the adapter, by the
    Jensen–Shannon distance (0: equal, 1: nothing in common). The web page opens the same head.

    Example: **promptlora inspect --prompt "Name the animal." "The cat sat on the mat" --token cat --layer 12 --head 3**

    What each projection does: **promptlora inspect --ablate --prompt "Name the animal." "The cat sat on the mat"**

    Compare the adapters of several prompts: **promptlora inspect --space prompts.txt -o space.html**
    """
    _check_options(text, prompt, prompt_file, ablate, data, space, token, layer, head)
    if output is not None:
        check_output(output, overwrite=overwrite, folder=False)
        if not is_dir(output.parent):
            raise OutputError(f"{output}: no such folder as {output.parent}; create it first")
    if space is not None:
        prompts, groups = read_prompts(space)
        lm = load(hypernetwork, base, dtype, device, force, prompts=prompts)
        _inspect_space(lm, prompts, groups, output, json)
        return
    instruction = None if prompt is None and prompt_file is None else read_prompt(prompt, prompt_file)
    if ablate:
        inputs = [({"input": text}, "")] if data is None else read_inputs(data, rows, needs_prompt=instruction is None)
        own = [prompt for _, prompt in inputs] if instruction is None else [instruction]
        lm = load(hypernetwork, base, dtype, device, force, prompts=own)
        _inspect_ablation(lm, instruction, inputs, raw, output, json)
        return
    assert text is not None
    lm = load(hypernetwork, base, dtype, device, force, prompts=[] if instruction is None else [instruction])
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
    """Refuse incompatible options before anything is loaded.

    Raises:
        AttentionError: More than one view is requested, or none.
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


def _write_page(path: Path | None, page: str) -> None:
    if path is None:
        return
    with replacing_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    err.print(f"wrote {escape(str(path))}", highlight=False)


# --- files -------------------------------------------------------------------------------------------------


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path, DataError).splitlines() if line.strip()]


def read_prompts(path: Path) -> tuple[list[str], list[str] | None]:
    """Read the distinct prompts of a file: one per line, or one ``{prompt, task}`` per line of a .jsonl file.

    Returns:
        The prompts, and their tasks if the file has them.

    Raises:
        DataError: The file cannot be read, a line is invalid, or there are fewer than two prompts.
    """
    if path.suffix != ".jsonl":
        found = dict.fromkeys(_lines(path), "")
    else:
        found = {}
        for number, _, value in json_lines(path, DataError):
            given = value.get("prompt") if isinstance(value, dict) else None
            if not isinstance(given, str) or not given.strip():
                raise DataError(f"{path}:{number}: prompt={repr(given)[:80]}; expected a text")
            found.setdefault(given, str(value.get("task") or ""))
    if len(found) < 2:
        raise DataError(f"{path}: {len(found)} prompts; expected two or more, one a line")
    return list(found), list(found.values()) if any(found.values()) else None


def read_inputs(source: str, count: int, *, needs_prompt: bool) -> list[tuple[dict[str, Any], str]]:
    """Read inputs for an ablation: rows with their prompts, or the lines of a text file.

    Returns:
        For each input, ``{input, outputs, metric}`` (the last two only from rows) and its prompt.

    Raises:
        DataError: The file cannot be read, or lines come without a prompt although one is needed.
    """
    path = Path(source)
    if path.suffix == ".txt":
        if needs_prompt:
            raise DataError(f'{path}: a text file has inputs alone; expected --prompt "…" with it, or rows in JSONL')
        lines = [({"input": line}, "") for line in _lines(path)[:count]]
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
    from promptlora.inspect import (
        capture_attention,
        encode_text,
        find_token,
        most_changed,
        token_life,
        token_page,
        tokens_alike,
    )
    from promptlora.inspect import token_texts as texts_of
    from promptlora.inspect.life import layer_values
    from promptlora.inspect.page import layer_page

    tokens = texts_of(lm.tokenizer, encode_text(lm, text, raw=raw))
    position = find_token(tokens, token)
    alike = [] if token is None else tokens_alike(tokens, token)
    if len(alike) > 1:
        places = ", ".join(map(str, alike))
        err.print(
            f"token {escape(repr(token))} stands at {places}; this is the one at {position}. --token NUMBER takes another.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    with working("writing the adapter") as say:
        lora = None if prompt is None else lm.adapt(prompt)
        say("walking through attention")
        heads = None if head is None else [head]
        capture = capture_attention(lm, text, lora, None if layer is None else [layer], heads, raw=raw)
    if layer is not None and head is None and capture.base[layer].softmax is None:  # show what such a layer has
        if json:
            values = layer_values(capture, layer, position)
            print_json({"prompt": prompt, "text": text, **values, "next": next_tokens(lm, capture)})
        else:
            print_layer(lm, capture, layer, position, tables=output is None)
        _write_page(output, layer_page(capture, layer, position, prompt) if output else "")
        return
    at_layer, at_head = most_changed(capture, position)
    life = token_life(capture, position, at_layer, at_head)
    if json:
        print_json(
            {
                "prompt": prompt,
                "text": text,
                **life.to_dict(),
                "difference": capture.difference,
                "next": next_tokens(lm, capture),
            }
        )
    else:  # the page has the tables, so they are not printed
        print_life(lm, life, capture, tables=output is None)
    _write_page(output, token_page(life, capture, prompt) if output else "")


# --- ablation ----------------------------------------------------------------------------------------------


def _inspect_ablation(
    lm: PromptLoRA,
    prompt: str | None,
    inputs: Sequence[tuple[dict[str, Any], str]],
    raw: bool,
    output: Path | None,
    json: bool,
) -> None:
    from promptlora.evaluate import score as score_answer
    from promptlora.inspect import ablate, ablation_page

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
        print_ablation(found, maps=output is None)
    _write_page(output, ablation_page(found, prompt) if output else "")


# --- the space of adapters ---------------------------------------------------------------------------------


def _inspect_space(
    lm: PromptLoRA, prompts: list[str], groups: list[str] | None, output: Path | None, json: bool
) -> None:
    from promptlora.inspect import adapter_space, space_page

    with working(f"writing {len(prompts)} adapters"):
        found = adapter_space(lm.adapt(prompts), prompts, groups)
    if json:
        print_json(found.to_dict())
    else:
        print_space(found)
    _write_page(output, space_page(found) if output else "")
