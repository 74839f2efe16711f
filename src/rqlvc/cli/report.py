"""``rqlvc report``."""

from pathlib import Path
from typing import Annotated

import typer

from rqlvc.cli.console import say
from rqlvc.cli.options import Overwrite, check_output
from rqlvc.errors import RqlvcError


def report(
    results: Annotated[
        Path, typer.Argument(metavar="IN", help="Folder of 'rqlvc evaluate', or a file of 'rqlvc encode --stats'.")
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="OUT", help="HTML file; .md: the tables of an evaluation alone.")
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Folder of the sequences, or the video that was coded: for pictures of the worst frames, which are "
            "coded again for it.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a page of an evaluation or of one encode: one HTML file that needs no network.

    A name in .md gives the tables of an evaluation in Markdown, and what falls short of the goals.
    """
    if not results.exists():
        raise RqlvcError(f"there is no file or folder {results}.")
    if source is not None and not source.exists():
        raise RqlvcError(f"there is no file or folder {source}.")
    check_output(output, overwrite=overwrite, inputs=(str(results),))

    from rqlvc.media.output import AtomicOutput

    if Path(output).suffix.lower() == ".md":
        if not results.is_dir() or source is not None:
            raise RqlvcError(
                "Markdown has the tables of an evaluation alone: for encodes and pictures end OUT in .html."
            )
        from rqlvc.evaluation.report.markdown import run_markdown

        text = run_markdown(results)
    elif results.is_dir():
        from rqlvc.evaluation.report.run import run_page

        text = run_page(results, source, lambda name: say(f"coding the worst frame of {name}"))
    else:
        from rqlvc.evaluation.report.encode import encode_page

        text = encode_page(results, source)
    file = AtomicOutput(output, overwrite=overwrite)
    try:
        file.write(text.encode())
    except BaseException:
        file.abandon()
        raise
    file.commit()
