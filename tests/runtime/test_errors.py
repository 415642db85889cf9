"""The shape of messages, exit codes, and sizes as people write them."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from ernie_local import errors
from ernie_local.errors import DoesNotFit, ErnieLocalError, ModelUnusable, UsageError, parameter
from ernie_local.sizes import GIB, MIB, format_bytes, parse_bytes, parse_count
from ernie_local.strict_json import show

EXIT_CODES = {
    "ErnieLocalError": 1,
    "UsageError": 2,
    "DoesNotFit": 3,
    "ModelUnusable": 4,
    "InputUnreadable": 5,
    "OutOfMemory": 6,
    "NoAnswer": 7,
    "Stopped": 75,
    "Interrupted": 130,
}


def test_every_error_has_the_documented_exit_code() -> None:
    classes = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, ErnieLocalError)
    }
    assert classes == EXIT_CODES


def test_a_message_has_three_lines() -> None:
    error = DoesNotFit("7 GiB needed, 4 GiB given", "the experts alone take 6 GiB", "use --ram 8GiB")
    assert str(error) == "7 GiB needed, 4 GiB given\nthe experts alone take 6 GiB\ntry: use --ram 8GiB"


def test_line_breaks_in_a_part_do_not_make_more_lines() -> None:
    error = ModelUnusable("file\nname", "because\r\n of this", "do\tthat")
    assert str(error).splitlines() == ["file name", "because of this", "try: do that"]


def test_an_error_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(ModelUnusable("a", "b", "c")))
    assert isinstance(again, ModelUnusable)
    assert (again.what, again.why, again.hint) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("6GiB", 6 * GIB),
        ("6gb", 6 * GIB),
        ("6G", 6 * GIB),
        ("512MiB", 512 * MIB),
        (" 1.5 GiB ", 3 * GIB // 2),
        ("64k", 65536),
        ("2TiB", 2048 * GIB),
        ("1048576", MIB),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_bytes_are_read(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(("text", "count"), [("32k", 32768), ("4096", 4096), ("1M", 1 << 20), ("1.5k", 1536)])
def test_counts_are_read(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text",
    ["", "auto", "GiB", "-1GiB", "1e3", "0", "0GiB", "6 giga", "nan", "٣GiB", "9" * 5000, "9999999999TiB"],
)
def test_what_is_no_size_is_refused_with_the_name_of_the_option(text: str) -> None:
    with pytest.raises(UsageError, match="--ram") as caught:
        parse_bytes(text, "--ram")
    assert len(str(caught.value).splitlines()) == 3
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["0", "0GiB", "0.0k", " 0 b"])
def test_nothing_is_a_size_only_where_it_means_something(text: str) -> None:
    assert parse_bytes(text, "reserve", least=0) == 0
    for parse in (parse_bytes, parse_count):
        if parse is parse_bytes or text == "0":
            with pytest.raises(UsageError, match=r"is 0, at least 1 is needed[\s\S]*try: omit ram"):
                parse(text, "ram")


def test_a_count_has_no_byte_units() -> None:
    with pytest.raises(UsageError, match=r"'32GiB' is not a size"):
        parse_count("32GiB", "--context")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (812, "812 bytes"), (2048, "2.0 KiB"), (12 * MIB, "12.0 MiB"), (6 * GIB, "6.00 GiB")],
)
def test_bytes_are_written(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_hostile_names_are_shown_short_and_harmless() -> None:
    assert show("\x1b[31mred\n") == r"'\x1b[31mred\n'"
    assert show("\ud800") == r"'\ud800'"
    assert len(show("x" * 10**6)) < 200
    assert len(show(10**5000)) < 50
    assert show([1] * 10**6) == "a list of 1000000 entries"
    assert (show(None), show(True), show(1.5)) == ("null", "true", "1.5")


def test_errors_sizes_and_config_import_no_torch() -> None:
    code = (
        "import sys, ernie_local.errors, ernie_local.sizes, ernie_local.config, ernie_local.checkpoint.names;"
        "import ernie_local.checkpoint.files, ernie_local.checkpoint.index, ernie_local.checkpoint.hub;"
        "bad = {'torch', 'numpy', 'transformers', 'huggingface_hub', 'safetensors'} & set(sys.modules);"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_arguments_are_spelled_as_python_writes_them() -> None:
    error = UsageError(
        f"{parameter('ram', '6GiB')} with {parameter('context_size', 4096)}",
        f"{parameter('ram')} is too small",
        parameter("dual", True),
    )
    assert str(error) == 'ram="6GiB" with context_size=4096\nram is too small\ntry: dual=True'
    copied = pickle.loads(pickle.dumps(error))
    assert copied.spelled() == error.spelled()
    assert "\x02" not in repr(error)
