"""The program: its subcommands, and how failures become one sentence and an exit code."""

import logging
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rqlvc import __version__
from rqlvc.cli.codecs import codecs
from rqlvc.cli.collect import collect
from rqlvc.cli.controllers import controllers
from rqlvc.cli.decode import decode
from rqlvc.cli.encode import encode
from rqlvc.cli.evaluate import evaluate_app
from rqlvc.cli.info import info
from rqlvc.cli.options import EXIT_FAILURE, EXIT_INTERRUPTED
from rqlvc.cli.report import report
from rqlvc.cli.train import train_app
from rqlvc.errors import RqlvcError


class _Commands(TyperGroup):
    """Runs a subcommand; what a user can do something about ends in a sentence, never in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RqlvcError as error:
            _fail(str(error))
        except MemoryError:
            _fail("out of memory: code a smaller picture, or free memory and try again.")
        except BrokenPipeError:
            # Python flushes stdout once more on its way out, which would complain about the same pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _fail("the program that reads our output has closed the pipe.")
        except KeyboardInterrupt:
            typer.echo("rqlvc: interrupted: no output was kept.", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror or error}.")


def _fail(message: str) -> None:
    typer.echo(f"rqlvc: error: {message}", err=True)
    raise typer.Exit(EXIT_FAILURE)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rqlvc {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="rqlvc",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # importing rich would double the time to --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Code video with a learned codec."""


app.command()(encode)
app.command()(decode)
app.command()(info)
app.command()(codecs)
app.command()(controllers)
app.command()(report)
app.command()(collect)
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")


def main() -> None:
    logging.basicConfig(format="rqlvc: %(message)s")
    app(prog_name="rqlvc")
