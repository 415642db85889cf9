"""No file of the project names a developer's folders or a package registry's host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What .gitignore keeps out; walked around instead of asking git, which a source archive does not have.
SKIPPED_FOLDERS = {"build", "dist", "runs", "__pycache__"}
HIDDEN_BUT_OURS = {".ci", ".gitignore", ".github"}
TEXT_SUFFIXES = set(
    " .cfg .cmake .cpp .cu .hpp .json .jsonl .lock .md .py .pyi .sh .toml .txt .yaml .yml".split(" ")
)
MAX_TEXT_BYTES = 4 << 20

# Spelled so that no pattern finds its own line here.
FOLDER_OF_A_PERSON = re.compile(r"(?<![\w.~)}>])/(?:root|home|Users|work|opt)/(?!me/)[\w.]")
REGISTRY_HOST = re.compile(
    r"\b(?:pypi[.]org|pythonhosted[.]org|pypi[.]python[.]org|download[.]pytorch[.]org|pypi[.]nvidia[.]com"
    r"|registry[.]npmjs[.]org|deb[.]debian[.]org|conda[.]anaconda[.]org|proxy[.]golang[.]org|static[.]crates[.]io)\b"
    r"|--(?:extra-)?index-url\b|--find[-]links\b"
)


def text_files(folder: Path = ROOT) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            continue
        hidden = path.name.startswith(".") and path.name not in HIDDEN_BUT_OURS
        if hidden or path.name in SKIPPED_FOLDERS or path.name.endswith((".egg-info", ".partial")):
            continue
        if path.is_dir():
            yield from text_files(path)
        elif path.suffix in TEXT_SUFFIXES and path.stat().st_size <= MAX_TEXT_BYTES:
            yield path


def findings(pattern: re.Pattern[str]) -> list[str]:
    found: list[str] = []
    for path in text_files():
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [
            f"{path.relative_to(ROOT)}:{number}"
            for number, line in enumerate(lines, 1)
            if pattern.search(line)
        ]
    return found


def test_the_walk_sees_the_project() -> None:
    seen = {str(path.relative_to(ROOT)) for path in text_files()}
    assert {
        "pyproject.toml",
        ".ci/run",
        "constraints.txt",
        "ernie_local/errors.py",
        "csrc/kernels.cpp",
    } <= seen


def test_no_folder_of_a_person() -> None:
    assert findings(FOLDER_OF_A_PERSON) == []


def test_no_registry_host() -> None:
    assert findings(REGISTRY_HOST) == []


def test_the_patterns_find_what_they_are_for() -> None:
    person = "".join(["/ro", "ot/x", " /ho", "me/ann"])
    assert len(FOLDER_OF_A_PERSON.findall(person)) == 2
    assert FOLDER_OF_A_PERSON.search("https://example.com/work/x") is None
    assert REGISTRY_HOST.search("https://files." + "pythonhosted" + ".org/packages") is not None
