"""Pieces of HTML that both pages are made of."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from rqlvc import __version__

UNKNOWN = "–"
Cell = str | float | None
"""A number of a table is shown in the form of its column, and carried in full beside it. None is not known."""


def page(title: str, body: Sequence[str], data: Mapping[str, Any]) -> str:
    """A whole file. ``data`` is what ``page.js`` draws from; it holds no NaN."""
    here = files(__package__)
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # Inside a script element only "</script" and "<!--" could end the data early.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{style}</style></head><body><main>",
        *body,
        f"<footer>Written by rqlvc {escape(__version__)}. Charts show values under the pointer, at a tap, and with the "
        "arrow keys.</footer>",
        f'</main><script type="application/json" id="data">{text}</script>',
        f"<script>\n{script}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def table(
    name: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    forms: Sequence[str],
    *,
    foot: Sequence[Cell] | None = None,
    slots: Mapping[str, str] | None = None,
) -> str:
    """A table of one row or more that sorts by a click on a header.

    ``forms`` has a format for each column, such as ``{:.2f}``; ``slots`` gives the rows whose first cell is a series
    the colour of that series.
    """

    def line(cells: Sequence[Cell]) -> str:
        first, *others = cells
        slot = (slots or {}).get(str(first))
        label = escape(str(first)) if isinstance(first, str) else _number(first, forms[0])
        start = f'<th scope="row"{_value(first)}>' + (f'<span class="key {slot}">{label}</span>' if slot else label)
        return f"<tr>{start}</th>{''.join(map(_cell, others, forms[1:]))}</tr>"

    head = "".join(
        f'<th scope="col"{_text_class(column)}><button type="button">{escape(text)}</button></th>'
        for text, column in zip(heads, zip(*rows, strict=True), strict=True)
    )
    footer = "" if foot is None else f"<tfoot>{line(foot)}</tfoot>"
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">'
        f'<table data-table="{escape(name)}">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(map(line, rows))}</tbody>{footer}</table></div>"
    )


def _text_class(column: Sequence[Cell]) -> str:
    return ' class="text"' if all(isinstance(cell, str) for cell in column) else ""


def _cell(cell: Cell, form: str) -> str:
    if isinstance(cell, str):
        return f'<td class="text">{escape(cell)}</td>'
    return f"<td{_value(cell)}>{_number(cell, form)}</td>"


def _value(cell: Cell) -> str:
    return f' data-value="{cell!r}"' if isinstance(cell, float | int) else ""


def _number(cell: float | None, form: str) -> str:
    if cell is None or not math.isfinite(cell):
        return UNKNOWN
    return form.format(cell).replace("-", "−")


def tiles(entries: Sequence[tuple[str, str, str]]) -> str:
    """Name, value and a remark for each."""
    boxes = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(remark)}</small></dd></div>"
        for name, value, remark in entries
    )
    return f'<dl class="tiles">{"".join(boxes)}</dl>'


def select(name: str, label: str, options: Mapping[str, str]) -> str:
    """Options by value, with their texts."""
    inner = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options.items())
    return f'<label>{escape(label)} <select id="{name}">{inner}</select></label>'
