"""`ernie-local vram`: lines, exit codes, the object of docs/json.md, and that it needs no torch."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
from PIL import Image

from ernie_cli.main import app
from ernie_cli.options import ImageOptions
from ernie_cli.quantize_options import ExpertBits
from ernie_cli.settings import profile_path
from ernie_cli.vram import report
from ernie_cli.vram.tables import band_text, bar_lines
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.loading.options import choose_dtype, choose_kv_dtype, dtype_name
from ernie_local.machine import hardware
from ernie_local.machine.hardware import find_hardware
from ernie_local.media.detail import LOW_DETAIL_TOKENS
from ernie_local.model_files import find_model_files
from ernie_local.planner.gpus import gpu_models
from ernie_local.planner.model_size import BITS_BEST_FIRST
from ernie_local.planner.profile import HardwareKey, MachineProfile, write_profile
from ernie_local.planner.rates import Rates
from ernie_local.planner.speed import Band
from ernie_local.planner.terms import Amount, MemoryPlan, Term
from ernie_local.sizes import GIB, MIB
from tests.cli.running import Command, run_python

Reckon = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No profile and no GPU of the machine that runs the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(hardware, "installed_gpus", lambda: None)


@pytest.fixture
def reckon(command: Command) -> Reckon:
    """`vram ... --json`: the object, whose error has the exit code."""

    def call(*arguments: str) -> dict[str, Any]:
        result = command("vram", *arguments, "--json")
        value = result.json()
        assert result.exit_code == (0 if value["error"] is None else value["error"]["exit_code"])
        assert value["ok"] == (result.exit_code == 0)
        return value

    return call


@pytest.fixture
def few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the table, whose lines take long together: one of each of some sizes."""
    some = {gpu.vram_gb: gpu for gpu in gpu_models() if gpu.vram_gb in (4, 8, 12, 24)}
    monkeypatch.setattr(report, "gpu_models", lambda: list(some.values()))


def text_of(command: Command, *arguments: str) -> str:
    return command("vram", *arguments).stdout


@pytest.mark.usefixtures("few_gpus")
def test_every_kind_of_run_is_valid_by_the_schema(reckon: Reckon) -> None:
    one = reckon("--bits", "4", "--gpu", "rtx3060-12gb", "--ram", "32GiB", "--image", "1240x1754")
    assert one["gpu"]["vram"]["terms"]
    assert reckon("--bits", "4", "--gpu", "all", "--ram", "64GiB")["gpus"]
    server = ("--sessions", "--gpus", "2", "--vram", "16GiB", "--bits", "4")
    assert reckon(*server)["sessions"]["ours"] is None
    assert reckon(*server, "--rule", "ours")["sessions"]["ours"]["terms"]


def test_terms_add_up_to_the_peak(reckon: Reckon) -> None:
    memory = reckon("--bits", "4", "--ram", "8GiB", "--ctx-size", "4k", "--image", "640x480")["cpu"]["memory"]
    phase = memory["peak_phase"]
    for key in ("low", "best", "high"):
        taken = [term["phases"][phase][key] for term in memory["terms"] if phase in term["phases"]]
        assert sum(taken) == memory["peak"][key]
    assert memory["limit_bytes"] == 8 * GIB


def test_the_size_of_files_is_what_quantize_plans(reckon: Reckon, command: Command, tmp_path: Path) -> None:
    """What it writes is held to that plan by its own audit, and to the planner in test_model.py."""
    dry_run = command("quantize", "nano", str(tmp_path / "out"), "--method", "rtn", "--dry-run", "--json")
    planned = dry_run.json()["plan"]["weight_bytes"]
    assert reckon("nano", "--bits", "4")["model"]["file_bytes"] == planned


