"""The ``vlmprune`` command: its sub-commands, and the one place that turns errors into a line and an exit status."""

import sys
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperGroup

from ...errors import VlmpruneError
from ...harness.exits import BAD_INPUT, INTERRUPTED, refused
from ...harness.format import note
from .ask import ask
from .caption import caption
from .check import check
from .compare import compare
from .demo import demo
from .export_vllm import export_vllm
from .methods import methods
from .options import SpacedLists
from .plan import plan
from .serve_proxy import serve_proxy
from .sinks import sinks


class _FlagsWithoutType:
    """Help that says nothing about the type of an option that takes no value (typer writes `<bool>`)."""

    def get_params(self, context: Any) -> list[Any]:
        found: list[Any] = super().get_params(context)  # type: ignore[misc]  # of the class it is mixed into
        for one in found:
            if getattr(one, "is_flag", False):
                one.metavar = ""
        return found


class OneCommand(_FlagsWithoutType, SpacedLists):
    """A command of `vlmprune`."""


class OneLineErrors(_FlagsWithoutType, TyperGroup):
    """Bad input prints one line on stderr and exits with 2, Ctrl-C with 130; our own bugs keep their traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        message = None
        try:
            # Not standalone: typer raises its exceptions instead of printing a box of several lines.
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except typer.TyperException as error:
            status, message = BAD_INPUT, f"{error.format_message().rstrip('.')}; see vlmprune --help"
        except VlmpruneError as error:
            status, message = BAD_INPUT, str(error)
        except OSError as error:
            status, message = BAD_INPUT, refused(error)
        except KeyboardInterrupt:
            status = INTERRUPTED
        if status == INTERRUPTED:
            message = "interrupted"
        if message is not None:
            note(message)
        if kwargs.get("standalone_mode", True):
            sys.exit(status or 0)
        return status


app = typer.Typer(
    cls=OneLineErrors,
    help="Prune the visual tokens of a vision-language model and see what it costs and what it saves.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    if version:
        from vlmprune import __version__

        typer.echo(f"vlmprune {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (ask, check, compare, caption, demo, methods, sinks, plan, serve_proxy, export_vllm):
    app.command(cls=OneCommand)(command)


def main() -> None:
    """Run the command line; the console script and ``python -m vlmprune`` both come here."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks must not stop an answer
    app(prog_name="vlmprune")
