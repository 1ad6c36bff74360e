"""The command line ``promptlora …``: it only parses arguments, calls the library and prints.

User errors become one line on standard error and exit code 2. Results go to standard output and progress to standard
error, so that ``--json`` output can be piped.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress

import typer

from promptlora import __version__
from promptlora.cli.chat import chat
from promptlora.cli.console import fail
from promptlora.cli.demo import demo
from promptlora.cli.evaluate import evaluate
from promptlora.cli.generate import generate
from promptlora.cli.inspect import inspect
from promptlora.cli.plot import plot
from promptlora.cli.refine import refine
from promptlora.cli.run import run
from promptlora.cli.serve import EPILOG as SERVE_EXAMPLES
from promptlora.cli.serve import serve
from promptlora.cli.synth import synth
from promptlora.cli.targets import targets
from promptlora.cli.teach import teach
from promptlora.cli.train import train
from promptlora.cli.ui import ui
from promptlora.cli.wordings import wordings
from promptlora.errors import PromptLoRAError, one_line

_NO_MEMORY = "not enough memory for this; choose a smaller model, batch or rank"

app = typer.Typer(
    name="promptlora",
    help="A prompt goes in, a LoRA comes out: a hypernetwork writes adapters for a frozen language model.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (demo, run, chat, generate, refine, train, synth, wordings, teach, plot, targets, inspect, ui):
    app.command()(command)
app.command(name="eval")(evaluate)
app.command(epilog=SERVE_EXAMPLES)(serve)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and stop.")
) -> None:
    """A prompt goes in, a LoRA comes out: a hypernetwork writes adapters for a frozen language model."""
    if version:
        typer.echo(f"promptlora {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns exit code 0, 2 for bad input, or 130 for Ctrl-C."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Set this before PyTorch starts OpenMP. Threads that wait by spinning take cores from the threads they wait for
    # when
    # other programs run: on a busy machine with two cores, answers then took four to seven times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _open_streams()
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:  # includes a closed pipe at the reader of our output
        _discard_output()
        return code or (0 if isinstance(error, BrokenPipeError) else fail(_told(error)))
    return code


def _run(arguments: list[str] | None) -> int:
    try:
        code = app(args=arguments, standalone_mode=False, prog_name="promptlora")
    except (typer.Abort, KeyboardInterrupt):
        return fail("stopped", code=130)
    except typer.TyperException as error:  # a wrong option or argument
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        return fail(f"{message.rstrip('.')}; see promptlora --help")
    except PromptLoRAError as error:
        return fail(_with_flags(str(error)))
    except BrokenPipeError:  # the reader of our output closed the pipe
        _discard_output()
        return 0
    except OSError as error:
        _discard_output()
        return fail(_told(error))
    except MemoryError:
        return fail(_NO_MEMORY)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        return fail(f"{_NO_MEMORY} ({one_line(error)})")
    return int(code or 0)


def _with_flags(message: str) -> str:
    """Translate argument names in an error of the library to command-line flags."""
    return re.sub(r"\b(overwrite|resume|force)=True\b", r"--\1", message)


def _told(error: OSError) -> str:
    """What the system refused, with the file name if the error has one; otherwise it is standard output."""
    where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "standard output"
    return f"{where[:200]}: {error.strerror or error}. Fix: choose another path, or free some space."


def _open_streams() -> None:
    """Redirect a closed standard stream to devnull; make paths with invalid UTF-8 bytes print escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 (until the end)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Discard the rest of the standard output buffer, which Python would otherwise try to write again at exit."""
    if sys.stdout is sys.__stdout__:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