def test_images_are_priced_by_size_and_by_file(reckon: Reckon, tmp_path: Path) -> None:
    page = tmp_path / "page.png"
    Image.new("L", (2480, 3508), 255).save(page)
    value = reckon("--bits", "4", "--ram", "32GiB", "--image", str(page), "--image", "2480x3508")
    by_file, by_size = value["images"]
    assert by_file.pop("name") == str(page)
    assert by_size.pop("name") == "2480x3508"
    assert by_file == by_size
    assert (by_size["tokens"], by_size["resized_size"]) == (6138, [1848, 2604])
    assert by_size["kv_bytes"] == 6138 * 57_344
    assert by_size["encoder_bytes"] == (5 * 4 * 6138 + 28 * 512) * 1280 * 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--gpu", "rtx3061"], 2, "rtx3060-12gb"),
        (["--ctx-size", "200k"], 3, "204800 is more than the 131072"),
        (["--image", "0x5"], 5, "0x5"),
        (["--image", "2480x3508", "--ctx-size", "4k"], 3, "images take 6140 tokens"),
        (["no-such-model"], 4, "no-such-model"),
        (["--ram", "8GiB", "--reserve", "1GiB"], 2, "--reserve"),
        (["--plot", "memory.pdf"], 2, "--plot"),
        (["--bits", "4", "--solve", "bits"], 2, "--solve bits"),
        (["--sessions"], 2, "without --vram"),
        (["--sessions", "--vram", "16GiB", "--bits", "mixed"], 2, "--bits mixed"),
        (["--gpu", "all", "--vram", "8GiB"], 2, "--vram with --gpu all"),
        (["--bits", "5"], 2, "5"),
        (["--disk-rate", "nan"], 2, "--disk-rate nan"),
        (["--gpu", "rtx4060", "--link-rate", "inf"], 2, "--link-rate"),
        (["--image-tokens", "0"], 2, "--image-tokens '0'"),
        (["--image-tokens", "3"], 2, "is 3, 4 to 16384 are possible"),
        (["--image-tokens", "1m"], 2, "is 1048576, 4 to 16384"),
        (["--detail", "best"], 2, "best"),
        (["--trim", "--image", "20x20"], 2, "--trim with --image 20x20"),
        (["--image", "4000x40", "--image-tokens", "50"], 5, "4000x40: 4000 x 40 pixels take 70 tokens"),
        (["--ram", "lots"], 2, "lots"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_clear_error(reckon: Reckon, arguments: list[str], code: int, words: str) -> None:
    error = reckon(*arguments)["error"]
    assert error["exit_code"] == code
    assert words in error["what"] + error["why"]
    assert error["hint"]


def test_a_server_without_a_published_rule_is_refused_with_the_model_told(reckon: Reckon) -> None:
    value = reckon("--sessions", "--rule", "ours", "--vram", "16GiB", "--bits", "2", "--ctx-size", "8k")
    assert (value["error"]["exit_code"], value["sessions"]) == (2, None)
    assert "--bits 2" in value["error"]["what"]
    assert value["model"]["name"] == "ernie-4.5-vl-28b-a3b"
    assert value["conversation"]["ctx_size"] == 8192


@pytest.mark.parametrize(("key", "value"), [("model_type", "qwen3_moe"), ("num_hot_experts", 8)])
def test_a_config_of_another_kind_is_refused(reckon: Reckon, tmp_path: Path, key: str, value: object) -> None:
    raw = json.loads((NANO_DIRECTORY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, key: value}))
    error = reckon(str(tmp_path))["error"]
    assert error["exit_code"] == 4
    assert key in error["what"]


def test_bits_are_those_that_quantize_makes() -> None:
    offered = {
        name: set(parameter.type.choices)
        for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
        for parameter in command.params
        if parameter.name == "bits"
    }
    assert offered["vram"] - {"16"} == offered["quantize"]  # 16 is the model as it is


def free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """So much is free before the command starts."""
    monkeypatch.setattr(report, "free_memory", lambda: num_bytes)
    monkeypatch.setattr(report, "process_memory", lambda: 0)


