"""Code that the commands share: the two consoles, options, loading with progress, one-line errors."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from promptlora.errors import ConfigError, LoRAError, PromptError, one_line
from promptlora.reading import decode, is_dir, read_text

if TYPE_CHECKING:
    from promptlora.adapt import AdaptedBase
    from promptlora.adapt.prompt_lora import PromptLoRA
    from promptlora.lora import LoRAWeights

_PROMPT_BYTES = 16 << 20

out = Console()
err = Console(stderr=True)

Hypernetwork = Annotated[
    str | None, typer.Option(help="Trained hypernetwork: folder or Hugging Face id. Default: the one in the package.")
]
Base = Annotated[str | None, typer.Option(help="Base model: folder or Hugging Face id. Default: the embedded one.")]
Dtype = Annotated[str, typer.Option(help="Dtype of the base: float32 or bfloat16.")]
Device = Annotated[str, typer.Option(help="Device: auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1, mps.")]
Force = Annotated[bool, typer.Option("--force", help="Accept a hypernetwork that was trained for another base.")]
MOST_TOKENS = 1 << 20  # upper bound of options; the base checks its own limit
MOST_ROWS = 1 << 16

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Prompt = Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt that becomes the adapter.")]
PromptFile = Annotated[
    str | None, typer.Option("--prompt-file", help="Read the prompt from a file; - reads standard input.")
]


def fail(message: str, code: int = 2) -> int:
    """Print one line on standard error; returns the exit code."""
    line = " ".join(message.split())
    err.print(f"[bold red]error:[/] {escape(line)}" if code == 2 else escape(line), soft_wrap=True, highlight=False)
    return code


def natural_width(table: Table) -> int:
    """Characters that a table takes where nothing wraps."""
    return Measurement.get(out, out.options.update_width(1 << 12), table).maximum


def print_table(table: Table) -> None:
    """Print a table; columns that do not wrap stay whole, even where the lines get longer than a narrow terminal."""
    wide = out.options.update_width(1 << 12)
    for column in table.columns:
        if column.no_wrap:
            column.min_width = max(Measurement.get(out, wide, cell).maximum for cell in (column.header, *column.cells))
    needed = Measurement.get(out, wide, table).minimum
    if needed > out.width:
        table.width = needed
    out.print(table, crop=False)


def print_next_steps(folder: Path) -> None:
    """What to do with the folder of an adapter that was written."""
    name = shlex.quote(str(folder))
    lines = f'{folder / "README.md"} tells how to load it\ntry: promptlora run --adapter {name} "an input"'
    out.print(escape(lines), highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def finite(value: float | None) -> float | None:
    """Check the value of an option: ``nan`` and ``inf`` are refused.

    Raises:
        ConfigError: The value is not finite.
    """
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"an option is {value}. Expected a finite number.")
    return value


def read_prompt(prompt: str | None, file: str | None, instead: str = "") -> str:
    """The prompt from the option or from the file; exactly one of them must be given and must not be empty.

    Args:
        prompt: Of ``--prompt``.
        file: Of ``--prompt-file``.
        instead: An option that the command takes instead of a prompt, for the error.

    Raises:
        PromptError: None or both are given, the prompt is empty, or the file cannot be read.
    """
    if prompt is not None and file is not None:
        raise PromptError("--prompt and --prompt-file were given. Expected one of them.")
    if prompt is None and file is None:
        ways = '--prompt "…", --prompt-file FILE' if instead else '--prompt "…"'
        raise PromptError(f"no prompt. Expected {ways} or {instead or '--prompt-file FILE'}.")
    if prompt is None:
        prompt = _standard_input() if file == "-" else read_text(Path(str(file)), PromptError, longest=_PROMPT_BYTES)
    if not prompt.strip():
        raise PromptError(f"prompt {prompt[:40]!r} is empty; expected an instruction, a system prompt or a document")
    return prompt


def _standard_input() -> str:
    """All of standard input as text; a stream without bytes (in a notebook or a test) is read as text."""
    if sys.stdin is None:
        raise PromptError("--prompt-file -: standard input is closed; expected a prompt there")
    raw = getattr(sys.stdin, "buffer", None)
    try:
        if raw is None:
            return sys.stdin.read()
        data = raw.read(_PROMPT_BYTES + 1)
    except (OSError, ValueError) as error:
        raise PromptError(f"--prompt-file -: cannot be read ({error}); expected a prompt there") from error
    if len(data) > _PROMPT_BYTES:
        raise PromptError(f"--prompt-file -: longer than {_PROMPT_BYTES} bytes; expected a prompt")
    return decode(data, "--prompt-file -", PromptError)


def read_line() -> str | None:
    """The next line of standard input without its line end; None at the end or if the stream is closed.

    Raises:
        PromptError: The line is not valid UTF-8.
    """
    if sys.stdin is None:
        return None
    raw = getattr(sys.stdin, "buffer", None)
    line = sys.stdin.readline() if raw is None else decode(raw.readline(), "the line", PromptError)
    return line.rstrip("\n") if line else None


def check_prompts(hypernetwork: str | None, base: str | None, prompts: Sequence[str]) -> None:
    """Refuse prompts that the encoder does not accept, before the base is loaded.

    Raises:
        PromptError: A prompt is empty or too long.
        CheckpointError: The hypernetwork cannot be read.
        ModelError: The base has no tokenizer.
    """
    from promptlora.adapt.prompt_lora import shipped_hypernetwork
    from promptlora.hypernet.network import read_config
    from promptlora.models import load_tokenizer
    from promptlora.text import encode_prompt

    folder = Path(hypernetwork) if hypernetwork else shipped_hypernetwork()
    if hypernetwork and not is_dir(folder):  # on the Hub: reported after the download
        return
    longest = read_config(folder).max_prompt_tokens
    doubtful = {p for p in prompts if len(p.encode(errors="replace")) > longest or not p.strip()}
    tokenizer = load_tokenizer(base) if doubtful else None
    for prompt in doubtful:
        encode_prompt(tokenizer, prompt, longest)  # type: ignore[arg-type]


def dtype_named(name: str) -> Any:
    """The torch dtype with this name.

    Raises:
        ConfigError: The name is not ``float32`` or ``bfloat16``.
    """
    import torch

    if name not in ("float32", "bfloat16"):
        raise ConfigError(f"--dtype {name}: expected float32 or bfloat16")
    return getattr(torch, name)


def check_device(device: str) -> str:
    """Check that this machine has the device; ``auto`` selects CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: The device is unknown or not available.
    """
    import torch

    from promptlora.models import pick_device

    if device.partition(":")[0] == "meta":
        raise ConfigError(f"--device {device}: holds no weights; expected cpu, or a device that this machine has")
    try:
        device = str(pick_device(device))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = one_line(error)
        raise ConfigError(
            f"--device {device[:40]}: not on this machine ({first}); expected auto, cpu, or a device it has"
        ) from error
    return device


@contextmanager
def working(text: str) -> Iterator[Any]:
    """Show a spinner with a line of text on standard error; the yielded function changes the text."""
    with err.status(escape(text)) as status:
        yield lambda line: status.update(escape(line))


def load(
    hypernetwork: str | None,
    base: str | None,
    dtype: str,
    device: str,
    force: bool,
    *,
    attention: str | None = None,
    prompts: Sequence[str] = (),
) -> PromptLoRA:
    """Load base and hypernetwork, with progress on standard error; ``prompts`` are checked before the base is loaded."""
    with working("loading PyTorch and transformers") as say:
        from promptlora.adapt.prompt_lora import PromptLoRA

        dtype_named(dtype)
        check_device(device)
        check_prompts(hypernetwork, base, prompts)
        return PromptLoRA.from_pretrained(
            hypernetwork,
            base,
            dtype=dtype_named(dtype),
            device=check_device(device),
            attn_implementation=attention,
            force=force,
            progress=say,
        )


def load_with_adapter(path: Path, base: str | None, dtype: str, device: str) -> tuple[AdaptedBase, LoRAWeights]:
    """Load a saved adapter and its base, with progress on standard error; no hypernetwork is needed.

    Args:
        path: A PEFT folder, or a file written by ``LoRAWeights.save`` with one adapter.
        base: The base; by default the one that the adapter names, otherwise the embedded one.
        dtype: Dtype of the base and the adapter.
        device: Device of the base and the adapter.

    Raises:
        LoRAError: The adapter cannot be read or does not fit the base, or the file holds several adapters.
        ModelError: The base cannot be loaded.
    """
    with working("loading PyTorch and transformers") as say:
        from promptlora.adapt import AdaptedBase
        from promptlora.host import Host
        from promptlora.lora import LoRAWeights
        from promptlora.lora.peft import named_base
        from promptlora.models import EMBEDDED_ID, load_base
        from promptlora.projections import find_projections

        wanted, folder = dtype_named(dtype), is_dir(path)
        device = check_device(device)
        lora = None if folder else LoRAWeights.load(path)  # report a wrong path before the base is loaded
        if base is None:
            base = named_base(path) if lora is None else lora.base_model
        model, tokenizer = load_base(None if base == EMBEDDED_ID else base, dtype=wanted, device=device, progress=say)
        if lora is None:
            lora = LoRAWeights.load_peft(path, projections=find_projections(model))
        if lora.adapters != 1:
            raise LoRAError(f"{path}: {lora.adapters} adapters. Expected one. Fix: save lora.select(i).")
        lm = AdaptedBase(Host(model, tokenizer))
        return lm, lora.to(wanted, lm.host.device)


def progress_bar() -> Progress:
    """A progress bar on standard error: text, bar, number done and total, time elapsed and remaining."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
    )


def size(nbytes: int) -> str:
    """A human-readable size: 1.2 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes / 1e3:.0f} kB"
