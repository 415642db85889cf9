"""Makes matplotlib figures with a random theme, and keeps all text inside the image.

It uses matplotlib's objects and the Agg canvas alone, so nothing global is read or set.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from ernie_calibration.names import of_world

LONG_SIDES = (700, 1600)  # pixels
# Every fourth family, palette and grid is held out.
FAMILIES = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "STIXGeneral")
PALETTES = (
    ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f"),
    ("#264653", "#2a9d8f", "#e9c46a", "#f4a261", "#e76f51", "#8ab17d", "#6d597a", "#b56576"),
    ("#003f5c", "#7a5195", "#ef5675", "#ffa600", "#2f4b7c", "#a05195", "#d45087", "#ff7c43"),
    ("#222222", "#777777", "#aaaaaa", "#444444", "#999999", "#cccccc", "#5a5a5a", "#888888"),
    ("#66c2a5", "#fc8d62", "#8da0cb", "#e78ac3", "#a6d854", "#ffd92f", "#e5c494", "#b3b3b3"),
    ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#9c755f"),
    ("#0b3954", "#087e8b", "#bfd7ea", "#ff5a5f", "#c81d25", "#f5b700", "#04a777", "#6c464e"),
    ("#5f0f40", "#9a031e", "#fb8b24", "#e36414", "#0f4c5c", "#7d8597", "#33415c", "#979dac"),
)
GRIDS = ("none", "y", "both", "dotted")
_SHRINK, _SHRINKS = 0.85, 8


@dataclass(frozen=True, slots=True)
class Theme:
    """How a chart looks."""

    family: str
    palette: tuple[str, ...]
    grid: str
    paper: str
    framed: bool
    labelled: bool  # whether values are printed beside what shows them


def random_theme(random: Random, held_out: bool) -> Theme:
    """One of this world's themes."""
    return Theme(
        random.choice(of_world(FAMILIES, held_out)),
        random.choice(of_world(PALETTES, held_out)),
        random.choice(of_world(GRIDS, held_out)),
        random.choice(("#ffffff", "#ffffff", "#fafafa", "#f4f1ea", "#eef3f8")),
        random.random() < 0.6,
        random.random() < 0.5,
    )


def new_figure(random: Random, theme: Theme) -> Figure:
    """An empty figure; larger images show larger letters, or more of them."""
    long_side = random.randint(*LONG_SIDES)
    ratio = random.uniform(0.58, 0.85)
    inches = random.uniform(6.0, 9.0)
    size = (inches, inches * ratio)
    return Figure(figsize=size, dpi=long_side / inches, layout="constrained", facecolor=theme.paper)


def dress(axes: Any, theme: Theme, title: str) -> None:
    """Title, grid, frame and paper."""
    axes.set_title(title)
    axes.set_facecolor(theme.paper)
    axes.set_axisbelow(True)
    if theme.grid != "none":
        style = ":" if theme.grid == "dotted" else "-"
        axes.grid(True, axis="both" if theme.grid == "dotted" else theme.grid, linestyle=style, alpha=0.5)
    if not theme.framed:
        axes.spines[["top", "right"]].set_visible(False)


def name_ticks(axes: Any, labels: tuple[str, ...]) -> None:
    """Categories under an axis; turned where they would not fit side by side."""
    axes.set_xticks(range(len(labels)), labels)
    points = axes.figure.get_figwidth() * 72 * 0.8
    if max(map(len, labels)) * len(labels) * 6.5 > points:
        axes.tick_params(axis="x", labelrotation=40)


def render(figure: Figure, theme: Theme) -> Image.Image:
    """The image as RGB. Letters shrink until nothing crosses the edge."""
    canvas: Any = FigureCanvasAgg(figure)
    text: Any
    for text in figure.findobj(Text):
        text.set_family(theme.family)
    canvas.draw()
    for _ in range(_SHRINKS):
        if is_inside(figure):
            break
        for text in figure.findobj(Text):
            text.set_fontsize(text.get_fontsize() * _SHRINK)
        canvas.draw()
    return Image.fromarray(numpy.asarray(canvas.buffer_rgba())).convert("RGB")


def is_inside(figure: Figure) -> bool:
    """Whether all that was drawn, text above all, lies within the image."""
    canvas: Any = figure.canvas
    drawn = figure.get_tightbbox(canvas.get_renderer())  # inches
    slack = 1.0 / figure.dpi
    right, top = figure.get_size_inches() + slack
    return bool(min(drawn.x0, drawn.y0) >= -slack and drawn.x1 <= right and drawn.y1 <= top)
