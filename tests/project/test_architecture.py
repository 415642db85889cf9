"""Every file and folder that README.md and docs/architecture.md name exists, and so does every link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/architecture.md")
# Made by a build or a run, or named as an example of what a reader adds.
NOT_IN_THE_TREE = {"OUT/"}
FILE_ENDINGS = ("py", "md", "cpp", "hpp", "toml", "txt", "json", "svg", "png", "csv", "sh")


def named_paths(text: str) -> list[str]:
    """Words in backquotes that read as a path: files with a slash and a known ending, and folders."""
    words = [word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()]
    pattern = re.compile(rf"[\w.-]+/[\w./{{}},*-]*\.(?:{'|'.join(FILE_ENDINGS)})|[\w.-]+/(?:[\w.-]+/)*")
    return [word for word in words if pattern.fullmatch(word)]


def linked_paths(text: str) -> list[str]:
    """Targets of links and images that are no addresses, without their anchors."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    return [target for target in targets if "://" not in target]


def expand(path: str) -> list[str]:
    """`a/{b,c}.py` to `a/b.py`, `a/c.py`."""
    found = re.search(r"\{([^}]*)\}", path)
    if found is None:
        return [path]
    return [path.replace(found[0], word.strip()) for word in found[1].split(",")]


@pytest.mark.parametrize("page", PAGES)
def test_named_paths_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    missing = [
        path
        for named in named_paths(text)
        for path in expand(named)
        if path not in NOT_IN_THE_TREE and not any(ROOT.glob(path.rstrip("/")))
    ]
    assert missing == []


@pytest.mark.parametrize("page", [*PAGES, "docs/decisions.md", "docs/performance.md", "docs/format.md"])
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    folder = (ROOT / page).parent
    assert [target for target in linked_paths(text) if not (folder / target).exists()] == []


def test_the_index_of_decisions_leads_to_its_sections() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
    assert re.findall(r"\]\(#([^)]+)\)", text) == anchors


def test_architecture_stays_short() -> None:
    assert len((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_paths_are_recognized() -> None:
    text = "`a/b.py` `csrc/` `just docs` `a/{b,c}.py` `w4` `x/y` `--ram` `python a/b.py --x`"
    assert named_paths(text) == ["a/b.py", "csrc/", "a/{b,c}.py", "a/b.py"]
    assert expand("a/{b,c}.py") == ["a/b.py", "a/c.py"]


def test_lines_of_decisions_can_be_read() -> None:
    lines = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > 180] == []
