"""Two streams on one terminal: what is written where, and in which colour."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from ernie_cli import settings
from ernie_cli.console import Console
from ernie_cli.settings import ENVIRONMENT, efficiency_cores, forced_instruction_set
from ernie_local.planner.core_kinds import CoreKinds

pytestmark = pytest.mark.usefixtures("plain_environment")
README = Path(__file__).parents[2] / "cli" / "README.md"


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def test_pieces_of_both_streams_never_share_a_line() -> None:
    both = io.StringIO()

    class Shared(io.StringIO):
        def write(self, text: str) -> int:
            return both.write(text)

    console = Console(Shared(), Shared())
    console.thought("hm")
    console.thought("m")
    console.answer("4")
    console.answer("2")
    console.note("done")
    console.answer("ends\n")
    console.end_line()
    assert both.getvalue() == "hmm\n42\ndone\nends\n"


def test_what_the_runtime_warns_of_is_a_line_like_all_others() -> None:
    told = io.StringIO()
    console = Console(io.StringIO(), told, quiet=True)
    with console.telling_warnings():
        warnings.warn("no kernels\nno compiler\ntry: one", UserWarning, stacklevel=1)
    assert told.getvalue() == "warning: no kernels\nno compiler\ntry: one\n"
    with pytest.warns(UserWarning, match="afterwards"):
        warnings.warn("afterwards", UserWarning, stacklevel=1)
    assert "afterwards" not in told.getvalue()


def test_colour_only_at_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def written(stderr: io.StringIO) -> str:
        console = Console(io.StringIO(), stderr)
        console.thought("hm")
        console.error("what\nwhy")
        return stderr.getvalue()

    plain = "hm\nerror: what\nwhy\n"
    assert written(Terminal()) == "\x1b[2mhm\x1b[0m\n\x1b[1;31merror: what\n\x1b[0mwhy\n"
    assert written(io.StringIO()) == plain
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert written(Terminal()) == plain


def test_escape_sequences_do_not_reach_a_terminal_but_stay_in_a_file() -> None:
    text = "a\x1b]0;title\x07b\tc\x9b\n"
    terminal, file = Terminal(), io.StringIO()
    Console(terminal, io.StringIO()).answer(text)
    Console(file, io.StringIO()).answer(text)
    assert terminal.getvalue() == "a\\x1b]0;title\\x07b\tc\\x9b\n"
    assert file.getvalue() == text


def test_a_name_in_a_line_never_commands_a_terminal_nor_makes_a_line_of_its_own() -> None:
    """A log may be shown on a terminal later, so it makes no difference where the line goes."""
    out, told = io.StringIO(), io.StringIO()
    console = Console(out, told)
    name = "a\x1b[31m\u202eb\rc"
    console.show([f"source: {name}\nok", "next"])
    console.note(f"{name}\nok")
    console.say(name)
    console.warn(name)
    console.error(f"{name}\nwhy")
    shown = "a\\x1b[31m\\u202eb\\x0dc"
    assert out.getvalue() == f"source: {shown}\\x0aok\nnext\n"
    assert told.getvalue() == f"{shown}\\x0aok\n{shown}\nwarning: {shown}\nerror: {shown}\nwhy\n"


def test_quiet_drops_notes_alone() -> None:
    stderr = io.StringIO()
    console = Console(io.StringIO(), stderr, quiet=True)
    console.note("a")
    console.say("b")
    console.warn("c")
    console.error("d")
    assert stderr.getvalue() == "b\nwarning: c\nerror: d\n"


def test_the_readme_has_the_table_of_environment_variables() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*) \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: effect.replace("`", "'") for name, effect in rows} == dict(ENVIRONMENT)


def test_an_empty_instruction_set_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert forced_instruction_set() is None
    for value, expected in (("", None), ("avx2", "avx2")):
        monkeypatch.setenv("ERNIE_LOCAL_ISA", value)
        assert forced_instruction_set() == expected


@pytest.mark.parametrize("kinds", [None, CoreKinds(4, 12)])
def test_the_profile_is_asked_of_efficiency_cores_where_there_are_any(
    monkeypatch: pytest.MonkeyPatch, kinds: CoreKinds | None
) -> None:
    monkeypatch.setattr("ernie_local.planner.cpu_limits.find_core_kinds", lambda *_: kinds)
    monkeypatch.setattr(settings, "stored_profile", lambda: SimpleNamespace(efficiency_cores=True))
    assert efficiency_cores(8) is None
    assert efficiency_cores(None) is (None if kinds is None else True)
    monkeypatch.setattr(settings, "stored_profile", lambda: None)
    assert efficiency_cores(None) is None
