"""The tables of a folder that ``rqlvc evaluate`` has filled, in Markdown."""

from pathlib import Path

from rqlvc.errors import RqlvcError
from rqlvc.evaluation import comparison, goals, paper, stress
from rqlvc.evaluation.report.run import Run, read_run
from rqlvc.evaluation.results import FILE_NAME


def run_markdown(folder: Path) -> str:
    """Sections without a title, for a document of one's own. The same results give the same text.

    Raises :class:`RqlvcError` for what is no run, is broken or of another version.
    """
    run = read_run(folder)
    tables = paper.tables_of(run.experiment, run.results)
    try:
        sections = _sections(run, tables)
    except KeyError as error:  # of an experiment that an earlier version wrote
        raise RqlvcError(f"{folder / FILE_NAME} lacks {error}: evaluate again, with the same --out.") from error
    return "\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text is not None)


def _sections(run: Run, tables: paper.Tables) -> dict[str, str | None]:
    return {
        "What falls short": goals.markdown(tables, run.results, run.anchors),
        "Rate control": paper.markdown(run.experiment, tables),
        "Beside conventional encoders": None if run.anchors is None else comparison.markdown(run.anchors),
        "Under stress": None if run.stress is None else stress.markdown(run.stress),
    }
