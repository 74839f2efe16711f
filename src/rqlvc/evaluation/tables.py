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
        means = [mean_of_all(column) for column in zip(*cells.values(), strict=True)]
        lines.append(_line([f"**{average}**", *(_text(value, form) for value in means)]))
    return lines


def mean_of_all(values: Sequence[Cell]) -> float | None:
    """None where one of them is not known: the mean of the others would not compare with other columns'."""
    numbers = [value for value in values if isinstance(value, float)]
    return fmean(numbers) if numbers and len(numbers) == len(values) else None


def _text(value: Cell, form: str) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else form.format(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
