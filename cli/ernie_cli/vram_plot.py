"""The image of `ernie-local vram --plot`: phases as stacked bars, what may be taken as a line."""

from __future__ import annotations

from pathlib import Path

from ernie_local.planner.terms import NOTHING, PHASES, MemoryPlan
from ernie_local.sizes import GIB

_INCHES = (9.0, 5.0)


def draw(memory: MemoryPlan, title: str, path: Path) -> None:
    """Write the image; its kind is the path's suffix, .svg or .png."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colors = colormaps["tab20"].colors  # type: ignore[attr-defined]
    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.subplots()
    bottoms = [0.0] * len(PHASES)
    for index, term in enumerate(memory.terms):
        heights = [term.phases.get(phase, NOTHING).best / GIB for phase in PHASES]
        label, color = f"{term.name} ({term.provenance})", colors[index % len(colors)]
        axes.bar(PHASES, heights, bottom=bottoms, label=label, color=color)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    if memory.limit_bytes is not None:
        axes.axhline(memory.limit_bytes / GIB, color="black", linestyle="--", label="may be taken")
    axes.set_ylabel("GiB")
    axes.set_title(title)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path)
