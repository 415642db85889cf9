"""Draws the plots of the report as PNG files, one for a light and one for a dark page."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ernie_quant.expert import RoutedExpert

_DOTS_PER_INCH = 130
_WIDTH = 9.0  # inches
_INK = {"light": "#222222", "dark": "#dddddd"}
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_NOTHING = "#d9534f"  # experts without a value, and zeros in logarithmic maps
_LINE = {"light": "#1f5fa8", "dark": "#7ab8f5"}


@dataclass(frozen=True, slots=True)
class ReportPlot:
    """One plot: PNG files for both themes, and its title and caption."""

    title: str
    caption: str
    light: bytes
    dark: bytes


def heat_maps(
    values: Mapping[RoutedExpert, float], title: str, caption: str, unit: str, *, logarithmic: bool = False
) -> ReportPlot:
    """A map for each bank, with one colour scale in `unit`.

    NaN has a colour of its own, and so have zeros if `logarithmic`.
    """
    banks = list(dict.fromkeys(bank for _, bank, _ in values))
    layers = sorted({layer for layer, _, _ in values})
    num_experts = 1 + max(expert for _, _, expert in values)
    rows = {layer: row for row, layer in enumerate(layers)}
    maps = {bank: np.full((len(layers), num_experts), np.nan) for bank in banks}
    for (layer, bank, expert), value in values.items():
        maps[bank][rows[layer], expert] = np.nan if logarithmic and value <= 0 else value
    known = np.concatenate([found[np.isfinite(found)] for found in maps.values()])
    lowest, highest = (float(known.min()), float(known.max())) if known.size else (1.0, 1.0)
    colors = matplotlib.colormaps["viridis"].with_extremes(bad=_NOTHING)

    def draw(figure: Figure, _theme: str) -> None:
        axes = figure.subplots(1, len(banks), squeeze=False, sharey=True)[0]
        # One norm for all maps: where all values are equal, the colour bar widens it for every map.
        norm = LogNorm(lowest, highest) if logarithmic else Normalize(lowest, highest)
        for axis, bank in zip(axes, banks, strict=True):
            image = axis.imshow(maps[bank], cmap=colors, norm=norm, aspect="auto", interpolation="nearest")
            axis.set_title(f"{bank} experts")
            axis.set_xlabel("expert")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel("layer")
        step = -(-len(layers) // 14)
        axes[0].set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
        figure.colorbar(image, ax=list(axes), fraction=0.05, pad=0.02, label=unit)

    return _render(draw, 1.6 + 0.13 * max(len(layers), 8), title, caption)


def layer_bars(values: Mapping[int, float], title: str, caption: str, unit: str) -> ReportPlot:
    """One bar for each layer, in `unit`; the axis begins at 0."""

    def draw(figure: Figure, theme: str) -> None:
        axis = figure.subplots()
        axis.bar(list(values), list(values.values()), color=_LINE[theme], width=0.8)
        axis.set_xlabel("layer")
        axis.set_ylabel(unit)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)

    return _render(draw, 2.6, title, caption)


def _render(draw: Callable[[Figure, str], None], height: float, title: str, caption: str) -> ReportPlot:
    images: dict[str, bytes] = {}
    for theme, ink in _INK.items():
        # Defaults first: a user's matplotlibrc must not change the bytes of a checkpoint.
        with matplotlib.style.context(["default", {**dict.fromkeys(_INKED, ink), "font.size": 9.0}]):
            figure = Figure(figsize=(_WIDTH, height), dpi=_DOTS_PER_INCH, layout="constrained")
            draw(figure, theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
        images[theme] = buffer.getvalue()
    return ReportPlot(title, caption, images["light"], images["dark"])
