"""Chats with models that read only text: templates, what ends an answer, images refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import ernie_local
from ernie_local.errors import UsageError
from ernie_local.loading.loader import load_model
from ernie_local.loading.options import LoadOptions
from ernie_local.model_files import ModelFiles, find_model_files
from ernie_local.server.memory import ServedMemory
from ernie_local.session import Chat, ChatMessage, open_chat_images
from ernie_local.session.writer import ChatWriter
from ernie_local.text.template import ChatTemplate, Message, parse_template
from ernie_local.text.template_file import FileTemplate
from ernie_local.verify import verify
from tests.text_only import NANO_VOCAB, TextOracle

BEGIN, END = "<|begin_of_sentence|>", "<|end_of_sentence|>"
# What the published templates of PT and of Thinking write, in Jinja of our own.
LINES_JINJA = """{{- '<|begin_of_sentence|>' -}}
{%- for one in messages -%}
{%- if one.role == 'assistant' -%}{{- 'Assistant: ' ~ one.content ~ '<|end_of_sentence|>' -}}
{%- else -%}{{- ('User: ' if one.role == 'user' else '') ~ one.content ~ '\n' -}}{%- endif -%}
{%- endfor -%}
{{- 'Assistant: ' if add_generation_prompt else '' -}}"""
THINKING_JINJA = """{%- set system = messages[0].content if messages[0].role == 'system' else none -%}
{{- '<|im_start|>system\n' -}}
{%- if system -%}{{- '<system_setting>\n' ~ system ~ '\n</system_setting>\n\n' -}}{%- endif -%}
{{- '<global_setting>\nthink_mode=True\n</global_setting><|im_end|>\n\n' -}}
{%- for one in messages if one.role != 'system' -%}
{%- set said = one.content if one.role == 'user' else '<response>\n' ~ one.content ~ '\n</response>\n' -%}
{{- '<|im_start|>' ~ one.role ~ '\n' ~ said ~ '<|im_end|>\n\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n<think>\n' -}}"""
TALK = (Message("user", "one"), Message("assistant", "two"), Message("user", "three"))


@pytest.fixture(scope="module")
def oracle() -> TextOracle:
    return TextOracle.of(NANO_VOCAB, has_experts=True)


def files_with(template: str | None, oracle: TextOracle, directory: Path) -> ModelFiles:
    return find_model_files(oracle.save_with_tokenizer(directory, template))


def written(files: ModelFiles, *messages: Message, system: str | None = None, thinking: bool = False) -> str:
    writer = ChatWriter(files, system)
    return writer.tokenizer.decode(writer.prompt(messages, thinking).token_ids)


@pytest.mark.parametrize("template", [None, LINES_JINJA])
def test_pt_is_asked_in_lines(template: str | None, oracle: TextOracle, tmp_path: Path) -> None:
    files = files_with(template, oracle, tmp_path)
    assert files.template() == ChatTemplate("text")
    assert written(files, *TALK) == f"{BEGIN}User: one\nAssistant: two{END}User: three\nAssistant: "
    assert written(files, TALK[0], system="Be brief.") == f"{BEGIN}Be brief.\nUser: one\nAssistant: "


def test_ours_writes_what_a_file_with_the_published_template_does(oracle: TextOracle, tmp_path: Path) -> None:
    assert not verify(files_with(LINES_JINJA, oracle, tmp_path).directory).notes[1:]
    other = files_with(LINES_JINJA.replace("'User: '", "'User:  '"), oracle, tmp_path)
    assert any("otherwise than ours for text" in note for note in verify(other.directory).notes)


def test_thinking_is_asked_by_its_own_file(oracle: TextOracle, tmp_path: Path) -> None:
    files = files_with(THINKING_JINJA, oracle, tmp_path)
    assert isinstance(files.template(), FileTemplate)
    opening = "<global_setting>\nthink_mode=True\n</global_setting><|im_end|>\n\n"
    question = "<|im_start|>user\none<|im_end|>\n\n<|im_start|>assistant\n<think>\n"
    assert written(files, TALK[0], thinking=True) == f"<|im_start|>system\n{opening}{question}"
    setting = "<system_setting>\nBe brief.\n</system_setting>\n\n"
    closed = written(files, TALK[0], system="Be brief.")
    # It opens a thought whatever it is asked for.
    assert closed == f"<|im_start|>system\n{setting}{opening}{question}\n</think>\n\n"
    assert "assistant\n<response>\ntwo\n</response>\n<|im_end|>" in written(files, *TALK)
    assert not verify(files.directory).findings


def test_thoughts_and_choices_that_lines_do_not_have(oracle: TextOracle, tmp_path: Path) -> None:
    files = files_with(None, oracle, tmp_path)
    with pytest.raises(UsageError, match="without thoughts"):
        written(files, TALK[0], thinking=True)
    with pytest.raises(UsageError, match="without tools"):
        ChatWriter(files, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(UsageError, match="the template text has none"):
        parse_template("text,labels=plain")


def test_all_that_may_end_an_answer(oracle: TextOracle, tmp_path: Path) -> None:
    files = files_with(None, oracle, tmp_path)
    assert ChatWriter(files).stop_ids == {2, files.tokenizer.id_of(END)}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 77]}')
    assert 77 in ChatWriter(find_model_files(tmp_path)).stop_ids


def test_the_memory_of_its_server_is_planned_without_images(oracle: TextOracle, tmp_path: Path) -> None:
    options = LoadOptions(context_size=256)
    memory = ServedMemory(options)
    memory.plan(load_model(files_with(None, oracle, tmp_path), options))
    (plan,) = memory.as_json()
    assert {"KV cache", "text experts"} <= {term["name"] for term in plan["terms"]}
    assert not {"vision tower", "patches of images"} & {term["name"] for term in plan["terms"]}


def test_an_image_is_refused(oracle: TextOracle, tmp_path: Path) -> None:
    files = files_with(None, oracle, tmp_path)
    picture = tmp_path / "a.png"
    Image.new("RGB", (60, 40)).save(picture)
    with pytest.raises(UsageError, match="a model that reads only text"):
        open_chat_images([picture], files.image_processor, 1000)
    model = ernie_local.load(files)
    with pytest.raises(UsageError, match="a model that reads only text"):
        model.logits([20, 21], [picture])
    with pytest.raises(UsageError, match="a model that reads only text"):
        find_model_files(tmp_path, max_pixels=100_000).image_processor.check()
    chat = Chat(model)
    with pytest.raises(UsageError, match="a model that reads only text"):
        list(chat.send([ChatMessage("user", ("What is it?", picture))]))
    list(chat.complete("Hello", max_tokens=5))
    assert chat.last is not None
    assert 0 < chat.last.usage.completion_tokens <= 5
