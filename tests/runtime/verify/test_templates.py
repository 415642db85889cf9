"""The chat template of the files against ours: the first difference is told with both texts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.text.sentencepiece_file import SpaceRules, with_space_rules
from ernie_local.text.tokenizer import ErnieTokenizer
from ernie_local.verify import verify
from ernie_local.verify.templates import compare_template
from tests.runtime.text.test_template import PT_JINJA
from tests.runtime.text.thinking_template import THINKING_JINJA

# A text alone comes as a text.
PT_SOURCE = PT_JINJA.replace("message.reasoning", "message.reasoning_content").replace(
    "{%- for item in message.content -%}",
    "{%- set items = [{'type': 'text', 'text': message.content}] if message.content is string "
    "else message.content -%}\n{%- for item in items -%}",
)


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    """A copy of nano, which gets a chat template."""
    return Path(shutil.copytree(NANO_DIRECTORY, tmp_path / "nano"))


def give_template(directory: Path, source: str) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": source}))


@pytest.mark.parametrize("source", [THINKING_JINJA, PT_SOURCE])
def test_a_template_that_writes_what_ours_does(nano: Path, tokenizer: ErnieTokenizer, source: str) -> None:
    give_template(nano, source)
    assert compare_template(nano, tokenizer) is None


def test_without_a_template_there_is_nothing_to_compare(nano: Path, tokenizer: ErnieTokenizer) -> None:
    assert compare_template(nano, tokenizer) is None


@pytest.mark.parametrize(
    ("source", "old", "new", "message"),
    [
        (THINKING_JINJA, "' Picture ", "'Picture ",
         r"an image and a text, thinking on,.*'.*User: Picture 1:.*, ours '.*User: \\x20Picture 1:"),
        (THINKING_JINJA, "'thinking_mode': true", "'thinking_mode': false", "a text, thinking by default"),
        (PT_SOURCE, "if enable_thinking", "if enable_thinking is not defined or enable_thinking",
         r"a text, thinking by default.*the file '.*<think>', ours '.*<think>\\n\\n</think>"),
        (THINKING_JINJA, "User: \\n<tool_output>", "User: <tool_output>", "output of a tool, thinking on"),
        (THINKING_JINJA, "{{- sep_token -}}", "", "several turns, thinking on"),
    ],
)  # fmt: skip
def test_the_first_difference_is_told_with_both_texts(
    nano: Path, tokenizer: ErnieTokenizer, source: str, old: str, new: str, message: str
) -> None:
    assert old in source
    give_template(nano, source.replace(old, new))
    note = compare_template(nano, tokenizer)
    assert note is not None
    assert re.search(r"otherwise than ours.*; \S+ asks as the file says", note)
    assert re.search(message, note)


def test_verify_notes_a_template_that_differs_and_finds_one_that_fails(nano: Path) -> None:
    give_template(nano, THINKING_JINJA.replace("' Picture ", "'Picture "))
    result = verify(nano)
    assert not result.findings
    assert ["otherwise than ours for thinking" in note for note in result.notes] == [False, True]
    assert len(verify(nano, template=False).notes) == 1
    give_template(nano, THINKING_JINJA + "{{ raise_exception('never') }}")
    (finding,) = verify(nano).findings
    assert finding.error.why == "TemplateError: never"
    give_template(nano, THINKING_JINJA)
    assert not verify(nano).findings


def test_verify_notes_what_the_tokenizer_does_with_spaces(nano: Path) -> None:
    path = nano / "tokenizer.model"
    path.write_bytes(with_space_rules(path.read_bytes(), SpaceRules(prefix=True, removal=True)))
    result = verify(nano)
    assert not result.findings
    assert any("adds a space before each text" in note for note in result.notes)
    assert any("removes extra spaces" in note for note in result.notes)
