"""Writes docs/cli.md from the help of `ernie-local` and its commands; `--check` says whether it is current.

The help is typer's own, with rich switched off, so that the page does not change with a terminal.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("cli.md")
PROGRAM = "ernie-local"
HEAD = """# The command line

Generated from the help of the commands by `just docs`; do not edit.
"""


def help_texts() -> dict[str, str]:
    """Command line ("ernie-local", "ernie-local chat", ...) to its help text, in the program's own order."""
    # Read when typer is imported and when it prints: plain text, and as wide as typer makes plain text.
    os.environ["TYPER_USE_RICH"] = "0"
    os.environ["COLUMNS"] = "100"
    from typer.main import get_command
    from typer.testing import CliRunner

    from ernie_cli.main import app

    runner = CliRunner()

    def help_of(words: list[str]) -> str:
        result = runner.invoke(app, [*words, "--help"], prog_name=PROGRAM)
        if result.exit_code != 0:
            raise RuntimeError(
                f"`{PROGRAM} {' '.join(words)} --help` ended with {result.exit_code}: {result.output}"
            )
        return "\n".join(line.rstrip() for line in result.output.strip().splitlines())

    command = get_command(app)
    context = command.make_context(PROGRAM, [], resilient_parsing=True)
    names = command.list_commands(context) if hasattr(command, "list_commands") else []
    return {PROGRAM: help_of([])} | {f"{PROGRAM} {name}": help_of([name]) for name in names}


def render_page(texts: dict[str, str]) -> str:
    """The whole page as Markdown: a heading and a fenced help text for each command line."""
    sections = [f"## {words}\n\n```text\n{text}\n```\n" for words, text in texts.items()]
    return "\n".join([HEAD, *sections])


def main() -> int:
    """Write the page, or compare it: 1 if it is not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not current")
    only_check = parser.parse_args().check

    page = render_page(help_texts())
    if not only_check:
        PAGE.write_text(page, encoding="utf-8")
        print(f"{PAGE.name}: {len(page.splitlines())} lines")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
        print(f"docs/{PAGE.name} is current")
        return 0
    print(f"docs/{PAGE.name} does not match the commands' help\ntry: just docs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
