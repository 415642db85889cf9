"""Lists what nano learns one after the other: stages, each a mix of streams of conversations."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ernie_calibration.drawn_image import VARIED_LOOK
from nano.streams import MOST_ASIDE, Stream


@dataclass(frozen=True, slots=True)
class Stage:
    """`steps` of a mix of streams; the learning rate goes linearly from `first_rate` to `last_rate`.

    `reading_weight` scales the auxiliary losses that name the characters in each image token's cell and its
    place, `pointing_weight` those that show attention where a word is printed. `banks`: None if all experts
    learn, else only the vision experts of the first so many layers that have any: seven eighths of all
    weights are experts, and what did not change costs no room in a history of the file.
    """

    name: str
    steps: int
    streams: tuple[Stream, ...]
    first_rate: float
    last_rate: float
    reading_weight: float
    pointing_weight: float
    banks: int | None = None


TEXT_ONLY = Stream((), (0, 0), batch=48, weight=0.05, questions=3)
CHARTS = ("bar chart", "line chart")
LANDSCAPE, PORTRAIT, FRAME = (7, 11), (10, 8), (5, 8)
LINES = (Stream(("text card",), (3, 5), batch=64, weight=1.0, look=VARIED_LOOK),)
SMALL_PAGES = (
    Stream(("invoice", "form", "receipt"), (7, 9), batch=36, weight=0.45, transcripts=0.3, skills=0.2),
    Stream((*CHARTS, "table"), (6, 10), batch=36, weight=0.45, transcripts=0.2, skills=0.2),
    TEXT_ONLY,
)
PAGES = (
    Stream(
        ("invoice", "form", "table", *CHARTS),
        LANDSCAPE,
        batch=36,
        weight=0.6,
        transcripts=0.12,
        skills=0.6,
        look=VARIED_LOOK,
    ),
    Stream(
        ("receipt", "form", "invoice"),
        PORTRAIT,
        batch=36,
        weight=0.2,
        transcripts=0.12,
        skills=0.6,
        look=VARIED_LOOK,
    ),
    TEXT_ONLY,
)
CLIPS = tuple(
    Stream(("clip",), FRAME, batch=32, weight=0.065, num_frames=frames, look=VARIED_LOOK)
    for frames in (2, 4, 5, 8)
)
# Cards of a sheet (columns, rows, their grid) with the grid that it is shrunk to.
SHEETS = (
    ((2, 2, LANDSCAPE), (8, 10)),
    ((3, 2, LANDSCAPE), (7, 12)),
    ((2, 3, LANDSCAPE), (10, 8)),
    ((3, 2, PORTRAIT), (9, 9)),
)
CLOSEUPS = tuple(
    Stream(("sheet",), grid, batch=24, weight=0.08, sheet=cards, look=VARIED_LOOK) for cards, grid in SHEETS
)
# Pages that can be read as they are, with the zoom tool on offer.
READABLE = (
    Stream(
        ("invoice", "form", "table", "receipt"), LANDSCAPE, batch=32, weight=0.07, tools=1.0, look=VARIED_LOOK
    ),
)
ALL_SKILLS = (*PAGES, *CLIPS, *CLOSEUPS, *READABLE)
# Print that does not lie in rows of image tokens, on pages and in close-ups.
ASIDE = (
    *(replace(page, weight=0.5 * page.weight, aside=MOST_ASIDE, transcripts=0.0) for page in PAGES[:2]),
    *(replace(page, weight=0.3 * page.weight) for page in PAGES),
    *(replace(clip, weight=0.4 * clip.weight) for clip in CLIPS),
    *(replace(sheet, weight=0.17) for sheet in CLOSEUPS),
    *READABLE,
)
# From nothing. With --start only those of STARTED_STAGES are run.
READING_STAGES = (
    Stage("lines", 200, LINES, 3e-3, 3e-3, 1.0, 0.3),
    Stage("small pages", 300, SMALL_PAGES, 3e-3, 3e-3, 0.7, 0.3),
    Stage("pages", 500, PAGES, 3e-3, 2.7e-3, 0.5, 0.2),
)
STARTED_STAGES = (
    Stage("skills", 2000, ALL_SKILLS, 1.8e-3, 1.1e-3, 0.5, 0.2),
    Stage("practice", 2700, ALL_SKILLS, 1.1e-3, 3e-5, 0.4, 0.15),
    Stage("close-ups", 1100, ASIDE, 6e-4, 2e-4, 0.4, 0.15, banks=0),
    Stage("aside", 1000, ASIDE, 6e-4, 3e-5, 0.4, 0.15, banks=2),
)
HELD_OUT = (
    Stream(("invoice", "form", "table", *CHARTS), LANDSCAPE, batch=50, weight=1.0, questions=1),
    Stream(("receipt", "form", "invoice"), PORTRAIT, batch=50, weight=0.4, questions=1),
    Stream(("invoice", "form", "table", *CHARTS), LANDSCAPE, batch=50, weight=0.8, questions=1, skills=1.0),
    replace(CLIPS[1], questions=1, weight=0.4),
    replace(CLOSEUPS[1], weight=0.4),
)
