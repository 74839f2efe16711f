"""How the pictures of these examples look: the colours of ``rqlvc report``, letters for a phone, small files."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

INK, SOFT, GRID, BLUE, ORANGE, GREEN = "#1a1f26", "#5a6472", "#e9ecf0", "#0a36a8", "#cc6114", "#459281"
WIDTH, PANEL_HEIGHT = 5.0, 2.1
"""In inches; letters have 10 points."""
DOTS_PER_INCH = 150
COLOURS = 32
"""In the palette of a file."""


def panels(title: str, count: int) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` plots over the same seconds, one above the other."""
    figure = Figure(figsize=(WIDTH, count * PANEL_HEIGHT), layout="constrained")
    figure.suptitle(title, fontsize=11, color=INK)
    axes = list(figure.subplots(count, 1, sharex=True))
    axes[-1].set_xlabel("seconds")
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Legends, where there are any, go above the plots."""
    for axes in figure.axes:
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=9, frameon=False, borderaxespad=0.2)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DOTS_PER_INCH)
    Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
