"""`chat` with --schema, --fields, --regex and --choice: what reaches the chat, JSON output, and bad forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ernie_local.structured import AnswerForm
from tests.cli.running import Command, FakeChat

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def test_each_option_is_a_form(command: Command, fake_chat: FakeChat, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text("\ufeff" + json.dumps(SCHEMA), encoding="utf-8")
    cases = [
        (["--schema", str(file)], AnswerForm.from_schema(SCHEMA)),
        (["--schema", json.dumps(SCHEMA)], AnswerForm.from_schema(SCHEMA)),
        (["--fields", "a: integer"], AnswerForm.from_fields("a: integer")),
        (["--regex", "[0-9]+"], AnswerForm.from_regex("[0-9]+")),
        (["--choice", "yes, no"], AnswerForm.from_choices(["yes", "no"])),
        (
            ["--choice", "yes,no", "--bare-question"],
            AnswerForm.from_choices(["yes", "no"]).with_instruction(""),
        ),
        ([], None),
    ]
    for arguments, form in cases:
        assert command("chat", "-p", "hi", *arguments).exit_code == 0
        assert fake_chat.questions[-1]["schema"] == form
    assert command("chat", "-i", "--choice", "a,b", stdin=b"hi\nhello\n").exit_code == 0
    assert [one["schema"] for one in fake_chat.questions[-2:]] == [AnswerForm.from_choices(["a", "b"])] * 2


def test_nano_is_better_not_told_of_a_form(command: Command, fake_chat: FakeChat) -> None:
    form = ("-p", "hi", "--regex", "[0-9]+")
    assert "--bare-question suits it better" in command("chat", *form).stderr
    assert "suits it better" not in command("chat", *form, "--bare-question").stderr
    assert "suits it better" not in command("chat", "-p", "hi").stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--schema", "missing.json"], 5, "the schema missing.json cannot be read"),
        (["--schema", "{"], 2, "--schema is not a JSON object"),
        (["--schema", "[1]"], 2, "--schema is not a JSON object"),
        (["--schema", '{"if": {}}'], 2, "--schema cannot be used at $.if"),
        (["--fields", "a, a"], 2, "--fields: the field 'a' stands twice"),
        (["--fields", ""], 2, "--fields: a field's name is missing"),
        (["--regex", "a(?=b)"], 2, "--regex 'a(?=b)' cannot be used"),
        (["--choice", "a,a"], 2, "--choice with 2 texts cannot be used"),
        (["--fields", "a", "--choice", "a,b"], 2, "--fields and --choice are given"),
    ],
)
def test_bad_forms_are_told_before_the_model_is_looked_for(
    command: Command, no_weights: None, arguments: list[str], exit_code: int, words: str
) -> None:
    result = command("chat", "nothing-here", "-p", "hi", *arguments)
    assert result.exit_code == exit_code
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 3


def test_a_file_that_is_no_text_is_told(command: Command, no_weights: None, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_bytes(b"\xff\xfe{")
    result = command("chat", "nothing-here", "-p", "hi", "--schema", str(file))
    assert (result.exit_code, "it is not UTF-8 text" in result.stderr) == (5, True)


def test_nano_chooses_and_says_how_sure_it_is(command: Command) -> None:
    arguments = (
        "--choice",
        "£12.50,£84.84,£9.99",
        "--bare-question",
        "--json",
        "--image",
        "examples/invoice.png",
    )
    result = command("chat", "nano", "-p", "What is the total?", *arguments)
    printed = json.loads(result.stdout)
    assert (printed["text"], printed["value"]) == ("£84.84", "£84.84")
    assert 0.5 < printed["confidence"][""] <= 1


def test_an_answer_that_is_cut_off_ends_with_7(command: Command) -> None:
    result = command("chat", "nano", "-p", "hi", "--fields", "a, b", "--max-tokens", "6", "--json")
    printed = json.loads(result.stdout)
    assert (result.exit_code, printed["error"]["code"]) == (7, "no_answer")
    assert (printed["text"][:6], printed["value"], printed["confidence"]) == ('{"a": ', None, {})
