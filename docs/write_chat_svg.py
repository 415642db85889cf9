"""Writes docs/chat.svg, README's terminal picture, from a real chat with nano; `--check` compares its text.

The questions are fed to the chat as its stdin, and drawn after the prompt that a terminal shows.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import io
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).with_name("chat.svg")
WORDS = ["chat", "nano", "--image", "examples/invoice.png"]
QUESTIONS = ["What is the total?", "Who is the vendor?", "What is the date?"]
PROMPT = "> "
COLUMNS = 126


def chat_lines() -> list[tuple[str, str]]:
    """Run the chat; return (style, line) pairs in the order in which a terminal shows them."""
    from ernie_cli.main import run

    typed = io.TextIOWrapper(io.BytesIO("".join(f"{question}\n" for question in QUESTIONS).encode()))
    stdin, sys.stdin = sys.stdin, typed
    told, said = io.StringIO(), io.StringIO()
    try:
        with contextlib.chdir(ROOT), contextlib.redirect_stderr(told), contextlib.redirect_stdout(said):
            code = run([*WORDS, "-i"])  # -i: a terminal is interactive by itself, this stdin is not
    finally:
        sys.stdin = stdin
    answers = said.getvalue().splitlines()
    if code != 0 or len(answers) != len(QUESTIONS):
        raise RuntimeError(f"the chat ended with {code}: {said.getvalue()}{told.getvalue()}")
    lines = [("bold", f"$ ernie-local {' '.join(WORDS)}")]
    lines += [("bright_black", line) for line in told.getvalue().splitlines()]
    for question, answer in zip(QUESTIONS, answers, strict=True):
        lines += [("bold", PROMPT + question), ("green", answer)]
    return lines


def draw(lines: list[tuple[str, str]]) -> str:
    """The lines as an SVG that loads nothing from a network."""
    from rich.console import Console
    from rich.text import Text

    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for style, line in lines:
        console.print(Text(line, style=style))
    svg = console.export_svg(title="ernie-local", unique_id="chat")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace(
        "Fira Code, monospace", "monospace"
    )
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def shown_text(svg: str) -> str:
    """The words of an SVG that `draw` made, without line breaks and repeated blanks."""
    texts = re.findall(r"<text[^>]*>(.*?)</text>", svg, flags=re.DOTALL)
    return " ".join(html.unescape(" ".join(texts)).replace("\xa0", " ").split())


def main() -> int:
    """Write the picture, or compare its text: 1 if it is not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the text is not current")
    only_check = parser.parse_args().check

    svg = draw(chat_lines())
    if not only_check:
        PICTURE.write_text(svg, encoding="utf-8")
        print(f"docs/{PICTURE.name}: {len(svg)} bytes")
        return 0
    if PICTURE.exists() and shown_text(PICTURE.read_text(encoding="utf-8")) == shown_text(svg):
        print(f"docs/{PICTURE.name} is current")
        return 0
    print(f"docs/{PICTURE.name} does not show what the chat says\ntry: just docs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
