"""Draws short clips from a seed: numbers and words that change, the time on each frame, and questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from PIL import Image

from ernie_calibration.drawn_image import (
    LINE_PITCH,
    PLAIN_LOOK,
    Canvas,
    Glyph,
    Look,
    Question,
    Run,
    fit_size,
    ink_heights,
    random_background,
    random_style,
)
from ernie_calibration.names import NameSource, different
from ernie_local.media.video_sampling import stamp_text
from ernie_local.media.video_stamp import draw_stamp, stamp_font

CLIP_NUMBER, CLIP_TIME, CLIP_WORD = "clip number", "clip time", "clip word"
FRAMES_JOINED = 2  # frames that one token of a video joins
# As a video is read by default, so that the frames of a token show one second. What changes, changes with it:
# one token cannot tell which of two numbers at one place was there first.
FRAMES_A_SECOND = 2
NUMBER_QUESTIONS = (
    "What number is shown at {}?",
    "Which number is shown at {}?",
    "What is the number at {}?",
)
ENDS_QUESTIONS = {"first": "What number is shown first?", "last": "What number is shown last?"}
TIME_QUESTIONS = ("When does {} appear?", "At what time does {} appear?", "When is {} shown first?")
WORD_QUESTIONS = ("What word is shown at {}?", "Which word is shown at {}?")
_MOST_LETTERS = 8


@dataclass(frozen=True, slots=True)
class DrawnClip:
    """Frames with the seconds that are written on them, and questions.

    `width` and `height` are page units of a frame; images may be larger. Glyphs lie on a page on which the
    frames that one token joins lie on each other, and each such pair below the one before. `lines`: all that
    is written, of each pair what is on its first frame.
    """

    frames: tuple[Image.Image, ...]
    times: tuple[float, ...]
    width: int
    height: int
    lines: tuple[Run, ...]
    questions: tuple[Question, ...]


def clock(seconds: float) -> str:
    """Whole seconds as people write them: "0:03"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def draw_clip(
    seed: int | str,
    *,
    num_frames: int,
    width: int,
    height: int,
    scale: float = 1.0,
    held_out: bool = False,
    look: Look = PLAIN_LOOK,
    is_stamped: bool = True,
) -> DrawnClip:
    """A clip of 2 frames or more, each `width` x `height` page units, drawn `scale` times larger.

    is_stamped: whether the frames bear their time already, which else the runtime writes on them.
    """
    random = Random(f"clip/{seed}/{held_out}")
    names = NameSource(random, held_out)
    times = tuple(index / FRAMES_A_SECOND for index in range(num_frames))
    seconds_shown = times[::FRAMES_JOINED]
    numbers, words = _numbers(random, len(seconds_shown)), _words(random, names, len(seconds_shown))
    background = random_background(random, look)
    style = random_style(random, Canvas(width, height, scale, background, look))
    rows = random.sample(range(1, height // LINE_PITCH), 2)
    x_number, x_word = (random.uniform(0.3, 0.7) * width for _ in range(2))
    frames, runs = [], []
    for index, seconds in enumerate(times):
        page = Canvas(width, height, scale, background, look)
        pair = index // FRAMES_JOINED
        written = []
        for text, x, row in ((numbers[pair], x_number, rows[0]), (words[pair], x_word, rows[1])):
            size = fit_size(page, text, style.font, style.size + 4, 0.55 * width)
            y = (row + 0.5) * style.pitch
            written.append(page.text(x, y, text, ink=style.ink, font=style.font, size=size, align="middle"))
        stamped = page.image if is_stamped else page.image.copy()
        written.append(write_stamp(stamped, seconds, scale))
        frames.append(page.image)
        if index % FRAMES_JOINED == 0:
            runs.append([run.moved(0, pair * height) for run in written])
    number_runs, word_runs, stamps = zip(*runs, strict=True)
    questions = [
        *_ask_numbers(random, seconds_shown, stamps, number_runs),
        *_ask_words(random, seconds_shown, stamps, word_runs),
    ]
    lines = tuple(run for of_pair in runs for run in of_pair)
    return DrawnClip(tuple(frames), times, width, height, lines, tuple(questions))


def write_stamp(frame: Image.Image, seconds: float, scale: float) -> Run:
    """Write the time into the upper left corner as on the frames of a video; what is written, in page units.

    scale: pixels of `frame` to a page unit. InputUnreadable without the font of the extra [video].
    """
    text = stamp_text(seconds)
    draw_stamp(frame, text)
    font = stamp_font(frame)
    middle = sum(font.getmetrics()) / 2 / scale
    glyphs: list[Glyph | None] = []
    ends = (font.getlength(text[:length]) / scale for length in range(len(text) + 1))
    for letter, (start, end) in zip(text, pairwise(ends), strict=True):
        above, below = (middle + height / scale for height in ink_heights(font, letter))
        box = (start, above, end, below)
        glyphs.append(None if letter == " " else Glyph(letter, (start + end) / 2, middle, box))
    return Run(text, tuple(glyphs))


def _numbers(random: Random, num_shown: int) -> list[str]:
    """Different numbers, one a second, some of which stay for the next."""
    top = random.choice((20, 99, 999))
    new = iter(different(num_shown, lambda: str(random.randint(1, top))))
    numbers = [next(new)]
    while len(numbers) < num_shown:
        numbers.append(numbers[-1] if random.random() < 0.25 else next(new))
    return numbers


def _words(random: Random, names: NameSource, num_shown: int) -> list[str]:
    """Two words, one after the other; nothing is shown before the first one."""

    def short_name() -> str:
        return next(name for name in iter(names.item, "") if len(name) <= _MOST_LETTERS)

    first, second = different(2, short_name)
    start = random.randrange(num_shown)
    change = random.randint(start + 1, num_shown)
    return [""] * start + [first] * (change - start) + [second] * (num_shown - change)


def _ask_numbers(
    random: Random, times: Sequence[float], stamps: Sequence[Run], numbers: Sequence[Run]
) -> list[Question]:
    questions = []
    for index in random.sample(range(len(times)), min(2, len(times))):
        moment = clock(times[index])
        text = random.choice(NUMBER_QUESTIONS).format(moment)
        questions.append(Question(CLIP_NUMBER, text, numbers[index], ((moment, stamps[index].part(moment)),)))
    which = random.choice(("first", "last"))
    end = numbers[0 if which == "first" else -1]
    questions.append(Question(CLIP_NUMBER, ENDS_QUESTIONS[which], end, ((which, end),)))
    return questions


def _ask_words(
    random: Random, times: Sequence[float], stamps: Sequence[Run], words: Sequence[Run]
) -> list[Question]:
    questions = []
    for word in dict.fromkeys(run.text for run in words if run.text):
        index = next(index for index, run in enumerate(words) if run.text == word)
        text = random.choice(TIME_QUESTIONS).format(word)
        moment = stamps[index].part(clock(times[index]))
        questions.append(Question(CLIP_TIME, text, moment, ((word, words[index]),)))
    index = random.choice([index for index, run in enumerate(words) if run.text])
    moment_words = clock(times[index])
    mention = (moment_words, stamps[index].part(moment_words))
    text = random.choice(WORD_QUESTIONS).format(moment_words)
    questions.append(Question(CLIP_WORD, text, words[index], (mention,)))
    return questions
