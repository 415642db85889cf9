"""`ernie-local export` as a user runs it: what is written and told, and which options are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.errors import Stopped
from ernie_quant.export import run
from ernie_quant.export.job import ExportJob
from ernie_quant.export.run import ExportPlan, plan_export
from tests.cli.running import Command

VLLM = ("--for", "vllm")


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[ExportPlan]:
    """All plans that a test makes."""
    made: list[ExportPlan] = []

    def plan(job: ExportJob) -> ExportPlan:
        made.append(plan_export(job))
        return made[-1]

    monkeypatch.setattr(run, "plan_export", plan)
    return made


def test_an_export_tells_what_it_wrote(command: Command, tmp_path: Path, plans: list[ExportPlan]) -> None:
    out = tmp_path / "out"
    result = command(
        "export", "nano", str(out), *VLLM, "--format", "bf16", "--tensor-parallel", "2", "--json"
    )
    said = result.json()
    assert (result.exit_code, said["ok"], said["out"]) == (0, True, str(out))
    assert said["weight_bytes"] == sum(path.stat().st_size for path in out.glob("*.safetensors"))
    kinds = ("exact", "rounded", "unpacked", "merged", "compressed")
    assert sum(said[kind] for kind in kinds) == said["tensors"] == said["exact"]
    assert len(plans) == 1
    assert "vllm serve" in (out / "README.md").read_text()
    assert json.loads((out / "config.json").read_text())["model_type"] == "ernie4_5_moe_vl"
    assert {path.name for path in tmp_path.iterdir()} == {"out"}

    again = command("export", "nano", str(out), *VLLM, "--format", "bf16", "--json")
    assert again.exit_code == 2
    assert str(out) in again.json()["error"]["what"]


def test_a_dry_run_tells_the_size_and_writes_nothing(command: Command, tmp_path: Path) -> None:
    result = command("export", "nano", str(tmp_path / "out"), "--dry-run", "--json")
    said = result.json()
    assert (result.exit_code, said["ok"], said["out"]) == (0, True, None)
    weights = sum(path.stat().st_size for path in NANO_DIRECTORY.glob("*.safetensors"))
    assert weights < said["disk_bytes"] < 2 * weights
    assert not list(tmp_path.iterdir())


def test_the_plan_is_made_once_where_samples_are_drawn(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plans: list[ExportPlan]
) -> None:
    sample = EncodedSample("0", tuple(range(1000)), (), answers=())
    monkeypatch.setattr("ernie_cli.export.draw_sequences", lambda *_: [sample])

    def write(job: ExportJob, plan: ExportPlan | None = None) -> None:
        (run.plan_export(job) if plan is None else plan).disk_bytes(job)
        raise Stopped("writing", "a test", "none")

    monkeypatch.setattr(run, "write_export", write)
    result = command("export", "nano", str(tmp_path / "out"), *VLLM, "--group", "64", "--json")
    assert result.exit_code == 75
    (plan,) = plans
    assert result.json()["disk_bytes"] == plan.num_bytes + 6 * 4 * 1000 * 192


@pytest.mark.parametrize(
    ("options", "what", "hint"),
    [
        (("--format", "int4"), "--format with --for hf", "add --for vllm, or remove --format"),
        (("--method", "rtn"), "--method with --for hf", "add --for vllm --format int4"),
        (("--samples", "5"), "--samples with --for hf", "add --for vllm --format int4"),
        (
            (*VLLM, "--format", "bf16", "--dense", "int8"),
            "--dense with --format bf16",
            "use --format int4, or remove --dense",
        ),
        ((*VLLM, "--format", "bf16", "--samples", "5"), "--samples with --format bf16", "remove --samples"),
        ((*VLLM, "--format", "int8", "--calib", "."), "--calib with --format int8", "remove --calib"),
        ((*VLLM, "--format", "int8", "--method", "gptq"), "--method gptq with --format int8", "--method"),
        ((*VLLM, "--method", "clip", "--seed", "3"), "--seed with --method clip", "remove --seed"),
        ((*VLLM, "--format", "int8", "--asymmetric"), "asymmetric codes in int8", "remove --asymmetric"),
        ((*VLLM, "--group", "96"), "--group 96: groups have 128 or 64 columns", "--group 128"),
        ((*VLLM, "--group", "128"), "192 columns, which groups of 128", "--group 64"),
        ((*VLLM, "--group", "64", "--samples", "0"), "--samples 0 without --calib", "add --calib DIR"),
        (
            (*VLLM, "--format", "bf16", "--tensor-parallel", "8"),
            "4 attention heads do not divide by 8",
            "use 1 or 2 or 4",
        ),
        (
            (*VLLM, "--group", "64", "--tensor-parallel", "8"),
            "4 attention heads do not divide by 8",
            "--format bf16 with 1 or 2 or 4",
        ),
        (("--resume", "required"), "holds no work to resume", "omit"),
    ],
)
def test_what_cannot_be_is_refused(
    options: tuple[str, ...], what: str, hint: str, command: Command, tmp_path: Path
) -> None:
    result = command("export", "nano", str(tmp_path / "out"), *options, "--json")
    error = result.json()["error"]
    assert (result.exit_code, result.json()["ok"]) == (2, False)
    assert what in error["what"]
    assert hint in error["hint"]
    assert not list(tmp_path.iterdir())
