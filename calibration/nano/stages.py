"""The curriculum: which images, how long, at what learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from nano.batches import Stream

TEXT_ONLY = Stream((), (0, 0), batch=96, weight=0.06, questions=3)


@dataclass(frozen=True, slots=True)
class Stage:
    """`steps` of a mix of streams; the learning rate goes linearly from `first_rate` to `last_rate`.

    `reading_weight` scales the auxiliary losses that name the characters in each image token's cell and its
    place, `pointing_weight` those that show attention where a word is printed.
    """

    name: str
    steps: int
    streams: tuple[Stream, ...]
    first_rate: float
    last_rate: float
    reading_weight: float
    pointing_weight: float


CHARTS = ("bar chart", "line chart")
LANDSCAPE, PORTRAIT = (7, 11), (10, 8)
LINES = (Stream(("text card",), (3, 5), batch=64, weight=1.0),)
SMALL_PAGES = (
    Stream(("invoice", "form", "receipt"), (7, 9), batch=48, weight=0.45, transcripts=0.3),
    Stream((*CHARTS, "table"), (6, 10), batch=48, weight=0.45, transcripts=0.2),
    TEXT_ONLY,
)
PAGES = (
    Stream(("invoice", "form", "table", *CHARTS), LANDSCAPE, batch=48, weight=0.70, transcripts=0.15),
    Stream(("receipt", "form", "invoice"), PORTRAIT, batch=48, weight=0.24, transcripts=0.15),
    TEXT_ONLY,
)
PRACTICE = (
    Stream(
        ("invoice", "form", "table", "table", *CHARTS, *CHARTS),
        LANDSCAPE,
        batch=48,
        weight=0.72,
        transcripts=0.12,
    ),
    Stream(("receipt", "form", "invoice"), PORTRAIT, batch=48, weight=0.22, transcripts=0.12),
    TEXT_ONLY,
)
# The shipped weights went through these stages with a tower half as wide up to step 1000, and were taught
# what superlatives mean from step 1600 on (docs/decisions.md).
STAGES = (
    Stage("lines", 200, LINES, 3e-3, 3e-3, 1.0, 0.3),
    Stage("small pages", 300, SMALL_PAGES, 3e-3, 3e-3, 0.7, 0.3),
    Stage("pages", 500, PAGES, 3e-3, 2.7e-3, 0.5, 0.2),
    Stage("practice", 1550, PRACTICE, 2.5e-3, 3e-5, 0.5, 0.15),
)
HELD_OUT = (
    Stream(
        ("invoice", "form", "table", "bar chart", "line chart"), (7, 11), batch=50, weight=1.0, questions=1
    ),
    Stream(("receipt", "form", "invoice"), (10, 8), batch=50, weight=0.4, questions=1),
)
