"""Reads print that is too small for the model, by zooming into it: python examples/small_print.py [FOLDER]

Without a folder it draws five large sheets of cards. The model sees a sheet shrunk, asks for the part that
matters, and gets that from the pixels of the file. A PT model such as nano takes the Thinking template here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from asked import answer_of, draw, questions_of

from ernie_local import Chat, LoadedModel, load
from ernie_local.session import Answer


def read(model: LoadedModel, folder: Path, *, zoom: bool = True) -> Iterator[tuple[str, str, Answer]]:
    """The answer to each question about each sheet."""
    for path, question in questions_of(folder):
        chat = Chat(model, variant="thinking", zoom=zoom, max_rounds=2)
        answer = answer_of(chat, question, images=path, max_tokens=200)
        if answer is not None:
            yield path.name, question, answer


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "sheets")
    if len(sys.argv) == 1:
        draw(folder, "sheet", 5)
    for name, question, answer in read(load("nano"), folder):
        print(f"{name}: {question} {answer.text}")
        for step in answer.steps:
            print(f"    {step.call.arguments}")


if __name__ == "__main__":
    main()
