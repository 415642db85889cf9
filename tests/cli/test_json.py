"""The objects of `--json`: their schemas, their page, and what chat's says."""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pytest
from jsonschema import Draft202012Validator, ValidationError

from ernie_cli.failures import CODE_NAMES
from ernie_cli.json_object import fill_result
from ernie_cli.main import COMMANDS
from tests.cli.running import DOCS, Command, FakeChat, validator_of

ROOT = DOCS.parent


def test_page_and_schemas_are_current(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["write_json_page.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(DOCS / "write_json_page.py"), run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().err
    assert {path.name.partition(".")[0] for path in (DOCS / "json").iterdir()} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_schemas_are_schemas_and_refuse_what_they_do_not_know(command: str) -> None:
    validator = validator_of(command)
    Draft202012Validator.check_schema(validator.schema)
    with pytest.raises(ValidationError):
        validator.validate({"schema": f"ernie-local.{command}/1", "ok": True, "error": None})


def test_the_page_explains_every_key_of_every_object() -> None:
    page = (DOCS / "json.md").read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for key in vars(command.new_result()):
            assert f"| `{key}` |" in section, (name, key)
    for exit_code, code in CODE_NAMES.items():
        assert f"| {exit_code} | `{code}` |" in page


@dataclass
class Inner:
    size: int


@dataclass
class Outer:
    one: Inner | None
    many: list[Inner]
    named: dict[str, Inner]
    given: int
    none: Inner | None = field(default=None)


@dataclass
class Source:
    @dataclass
    class Part:
        size: int
        unused: str = ""

    one: Part
    many: tuple[Part, ...]
    named: dict[str, Part]
    none: None = None


def test_a_result_is_filled_by_the_names_of_attributes() -> None:
    part = Source.Part(3)
    filled = fill_result(Outer, Source(part, (part, part), {"a": part}), given=7)
    assert filled == Outer(Inner(3), [Inner(3), Inner(3)], {"a": Inner(3)}, 7)
    with pytest.raises(AttributeError, match="given"):
        fill_result(Outer, Source(part, (), {}))


@dataclass
class Renamed:
    length: Annotated[int, "one.size"]
    given: int


def test_a_field_may_name_its_attribute_and_come_from_another_source() -> None:
    source = Source(Source.Part(3), (), {})
    assert fill_result(Renamed, source, SimpleNamespace(given=7, length=9)) == Renamed(3, 7)


def test_an_answer_fills_the_object(command: Command, fake_chat: FakeChat, invoice: Path) -> None:
    result = command("chat", "-p", "hi", "--image", str(invoice), "--json")
    value = result.json()
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
    assert next(iter(value)) == "schema"
    assert list(value)[-1] == "error"
    assert (value["ok"], value["text"]) == (True, "forty-two")
    assert value["timings"] == {"load": 0.25, "image": 0.1, "prefill": 0.2, "decode": 0.4, "total": 0.7}
    assert value["memory"] == {"peak_rss_bytes": 3 << 30}
    assert value["images"] == [
        {
            "name": str(invoice),
            "size": [2480, 3508],
            "resized": [1848, 2604],
            "tokens": 6138,
            "scale": 0.7437,
            "crop": None,
            "max_tokens": None,
        }
    ]


@pytest.mark.usefixtures("no_weights")
def test_an_error_has_the_same_keys_with_null_in_them(command: Command) -> None:
    result = command("chat", "somewhere", "-p", "hi", "--image", "missing.png", "--json")
    value = result.json()
    assert result.exit_code == 5
    assert set(value["usage"].values()) == set(value["timings"].values()) == {None}
    assert (value["ok"], value["model"], value["text"], value["images"]) == (False, "somewhere", None, [])
    assert "missing.png" in value["error"]["what"]
    assert len(result.stderr.splitlines()) == 3


@pytest.mark.parametrize(
    "text", ["\u2028 \x1b[31m", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]
)
def test_any_text_stays_on_one_line(command: Command, fake_chat: FakeChat, text: str) -> None:
    from ernie_local.text.reasoning import Piece

    fake_chat.pieces = (Piece("answer", text),)
    result = command("chat", "-p", "hi", "--json")
    assert result.json()["text"] == text
    assert result.stdout.count("\n") == 1
