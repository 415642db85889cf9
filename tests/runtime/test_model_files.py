"""Files that decide how a model reads: where one is missing, that is told, and wrong defaults are refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import ernie_local
from ernie_calibration.sample import Sample
from ernie_calibration.sequences import SampleEncoder
from ernie_local.checkpoint.files import HASHES_FILE
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable
from ernie_local.model_files import INPUT_FILES, MissingFileWarning, ModelFiles, find_model_files
from ernie_local.verify import verify
from tests.conftest import Oracle

PROCESSOR = "preprocessor_config.json"


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    """A copy of nano, to be damaged."""
    return Path(shutil.copytree(NANO_DIRECTORY, tmp_path / "nano"))


def remove(path: Path) -> None:
    path.unlink()


def say_nothing(path: Path) -> None:
    path.write_text("{}")


def drop_the_limits(path: Path) -> None:
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({key: raw[key] for key in raw if "pixels" not in key}))


def leave_another_file(path: Path) -> None:
    path.unlink()
    path.with_name("processor_config.json").write_text('{"processor_class": "Ernie4_5_VLMoeProcessor"}')


LACKS = [remove, say_nothing, drop_the_limits, leave_another_file]


@pytest.mark.parametrize("lack", LACKS)
def test_images_are_refused_where_the_default_is_wrong_and_text_is_not(
    lack: Callable[[Path], None], nano: Path
) -> None:
    lack(nano / PROCESSOR)
    with pytest.warns(MissingFileWarning, match=rf"no {PROCESSOR} .* cannot read images, .* 6177 .* 4096"):
        model = ernie_local.load(nano)
    assert list(ernie_local.Chat(model).ask("What is 7 plus 5?", max_tokens=3))
    image = Image.new("RGB", (1008, 700))
    for read in (model.patches, lambda images: ernie_local.Chat(model).ask("What is it?", images=images)):
        with pytest.raises(ModelUnusable, match=f"no {PROCESSOR}"):
            list(read([image]))
    with pytest.raises(ModelUnusable, match=f"no {PROCESSOR}"):
        SampleEncoder.of_model(nano).encode(Sample("one", (image,), ()))
    assert any(PROCESSOR in finding.error.what for finding in verify(nano).findings)


@pytest.mark.parametrize("lack", [remove, say_nothing])
def test_a_default_that_may_be_right_is_used_and_named(
    lack: Callable[[Path], None], make_oracle: Callable[..., Oracle], tmp_path: Path
) -> None:
    directory = make_oracle(1, {"max_position_embeddings": 131072}).save(tmp_path)
    lack(directory / PROCESSOR)
    with pytest.warns(MissingFileWarning, match=rf"no {PROCESSOR} .* up to 4842768 pixels"):
        model = ernie_local.load(directory, context_size=100)
    assert model.image_processor.max_pixels == 4842768
    result = verify(directory)
    assert any(PROCESSOR in note for note in result.notes)
    assert not any(PROCESSOR in finding.error.what for finding in result.findings)


def test_published_limits_are_wrong_for_other_patches(
    make_oracle: Callable[..., Oracle], tmp_path: Path
) -> None:
    directory = make_oracle(1, {"max_position_embeddings": 131072}, {"patch_size": 4}).save(tmp_path)
    remove(directory / PROCESSOR)
    with pytest.raises(ModelUnusable, match="28 x 28 pixels, this model has 8"):
        ModelFiles(directory, read_config(directory)).image_processor.check()


def test_a_whole_model_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", MissingFileWarning)
        ernie_local.load("nano")
    assert find_model_files("nano").missing_notes() == []


def test_a_model_without_any_chat_template_says_how_it_is_asked(nano: Path) -> None:
    remove(nano / "tokenizer_config.json")
    with pytest.warns(MissingFileWarning, match=r"no tokenizer_config\.json and no chat template"):
        ernie_local.load(nano)
    assert any("no chat template" in note for note in verify(nano).notes)
    (nano / "chat_template.jinja").write_text("{{ messages }}")
    assert find_model_files(nano).missing_notes() == []


@pytest.mark.parametrize("name", sorted({*INPUT_FILES, "statistics.json"}))
def test_a_file_that_the_hashes_list_is_not_done_without(name: str, nano: Path) -> None:
    files = {name: {"num_bytes": 7, "sha256": "0" * 64}}
    (nano / HASHES_FILE).write_text(json.dumps({"version": 1, "files": files}))
    (nano / name).unlink(missing_ok=True)
    if name in INPUT_FILES:
        with pytest.raises(ModelUnusable, match=rf"{name} is missing\n.*7 bytes"):
            ernie_local.load(nano)
    else:
        ernie_local.load(nano)


@pytest.mark.parametrize("name", [name for name in INPUT_FILES if name != "tokenizer.model"])
def test_a_link_that_leads_nowhere_is_not_taken_for_a_missing_file(name: str, nano: Path) -> None:
    """As in a cache of the hub whose blobs were deleted."""
    (nano / name).unlink(missing_ok=True)
    (nano / name).symlink_to("nowhere")
    files = find_model_files(nano)
    with pytest.raises(ModelUnusable, match=name):
        _ = files.image_processor, files.tokenizer, files.template_name, files.generation_config
    assert any(name in finding.error.what for finding in verify(nano).findings)
