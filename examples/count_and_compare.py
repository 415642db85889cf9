"""Asks for what nobody printed, as counts and differences: python examples/count_and_compare.py [FOLDER]

Without a folder it draws ten forms, tables and charts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from asked import answer_of, draw, questions_of

from ernie_local import Chat, LoadedModel, load
from ernie_local.session import Answer


def read(model: LoadedModel, folder: Path) -> Iterator[tuple[str, str, Answer]]:
    """The answer to each question about each image."""
    for path, question in questions_of(folder):
        chat = Chat(model)
        answer = answer_of(chat, question, images=path, thinking=False, max_tokens=32)
        if answer is not None:
            yield path.name, question, answer


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "counted")
    if len(sys.argv) == 1:
        draw(folder, "count", 10)
    for name, question, answer in read(load("nano"), folder):
        print(f"{name}: {question} {answer.text}")


if __name__ == "__main__":
    main()