def test_a_small_container_can_start_nano(reckon: Reckon, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (512 * MIB, 700 * MIB):
        free(monkeypatch, size)
        assert reckon("nano")["cpu"]["memory"]["limit_bytes"] == size - size // 7
        assert reckon("nano", "--reserve", "0")["cpu"]["memory"]["limit_bytes"] == size


def test_with_little_free_memory_a_smaller_reserve_is_named(
    reckon: Reckon, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = reckon("nano", "--ram", "100MiB")["cpu"]["least_bytes"]
    free(monkeypatch, least + 20 * MIB)
    value = reckon("nano")
    assert "0 bytes" not in value["error"]["what"]
    (reserve,) = [flag for flag in value["make_it_fit"] if flag.startswith("--reserve")]
    assert reckon("nano", *reserve.split())["ok"]
    free(monkeypatch, least - 20 * MIB)
    flags = reckon("nano")["make_it_fit"]
    assert not any(flag.startswith(("--reserve", "--ram")) for flag in flags)
    assert flags[-1].endswith("of free memory")


@pytest.mark.parametrize(
    "size",
    [(300, 200), *(pytest.param(size, marks=pytest.mark.slow) for size in (None, (1240, 1754)))],
)
def test_the_floor_is_that_of_chat(size: tuple[int, int] | None, command: Command, tmp_path: Path) -> None:
    """To the MiB, in a process that does nothing else."""
    given = ["nano", "--ram", "100MiB"]
    if size is not None:
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / "page.png")
        given += ["--image", str(tmp_path / "page.png")]
    told = command("vram", *given).stderr
    code = f"from ernie_cli.main import run; run(['chat', '-p', 'hi', *{given}])"
    floors = [re.search(r"needs at least ([0-9.]+ MiB)", text) for text in (told, run_python(code).stderr)]
    assert floors[0] is not None
    assert floors[1] is not None
    assert floors[0][1] == floors[1][1]


def test_bits_that_are_advised_are_those_of_quantize() -> None:
    assert {*BITS_BEST_FIRST} == {"16", *get_args(ExpertBits)}


def test_number_types_are_those_that_load_chooses(reckon: Reckon, packed_nano: Path) -> None:
    """On a GPU, bfloat16; on the CPU, float32 for a model of this size."""
    for model in (NANO_DIRECTORY, packed_nano):
        files = find_model_files(model)
        for device, options in (("cpu", ()), ("cuda", ("--gpu", "rtx3090", "--ram", "64GiB"))):
            dtype = choose_dtype("auto", files, torch.device(device))
            kv_dtype = choose_kv_dtype("auto", dtype, is_packed=model is packed_nano)
            planned = reckon(str(model), *options)["conversation"]
            assert [planned["dtype"], planned["kv_dtype"]] == [dtype_name(dtype), dtype_name(kv_dtype)]
    plans = [
        reckon("nano", *options, *dtype)["gpu"]["vram"]["terms"] for dtype in ((), ("--dtype", "float32"))
    ]
    dense = [next(term for term in terms if term["name"] == "embedding") for terms in plans]
    assert dense[1]["phases"]["load"]["best"] == 2 * dense[0]["phases"]["load"]["best"]


def test_the_last_pytorch_for_an_old_gpu_is_named(reckon: Reckon, command: Command) -> None:
    arguments = ("--bits", "2", "--ram", "64GiB", "--ctx-size", "4k", "--gpu")
    for gpu, last in (("gtx1060-6gb", "2.14"), ("teslav100", "2.14"), ("rtx3090", None)):
        assert reckon(*arguments, gpu)["gpu"]["last_pytorch"] == last
        assert ("PyTorch 2.14 is the last version" in text_of(command, *arguments, gpu)) == (last is not None)
    of_all = text_of(command, *arguments, "all")
    assert "PyTorch 2.14 is the last version that is built for compute capability 6.1, 7.0\n" in of_all


def test_bounded_images_take_less(reckon: Reckon, command: Command) -> None:
    asked = ("--bits", "4", "--ram", "32GiB", "--ctx-size", "8k", "--image", "2480x3508")
    high, low, bounded, auto = (
        reckon(*asked, *more)["images"][0]
        for more in ((), ("--detail", "low"), ("--image-tokens", "800"), ("--detail", "auto"))
    )
    assert [image["tokens"] for image in (high, low, bounded)] == [6138, 247, 759]
    assert [image["max_tokens"] for image in (high, low, bounded)] == [None, 256, 800]
    assert 4000 < auto["tokens"] <= 4096
    assert bounded["encoder_bytes"] < high["encoder_bytes"] / 3
    assert "759 of at most 800 tokens" in text_of(command, *asked, "--image-tokens", "800")
    shown = text_of(command, *asked, "--detail", "auto")
    assert "  --detail auto: at most" in shown
    assert "half of the context of 8192" in shown


def test_the_help_names_the_bound_of_low() -> None:
    (detail,) = [one for one in dataclasses.fields(ImageOptions) if one.name == "detail"]
    assert f"low: at most {LOW_DETAIL_TOKENS} an image" in detail.metadata["typer"].help


def test_what_does_not_fit_is_3_with_options_that_make_it_fit(reckon: Reckon, command: Command) -> None:
    value = reckon("--bits", "4", "--ram", "3GiB")
    assert value["error"]["code"] == "does_not_fit"
    assert value["cpu"]["fits"] is False
    assert value["make_it_fit"]
    for flag in value["make_it_fit"]:
        option, given = flag.split()
        arguments = {"--bits": "4", "--ram": "3GiB"} | {option: given}
        assert reckon(*(word for pair in arguments.items() for word in pair))["ok"], flag
    out = text_of(command, "--bits", "4", "--ram", "3GiB")
    assert "does not fit" in out
    assert f"make it fit: {value['make_it_fit'][0]}" in out


def test_a_gpu_that_needs_ram_says_how_much(reckon: Reckon) -> None:
    arguments = ("--bits", "4", "--gpu", "rtx4060", "--ctx-size", "8k")
    value = reckon(*arguments, "--ram", "1GiB")
    assert value["gpu"]["verdict"] == "needs ram"
    assert value["error"]["exit_code"] == 3
    (ram,) = [flag for flag in value["make_it_fit"] if flag.startswith("--ram")]
    assert reckon(*arguments, *ram.split())["gpu"]["verdict"] == "paged from disk"


def test_ram_that_lacks_experts_beside_a_gpu_is_a_slower_plan(reckon: Reckon, command: Command) -> None:
    arguments = ("--bits", "4", "--gpu", "rtx4060", "--ctx-size", "8k", "--ram")
    small, large = (reckon(*arguments, ram)["gpu"] for ram in ("8GiB", "24GiB"))
    assert (small["verdict"], large["verdict"]) == ("paged from disk", "paged")
    assert small["memory_share"] < large["memory_share"] == 1
    speeds = [plan["speed"]["decode_tok_s"]["best"] for plan in (small, large)]
    assert speeds[0] < speeds[1]
    assert small["sensitivity"].keys() == {"link", "cpu", "disk", "hits"}
    rules = large["speed"]["by_miss_rule"]
    assert max(rules.values()) == speeds[1]
    told = text_of(command, *arguments, "8GiB")
    assert f"{small['memory_share']:.0%} of them, the rest on disk" in told
    assert "with 30 % less or more of a rate: link" in told
    assert "least with paged experts: " in told


@pytest.mark.parametrize(
    ("option", "gpu"),
    [("--cpu-rate", True), ("--link-rate", True), ("--disk-rate", True), ("--cpu-rate", False)],
)
@pytest.mark.usefixtures("few_gpus")
def test_given_rates_replace_the_assumed_ones(reckon: Reckon, option: str, gpu: bool) -> None:
    where = ("--gpu", "rtx4060", "--ram", "7GiB") if gpu else ("--ram", "32GiB")
    slow, fast = (
        reckon("--bits", "4", "--ctx-size", "4k", *where, option, rate)["gpu" if gpu else "cpu"]["speed"]
        for rate in ("1", "30")
    )
    assert slow["decode_tok_s"]["best"] < fast["decode_tok_s"]["best"]
    assert reckon("--bits", "4", "--gpu", "all", option, "1")["gpus"]


def test_every_gpu_is_a_line(command: Command) -> None:
    lines = text_of(command, "--bits", "4", "--gpu", "all", "--ram", "32GiB", "--ctx-size", "8k").splitlines()
    assert re.search(r"^rtx3060-12gb .*GiB paged .*% .*k .*[0-9]-[0-9]", "\n".join(lines), re.MULTILINE)
    assert re.search(r"^rtx3090 .* resident  ", "\n".join(lines), re.MULTILINE)
    assert "predictions" in lines[-1]
    names = {one.gpu_id for one in gpu_models()}
    assert all(len(line) < 80 for line in lines if line.partition(" ")[0] in names)


@pytest.mark.usefixtures("few_gpus")
def test_what_is_in_the_way_of_a_gpu_is_in_its_line(command: Command) -> None:
    assert "needs RAM" in text_of(command, "--bits", "16", "--gpu", "all", "--ram", "1GiB")
    assert "too small" in text_of(command, "--dtype", "float32", "--gpu", "all", "--ram", "16GiB")


@pytest.mark.parametrize("memory", [["--ram", "8GiB"], ["--gpu", "rtx4060", "--ram", "64GiB"]], ids=" ".join)
def test_solve_finds_the_longest_context(reckon: Reckon, memory: list[str]) -> None:
    value = reckon("--bits", "4", *memory, "--solve", "ctx")
    longest = value["solved"]["ctx_size"]
    assert value["conversation"]["ctx_size"] == longest
    assert longest % 1024 == 0
    assert reckon("--bits", "4", *memory, "--ctx-size", str(longest))["ok"]
    if longest < 131072:
        longer = reckon("--bits", "4", *memory, "--ctx-size", str(longest + 1024))
        plan = longer["gpu"]["vram"] if longer["gpu"] else longer["cpu"]["memory"]
        assert not longer["ok"] or plan["peak"]["best"] > plan["limit_bytes"]


@pytest.mark.parametrize(
    ("ram", "bits"), [("80GiB", "16"), ("19GiB", "4"), ("10GiB", "mixed"), ("6GiB", "w2t")]
)
def test_solve_finds_the_most_bits_with_all_text_experts_in_memory(
    reckon: Reckon, ram: str, bits: str
) -> None:
    value = reckon("--ram", ram, "--ctx-size", "4k", "--solve", "bits")
    assert value["solved"] == {"bits": bits}
    assert (value["cpu"]["resident_share"] == 1) == (ram != "6GiB")


def test_solve_tells_how_many_experts_stay(reckon: Reckon) -> None:
    value = reckon("--bits", "4", "--ram", "8GiB", "--ctx-size", "4k", "--solve", "experts")
    assert value["solved"] == {"experts_per_layer": int(value["cpu"]["resident_share"] * 64), "of": 64}


@pytest.mark.parametrize("option", ["--ram", "--vram"])
def test_solve_finds_the_largest_page(reckon: Reckon, command: Command, option: str) -> None:
    """In little more than a chat without images needs."""
    asked = ["--bits", "4", "--ctx-size", "8k"]
    none = reckon(*asked, "--ram", "2GiB", "--vram", "1GiB")
    where, more = ("gpu", 300) if option == "--vram" else ("cpu", 1200)
    asked += [option, f"{none[where]['least_bytes'] + more * MIB}"]
    value = reckon(*asked, "--solve", "image")
    solved, in_the_way = value["solved"], value["in_the_way"]
    (image,) = value["images"]
    assert image["original_size"] == [solved["width"], solved["height"]]
    assert image["tokens"] == solved["image_tokens"]
    assert solved["width"] == round(solved["a4_dpi"] * 210 / 25.4)
    size = f"{solved['width']}x{solved['height']}"
    assert reckon(*asked, "--image", size)["ok"]
    assert in_the_way["needed"] > in_the_way["available"]
    told = text_of(command, *asked, "--solve", "image")
    assert f"largest page of A4: {solved['a4_dpi']} dpi ({solved['width']} x {solved['height']}, " in told
    assert f"in the way of A4 at {solved['a4_dpi'] + 1} dpi, " in told


def test_where_nothing_fits_the_number_in_the_way_is_told(reckon: Reckon, command: Command) -> None:
    asked = ("--bits", "4", "--vram", "2GiB", "--ram", "8GiB", "--ctx-size", "4k")
    for wanted, key in (("ctx", "ctx_size"), ("image", "a4_dpi")):
        value = reckon(*asked, "--solve", wanted)
        assert value["error"]["exit_code"] == 3
        assert value["solved"] == {key: None}
        assert (value["in_the_way"]["of"], value["in_the_way"]["available"]) == ("vram", 2 * GIB)
        told = text_of(command, *asked, "--solve", wanted)
        assert re.search(r"^in the way of .* GiB on the GPU, 2\.00 GiB there$", told, re.MULTILINE)
    assert reckon(*asked[2:], "--bits", "4")["in_the_way"] is None


def test_pages_and_contexts_of_the_table_are_those_that_are_solved(reckon: Reckon) -> None:
    asked = ("--bits", "2", "--ctx-size", "8k", "--ram", "14GiB")
    rows = {row["id"]: row for row in reckon(*asked, "--gpu", "all")["gpus"]}
    for gpu in ("rtx2060", "rtx4060", "rtx3090"):
        page, context = (
            reckon(*asked, "--gpu", gpu, "--solve", wanted)["solved"] for wanted in ("image", "ctx")
        )
        assert rows[gpu]["longest_ctx_size"] == context["ctx_size"]
        assert rows[gpu]["largest_a4_dpi"] == page["a4_dpi"]
        assert rows[gpu]["largest_a4_tokens"] == page["image_tokens"]


def test_what_an_int8_cache_loses_is_told_beside_it(command: Command) -> None:
    asked = ("--bits", "4", "--ram", "8GiB", "--ctx-size", "4k")
    told = text_of(command, *asked, "--kv-dtype", "int8")
    assert "int8 KV cache: on nano its KL is 0.00007 (at most 0.00012), 176 of 200 answers are exact" in told
    assert "int8" not in text_of(command, *asked)


def test_sessions_print_three_decimals(reckon: Reckon, command: Command) -> None:
    arguments = ["--sessions", "--gpus", "2", "--vram", "16GiB", "--bits", "4", "--rule", "rental"]
    assert reckon(*arguments)["sessions"]["max_concurrency"] == 1.471
    assert text_of(command, *arguments) == "1.471 sessions of 131,072 tokens at once\n"
    assert "ours: " in text_of(command, *arguments[:-1], "ours")


def test_the_machine_s_own_gpu_is_asked_for(reckon: Reckon, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = hardware.GpuStatus(
        "NVIDIA GeForce RTX 3090", None, None, 24576 * MIB, 20000 * MIB, None, None, None, None, ()
    )
    monkeypatch.setattr(hardware, "installed_gpus", lambda: (gpu,))
    value = reckon("--bits", "4", "--ram", "32GiB", "--ctx-size", "4k")
    assert value["gpu"]["name"] == "NVIDIA GeForce RTX 3090"
    assert value["gpu"]["vram"]["limit_bytes"] == 20000 * MIB
    error = reckon("--bits", "4", "--parallel", "8")["error"]
    assert error["what"] == "--parallel 8 on a machine with a GPU"


def test_measured_rates_are_used_on_the_hardware_that_they_are_of(
    reckon: Reckon,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    arguments = ("--bits", "4", "--ram", "32GiB", "--ctx-size", "4k")
    assumed = reckon(*arguments)["cpu"]["speed"]
    rates = Rates(1e9, 50e9, 2e12, 0.001, 0.0001)
    profile = MachineProfile(find_hardware(), "2026-11-27", rates, rates, {})
    write_profile(profile_path(), profile)
    measured, start = (reckon(*arguments)["cpu"][key] for key in ("speed", "start"))
    assert 0 < start["warm"] < start["cold"] < start["all_read"]
    assert "begins to compute after" in text_of(command, *arguments)
    assert (assumed["is_measured"], measured["is_measured"]) == (False, True)
    assert measured["decode_tok_s"]["best"] > assumed["decode_tok_s"]["best"]
    assert profile.summary in text_of(command, *arguments)
    other = dataclasses.replace(profile, hardware=HardwareKey("another", 1, 1, None))
    write_profile(profile_path(), other)
    assert reckon(*arguments)["cpu"]["speed"] == assumed
    assert reckon(*arguments)["cpu"]["start"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ram", "8GiB", "--image", "640x480"],
        ["--gpu", "rtx4060", "--ram", "64GiB"],
        ["--gpu", "all", "--ram", "8GiB"],
        ["--ram", "8GiB", "--solve", "ctx"],
    ],
    ids=" ".join,
)
def test_tables_fit_the_width_there_is(
    command: Command, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[report.GpuRow] = []
    solve = report.report_on_gpus

    def solve_once(*given: Any) -> list[report.GpuRow]:
        """All GPUs take long, and every width has the same."""
        rows.extend(() if rows else solve(*given))
        return rows

    monkeypatch.setattr(report, "report_on_gpus", solve_once)
    for columns in (80, 60, 40, 24):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = text_of(command, "--bits", "4", *arguments).splitlines()
        words = ("GiB", "MiB", "KiB")
        tables = [line for line in lines if ":" not in line and any(word in line for word in words)]
        assert len(tables) > 5
        assert max(map(len, tables)) <= columns


def test_rates_read_as_numbers() -> None:
    assert band_text(Band(0.0004, 1234.5, 98765.4)) == "1,234 (0.0004 to 98,765)"
    assert band_text(Band(0.5, 12.345, 99.99)) == "12.3 (0.5 to 100)"


def test_solving_for_the_context_shows_what_each_costs(reckon: Reckon, command: Command) -> None:
    value = reckon("--bits", "4", "--ram", "8GiB", "--solve", "ctx")
    contexts = value["contexts"]
    sizes = [one["ctx_size"] for one in contexts]
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (4096, value["solved"]["ctx_size"])
    shares = [one["resident_share"] for one in contexts]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]
    out = text_of(command, "--bits", "4", "--ram", "8GiB", "--solve", "ctx")
    assert f"{shares[0]:.0%}" in out
    assert reckon("--bits", "4", "--ram", "8GiB")["contexts"] == []


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_plots_show_every_term(tmp_path: Path, command: Command, suffix: str) -> None:
    path = tmp_path / f"memory{suffix}"
    result = command("vram", "--bits", "4", "--ram", "8GiB", "--ctx-size", "4k", "--plot", str(path))
    assert result.exit_code == 0
    assert str(path) in result.stderr
    if suffix == ".png":
        with Image.open(path) as image:
            assert image.size[0] > 600
    else:
        drawn = path.read_text()
        for words in ("slots of paged experts", "KV cache", "limit", "prefill"):
            assert words in drawn, words


def test_bars_have_the_limit_as_a_mark() -> None:
    plan = MemoryPlan("ram", (Term("all", "exact", {"load": Amount.exactly(GIB)}),), 2 * GIB)
    lines = list(bar_lines(plan))
    assert lines[0].count("█") == 30
    assert [line.index("│") for line in lines[:4]] == [68] * 4
    assert lines[-1].endswith("│ 2.00 GiB")
    assert max(map(len, lines)) <= 80
    assert max(map(len, bar_lines(plan, 40))) <= 40
    over = list(bar_lines(MemoryPlan("ram", plan.terms, GIB // 2)))
    assert over[0].index("│") == 38


def test_bars_are_drawn_on_a_terminal_only(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "█" not in text_of(command, "nano", "--ram", "2GiB")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "█" in text_of(command, "nano", "--ram", "2GiB")


@pytest.mark.parametrize("arguments", [["--gpu", "all"], ["--ram", "8GiB", "--image", "640x480"], ["nano"]])
def test_it_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from ernie_cli.main import run\n"
        f"code = run(['vram', '--bits', '4', *{arguments!r}])\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'rich', 'PIL', 'transformers', 'huggingface_hub'}\n"
        "print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = run_python(code)
    assert done.stderr.splitlines()[-1] == "0 []"


def test_flags_are_not_offered_for_a_quantized_model(reckon: Reckon, tmp_path: Path) -> None:
    raw = json.loads((NANO_DIRECTORY / "config.json").read_text())
    tables = format_tables(read_config(NANO_DIRECTORY), FormatChoice())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "quantization_config": tables.to_json()}))
    value = reckon(str(tmp_path), "--ram", "100MiB")
    assert [flag.split()[0] for flag in value["make_it_fit"]] == ["--ram"]
    assert reckon(str(tmp_path), "--bits", "2")["error"]["exit_code"] == 2


def test_a_peak_and_the_verdict_agree_for_plain_weights(reckon: Reckon) -> None:
    """Programs that torch compiles for bfloat16 products are kept room for."""
    value = reckon("--ram", "8GiB")
    memory = value["cpu"]["memory"]
    assert value["ok"]
    assert memory["peak"]["best"] <= memory["limit_bytes"]
    assert reckon("--ram", "8GiB", "--solve", "ctx")["solved"]["ctx_size"] >= 32768


def test_given_rates_are_said_and_need_what_they_are_for(command: Command) -> None:
    assert "by the given cpu and disk rate" in text_of(
        command, "--bits", "4", "--ram", "8GiB", "--cpu-rate", "9", "--disk-rate", "2"
    )
    failed = command("vram", "--bits", "4", "--ram", "8GiB", "--link-rate", "10")
    assert failed.exit_code == 2
    assert "--link-rate 10 without a GPU" in failed.stderr


def test_what_is_left_to_others_on_a_gpu_is_said(command: Command) -> None:
    told = text_of(command, "--bits", "4", "--gpu", "V100-SXM2-32GB", "--ram", "32GiB")
    assert "of 31.73 GiB, of which 512.0 MiB are left to others" in " ".join(told.split())
