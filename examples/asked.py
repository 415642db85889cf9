"""Draws files that nano never saw, with questions about each: python examples/asked.py clip 20 clips/

Kinds: form (fields as JSON, places, fields that are not there), count, clip, and sheet (of small print).
The examples take the questions about your files, too, from a questions.json beside them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import count as count_up
from itertools import islice
from pathlib import Path
from typing import Any

import av
from PIL import Image

from ernie_calibration.clips import FRAMES_A_SECOND, draw_clip
from ernie_calibration.generated import SampleFamily, held_out_samples
from ernie_calibration.sample import SampleTurn
from ernie_local import Chat
from ernie_local.errors import NoAnswer
from ernie_local.session import Answer

SEED = 2  # the model card and the tests of nano use others
FRAMES = 8
KINDS: dict[str, tuple[SampleFamily, tuple[str, ...]]] = {
    "form": ("fields", ("json fields", "place", "absent field")),
    "count": ("fields", ("small count", "small difference", "month in words", "currency in words")),
    "sheet": ("closeups", ("small print",)),
}
Frames = tuple[Image.Image, ...]


def draw(folder: Path, kind: str, count: int) -> dict[str, list[SampleTurn]]:
    """Draw `count` files into `folder`; the questions about each, with their answers."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = {}
    for index, (frames, turns) in enumerate(islice(_drawn(kind), count)):
        path = folder / f"{kind}-{index}.{'mp4' if kind == 'clip' else 'png'}"
        if kind == "clip":
            _write_clip(path, frames)
        else:
            frames[0].save(path)
        asked[path.name] = turns
    questions = {name: [turn.question for turn in turns] for name, turns in asked.items()}
    (folder / "questions.json").write_text(json.dumps(questions, indent=1), encoding="utf-8")
    return asked


def questions_of(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each file of a folder with each question about it."""
    listed = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    return ((folder / name, question) for name, questions in listed.items() for question in questions)


def answer_of(chat: Chat, question: str, **options: Any) -> Answer | None:
    """What a chat says in the end, asked as by `Chat.ask`; None where nothing comes before max_tokens."""
    with suppress(NoAnswer):
        list(chat.ask(question, **options))
    return chat.last


def _drawn(kind: str) -> Iterator[tuple[Frames, list[SampleTurn]]]:
    if kind == "clip":
        for index in count_up():
            seed = f"examples/{SEED}/{index}"
            clip = draw_clip(seed, num_frames=FRAMES, width=224, height=140, held_out=True, is_stamped=False)
            turns = [SampleTurn(one.text, one.answer, one.kind) for one in clip.questions]
            yield clip.frames, turns
    family, kinds = KINDS[kind]
    for sample in held_out_samples(10**6, SEED, families=(family,), questions_each=9):
        if turns := [turn for turn in sample.turns if turn.kind in kinds]:
            yield sample.images, turns


def _write_clip(path: Path, frames: Frames) -> None:
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=FRAMES_A_SECOND)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    draw(Path(sys.argv[3]), sys.argv[1], int(sys.argv[2]))
