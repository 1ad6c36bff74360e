"""The command line: ``promptlora …``. Thin: parse, call, print.

Errors of the user become one line on standard error and exit code 2; results go to standard output and
progress to standard error, so that ``--json`` can be piped.
"""

from __future__ import annotations

import os
import sys

import typer

from promptlora.cli.chat import chat
from promptlora.cli.console import fail
from promptlora.cli.demo import demo
from promptlora.cli.evaluate import evaluate
from promptlora.cli.inspect import inspect
from promptlora.cli.plot import plot
from promptlora.cli.synth import synth
from promptlora.cli.targets import targets
from promptlora.cli.teach import teach
from promptlora.cli.train import train
from promptlora.cli.ui import ui
from promptlora.cli.wordings import wordings
from promptlora.cli.write import generate, run
from promptlora.errors import PromptLoRAError

app = typer.Typer(
    name="promptlora",
    help="A prompt goes in, a LoRA comes out: adapters for a frozen language model, written by a hypernetwork.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (demo, run, chat, generate, train, synth, wordings, teach, plot, targets, inspect, ui):
    app.command()(command)
app.command(name="eval")(evaluate)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and stop.")
) -> None:
    """A prompt goes in, a LoRA comes out: adapters for a frozen language model, written by a hypernetwork."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"promptlora {installed('promptlora')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 2 for bad input, 130 for Ctrl-C."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app(args=arguments, standalone_mode=False, prog_name="promptlora")
    except (typer.Abort, KeyboardInterrupt):
        return fail("stopped", code=130)
    except typer.TyperException as error:  # a wrong option or argument
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        return fail(f"{message.rstrip('.')}; see promptlora --help")
    except PromptLoRAError as error:
        return fail(str(error))
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return 0
    return int(code or 0)
