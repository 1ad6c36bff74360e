"""What the commands share: the two consoles, options, loading with progress, one-line errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from promptlora.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from promptlora.adapt.prompt_lora import PromptLoRA

out = Console()
err = Console(stderr=True)

Hypernetwork = Annotated[
    str | None, typer.Option(help="Folder of a trained hypernetwork; by default the one in the package.")
]
Base = Annotated[str | None, typer.Option(help="Base model: folder or Hugging Face id; by default the embedded one.")]
Dtype = Annotated[str, typer.Option(help="Dtype of the base: float32 or bfloat16.")]
Device = Annotated[
    str, typer.Option(help="Where it runs: auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1, mps.")
]
Force = Annotated[bool, typer.Option("--force", help="Take a hypernetwork that was trained for another base.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Prompt = Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt that becomes the adapter.")]
PromptFile = Annotated[
    str | None, typer.Option("--prompt-file", help="Read the prompt from a file; - is standard input.")
]


def fail(message: str, code: int = 2) -> int:
    """One line on standard error; returns the exit code."""
    line = " ".join(message.split())
    err.print(f"[bold red]error:[/] {escape(line)}" if code == 2 else escape(line), soft_wrap=True, highlight=False)
    return code


def print_json(value: Any) -> None:
    """A value as JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_prompt(prompt: str | None, file: str | None) -> str:
    """The prompt from the option or the file; exactly one of them.

    Raises:
        PromptError: None or both, or a file that cannot be read.
    """
    if (prompt is None) == (file is None):
        raise PromptError('expected one of --prompt "…" and --prompt-file FILE')
    if prompt is not None:
        return prompt
    try:
        with sys.stdin if file == "-" else open(str(file), encoding="utf-8") as handle:  # noqa: PTH123 (- is stdin)
            return handle.read()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"--prompt-file {file}: cannot be read ({error}); expected a text file in UTF-8") from error


def dtype_named(name: str) -> Any:
    """The torch dtype of that name.

    Raises:
        ConfigError: Not float32 or bfloat16.
    """
    import torch

    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"--dtype {name}: expected float32 or bfloat16")
    return getattr(torch, name)


def check_device(device: str) -> str:
    """The device, if this machine has it; ``auto`` is CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: An unknown or absent device.
    """
    import torch

    from promptlora.models import pick_device

    try:
        device = str(pick_device(device))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"--device {device}: not on this machine ({first}); expected auto, cpu, or a device it has"
        ) from error
    return device


@contextmanager
def working(text: str) -> Iterator[Any]:
    """A spinner on standard error with a line of text; call what it yields to change the line."""
    with err.status(escape(text)) as status:
        yield lambda line: status.update(escape(line))


def load(
    hypernetwork: str | None, base: str | None, dtype: str, device: str, force: bool, *, attention: str | None = None
) -> PromptLoRA:
    """Load base and hypernetwork, with progress on standard error."""
    with working("loading PyTorch and transformers") as say:
        from promptlora.adapt.prompt_lora import PromptLoRA

        return PromptLoRA.from_pretrained(
            hypernetwork,
            base,
            dtype=dtype_named(dtype),
            device=check_device(device),
            attn_implementation=attention,
            force=force,
            progress=say,
        )


def progress_bar() -> Progress:
    """A bar on standard error: text, bar, done of all, time gone and left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
    )


def size(nbytes: int) -> str:
    """Bytes for people: 1.2 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes / 1e3:.0f} kB"
