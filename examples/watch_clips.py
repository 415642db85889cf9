"""Finds when things appear in clips, of a camera or of a scoreboard: python examples/watch_clips.py [FOLDER]

Without a folder it draws ten clips of numbers and words that change. The times of an answer are in seconds,
and clip-0.mp4.png shows the frames at these times.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from asked import FRAMES, answer_of, draw, questions_of

from ernie_local import Chat, LoadedModel, VideoPart, load
from ernie_local.session import Answer, write_sheet


def read(model: LoadedModel, folder: Path) -> Iterator[tuple[str, str, Answer]]:
    """The answer to each question about each clip; nano was trained with 8 frames at most."""
    for path, question in questions_of(folder):
        chat = Chat(model)
        clip = VideoPart(path, frames=FRAMES)
        answer = answer_of(chat, question, videos=clip, thinking=False, max_tokens=32)
        if answer is not None:
            write_sheet(Path(f"{path.name}.png"), answer.times, chat.videos)
            yield path.name, question, answer


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "clips")
    if len(sys.argv) == 1:
        draw(folder, "clip", 10)
    with Path("clips.csv").open("w", newline="", encoding="utf-8") as file:
        log = csv.writer(file)
        log.writerow(["file", "question", "answer", "seconds"])
        for name, question, answer in read(load("nano"), folder):
            log.writerow([name, question, answer.text, *(f"{time.seconds:g}" for time in answer.times)])
    print("the log of all clips is clips.csv")


if __name__ == "__main__":
    main()
