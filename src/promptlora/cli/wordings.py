"""``promptlora wordings``: write other wordings of the tasks' prompts, for training."""

from __future__ import annotations

import gzip
import io
import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from promptlora.cli.console import Json, err, print_json, working
from promptlora.errors import ConfigError
from promptlora.files import check_output, replacing_file
from promptlora.reading import is_dir


def wordings(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA", help="Rows: JSONL, JSONL.gz, CSV, Parquet, a folder of them, or a dataset id; one or more."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .jsonl or .jsonl.gz.")],
    count: Annotated[int, typer.Option(min=1, max=1 << 12, help="Wordings per prompt, at most.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed: another seed gives other wordings.")] = 0,
    split: Annotated[str, typer.Option(help="Use the rows of this split; empty uses all rows.")] = "train",
    json: Json = False,
) -> None:
    """Write other wordings of every task's prompt, made by rules, for the training key `data.paraphrases`.

    Example: **promptlora wordings train.jsonl.gz -o wordings.jsonl.gz --count 12**
    """
    if not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise ConfigError(f"--output {output}: unknown format. Expected .jsonl or .jsonl.gz. Fix: rename the file.")
    check_output(output, overwrite=True, folder=False)
    written = output.resolve()
    for source in map(Path, data):
        inside = is_dir(source) and written.parent == source.resolve()
        if inside or written == source.resolve():
            raise ConfigError(
                f"--output {output}: {'stands in' if inside else 'is'} the data {source}. Expected another file, so that "
                "the rows are kept. Fix: choose another name."
            )
    with working("reading rows") as say:
        from promptlora.data import one_prompt_a_task, read_rows
        from promptlora.data.wordings import wordings as make

        rows = one_prompt_a_task([row for source in data for row in read_rows(source, split)])
        prompts = {row.task: row.prompt for row in rows}
        say(f"wording {len(prompts)} prompts anew")
        made = {task: make(prompt, count, seed) for task, prompt in prompts.items()}
        lines = [
            jsonlib.dumps({"task": t, "prompt": prompts[t], "prompts": p}, ensure_ascii=False) + "\n"
            for t, p in made.items()
            if p
        ]
        content = "".join(lines).encode()
        with replacing_file(output) as temporary:
            temporary.write_bytes(_zipped(content) if output.suffix == ".gz" else content)
    numbers = [len(prompts) for prompts in made.values()]
    result = {
        "output": str(output),
        "tasks": len(made),
        "wordings": sum(numbers),
        "fewest": min(numbers),
        "tasks_without": sum(number == 0 for number in numbers),
    }
    if json:
        print_json(result)
    else:
        err.print(
            f"{output}: {result['wordings']} wordings of {result['tasks']} tasks, at least {result['fewest']} per task",
            highlight=False,
            markup=False,
        )


def _zipped(content: bytes) -> bytes:
    """The content as gzip without a timestamp, so that the same wordings give the same file."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        file.write(content)
    return buffer.getvalue()
