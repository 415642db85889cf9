"""Reads forms as JSON, and draws where a field is printed: python examples/forms_as_json.py [FOLDER]

Without a folder it draws ten forms, invoices, tables and charts. What is not on the page is null.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from asked import answer_of, draw, questions_of

from ernie_local import Chat, LoadedModel, load
from ernie_local.session import Answer, write_drawings


def read(model: LoadedModel, folder: Path) -> Iterator[tuple[str, str, Answer]]:
    """The answer to each question about each image, with its places drawn beside the program."""
    for path, question in questions_of(folder):
        chat = Chat(model)
        answer = answer_of(chat, question, images=path, thinking=False, max_tokens=120)
        if answer is not None:
            write_drawings(Path(f"{path.stem}-places.png"), answer.boxes, chat.images)
            yield path.name, question, answer


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "forms")
    if len(sys.argv) == 1:
        draw(folder, "form", 10)
    for name, question, answer in read(load("nano"), folder):
        print(f"{name}: {question.splitlines()[0]} {answer.text}")


if __name__ == "__main__":
    main()
