"""Markdown tables."""

from collections.abc import Mapping, Sequence
from statistics import fmean

Cell = str | float | None


def table(
    title: str,
    heads: Sequence[str],
    rows: Mapping[str, Mapping[str, Cell]],
    form: str = "{}",
    average: str | None = None,
) -> list[str]:
    """The lines of a table with a row for each of ``rows``; ``form`` is for numbers, text stays as it is.

    A last row of means where ``average`` names it, without those that have a gap.
    """
    lines = [_line([title, *heads]), _line(["---", *["---:"] * len(heads)])]
    cells = {name: [row.get(head) for head in heads] for name, row in rows.items()}
    lines += [_line([name, *(_text(value, form) for value in values)]) for name, values in cells.items()]
    if average is not None and cells:
        means = []
        for column in zip(*cells.values(), strict=True):
            numbers = [value for value in column if isinstance(value, float)]
            means.append(fmean(numbers) if len(numbers) == len(column) else None)
        lines.append(_line([f"**{average}**", *(_text(value, form) for value in means)]))
    return lines


def _text(value: Cell, form: str) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else form.format(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
