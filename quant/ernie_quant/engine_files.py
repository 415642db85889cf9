"""Puts beside an exported model what engines need to read it: code for its config, tokens and images.

The model_type of the published files is known to no release of transformers, so vLLM and SGLang run code that
lies beside the weights (`--trust-remote-code`). Downloads of ours hold no code, and the published code is for
an older transformers; the files of `engine_code` are ours. Models that read only text are known to engines.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ernie_local.files import replaced
from ernie_local.media.processor_config import PROCESSOR_FILES, ImageProcessorConfig
from ernie_local.strict_json import read_json_object
from ernie_local.text.reasoning import OUTPUT_TAGS
from ernie_local.text.special_tokens import TOKENIZER_CONFIG_NAME, read_object_if_there
from ernie_local.text.template_file import read_file_template
from ernie_local.text.tokenizer import ErnieTokenizer

_CODE = Path(__file__).with_name("engine_code")
_CONFIG, _PROCESSING, _TOKENIZATION = (
    f"{stem}_ernie4_5_vl" for stem in ("configuration", "processing", "tokenization")
)
_TEMPLATE = "chat_template.jinja"
# What `ChatTemplate("text")` writes, for engines.
_TEXT_TEMPLATE = """\
{{- '<|begin_of_sentence|>' -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{- message.content ~ '\\n' -}}
{%- elif message.role == 'assistant' -%}
{{- 'Assistant: ' ~ message.content ~ '<|end_of_sentence|>' -}}
{%- else -%}
{{- 'User: ' ~ message.content ~ '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'Assistant: ' -}}
{%- endif -%}
"""


def write_engine_files(out: Path, processor: ImageProcessorConfig | None) -> None:
    """Write the code, and the keys of config.json and the other settings in `out` that lead to it.

    out: has config.json and the source's tokenizer and template files already. processor: that of the source;
    the limits of its images are written, whatever its files call them. None for a model that reads only text,
    which needs no code. A model without a chat template gets that of PT, or of lines, which is the one it is
    asked with here. ModelUnusable for a tokenizer that cannot be read.
    """
    tokenizer = ErnieTokenizer.from_directory(out)
    if processor is None:
        _write_text_files(out, tokenizer)
        return
    for name in (_CONFIG, _PROCESSING, _TOKENIZATION):
        shutil.copyfile(_CODE / f"{name}.py", out / f"{name}.py")
    if read_file_template(out, tokenizer) is None:
        shutil.copyfile(_CODE / _TEMPLATE, out / _TEMPLATE)
    newer, older = (out / name for name in PROCESSOR_FILES)
    newer.unlink(missing_ok=True)  # it would come first, and names a class that cuts images for other engines
    _write(out / "config.json", read_json_object(out / "config.json"), auto_map=_map("Config", _CONFIG))
    _write(older, read_object_if_there(older), **_image_settings(processor))
    _write(
        out / TOKENIZER_CONFIG_NAME,
        read_object_if_there(out / TOKENIZER_CONFIG_NAME),
        tokenizer_class="Ernie4_5_VLTokenizer",
        added_tokens_decoder=_tags(tokenizer),
        auto_map={"AutoTokenizer": [f"{_TOKENIZATION}.Ernie4_5_VLTokenizer", None]},
    )


def _write_text_files(out: Path, tokenizer: ErnieTokenizer) -> None:
    """What lacks of a model that reads only text; auto_map names published code, which is not copied."""
    if read_file_template(out, tokenizer) is None:
        (out / _TEMPLATE).write_text(_TEXT_TEMPLATE, encoding="utf-8")
    settings = read_object_if_there(out / TOKENIZER_CONFIG_NAME)
    _write(out / TOKENIZER_CONFIG_NAME, {key: value for key, value in settings.items() if key != "auto_map"})


def _image_settings(processor: ImageProcessorConfig) -> dict[str, object]:
    return {
        "processor_class": "Ernie4_5_VLProcessor",
        "image_processor_type": "Ernie4_5_VLImageProcessor",
        "auto_map": _map("Processor", _PROCESSING) | _map("ImageProcessor", _PROCESSING),
        "min_pixels": processor.min_pixels,
        "max_pixels": processor.max_pixels,
        "patch_size": processor.patch_size,
        "merge_size": processor.merge_size,
        "image_mean": list(processor.mean),
        "image_std": list(processor.std),
        "rescale_factor": processor.rescale_factor,
    }


def _map(role: str, module: str) -> dict[str, str]:
    return {f"Auto{role}": f"{module}.Ernie4_5_VL{role}"}


def _tags(tokenizer: ErnieTokenizer) -> dict[str, object]:
    """All tags by their ids. Those of thoughts and calls stay in decoded text: engines look for them."""
    named = {tokenizer.id_of(text): text for text in tokenizer.special_texts}
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {
        str(token_id): {"content": named[token_id], **flags, "special": named[token_id] not in OUTPUT_TAGS}
        for token_id in sorted(token_id for token_id in named if token_id is not None)
    }


def _write(path: Path, settings: dict[str, object], **keys: object) -> None:
    with replaced(path) as new:
        new.write_text(json.dumps(settings | keys, indent=2, ensure_ascii=False), encoding="utf-8")
