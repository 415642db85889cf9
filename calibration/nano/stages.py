"""The curriculum: which pictures, how long, at what learning rate. All that decides what is learnt."""

from __future__ import annotations

from dataclasses import dataclass

from nano.batches import Stream

TEXT_ONLY = Stream((), (0, 0), batch=64, weight=0.06, questions=2)


@dataclass(frozen=True, slots=True)
class Stage:
    """`steps` of a mix of streams; the learning rate goes linearly from `first_rate` to `last_rate`.

    `reading_weight` scales the auxiliary loss that names the characters in each image token's cell.
    """

    name: str
    steps: int
    streams: tuple[Stream, ...]
    first_rate: float
    last_rate: float
    reading_weight: float


PAGES = (
    Stream(("invoice", "form", "table", "bar chart", "line chart"), (7, 11), batch=48, weight=0.62),
    Stream(("receipt", "form", "invoice"), (10, 8), batch=48, weight=0.20),
    Stream(("receipt", "form", "invoice"), (11, 7), batch=48, weight=0.06),
    Stream(("bar chart", "line chart", "table"), (8, 10), batch=48, weight=0.06),
    TEXT_ONLY,
)
CHARTS = ("bar chart", "line chart")
PRACTICE = (
    Stream(("invoice", "form", "table", *CHARTS, *CHARTS), (7, 11), batch=48, weight=0.66),
    Stream(("receipt", "form", "invoice"), (10, 8), batch=48, weight=0.18),
    Stream((*CHARTS, "table"), (8, 10), batch=48, weight=0.06),
    TEXT_ONLY,
)
STAGES = (
    Stage("lines", 200, (Stream(("text card",), (3, 5), batch=64, weight=1.0),), 3e-3, 3e-3, 1.0),
    Stage(
        "small pages",
        200,
        (
            Stream(("invoice", "form", "receipt"), (7, 9), batch=48, weight=0.45),
            Stream(("bar chart", "line chart", "table"), (6, 10), batch=48, weight=0.45),
            Stream(("text card",), (3, 6), batch=48, weight=0.04),
            TEXT_ONLY,
        ),
        3e-3,
        3e-3,
        0.7,
    ),
    Stage("pages", 200, PAGES, 3e-3, 3e-3, 0.7),
    Stage("settle", 600, PAGES, 3e-3, 6e-4, 0.5),
    # The shipped checkpoint ends here. What follows has not been run yet.
    Stage("practice", 1200, PRACTICE, 2e-3, 2e-3, 0.4),
    Stage("anneal", 900, PRACTICE, 2e-3, 5e-5, 0.3),
)
HELD_OUT = (
    Stream(
        ("invoice", "form", "table", "bar chart", "line chart"), (7, 11), batch=50, weight=1.0, questions=1
    ),
    Stream(("receipt", "form", "invoice"), (10, 8), batch=50, weight=0.4, questions=1),
)
