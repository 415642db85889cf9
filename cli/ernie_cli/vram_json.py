"""The object that `ernie-local vram --json` prints: its shape, described in docs/vram-json.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_cli.vram_report import Report
    from ernie_local.planner.conversation import ChatPlan
    from ernie_local.planner.gpu import GpuPlan
    from ernie_local.planner.gpus import GpuModel
    from ernie_local.planner.model_size import ModelSize
    from ernie_local.planner.speed import Band, Speed
    from ernie_local.planner.terms import Amount, MemoryPlan

SCHEMA = "ernie-local.vram/1"


def empty_object() -> dict[str, object]:
    """The object of a run that has found nothing."""
    return {
        "schema": SCHEMA,
        "ok": False,
        "model": None,
        "conversation": None,
        "images": [],
        "cpu": None,
        "gpu": None,
        "gpus": [],
        "solved": None,
        "sessions": None,
        "make_it_fit": [],
        "error": None,
    }


def model_fields(model: ModelSize, conversation: ChatPlan) -> dict[str, object]:
    """The keys of the model, its conversation and its images."""
    size = conversation.kv_size(model.config.text)
    return {
        "model": {
            "name": model.name,
            "origin": model.origin,
            "weights": sum(part.weights for part in model.parts if not part.name.startswith("small")),
            "file_bytes": model.file_bytes,
            "parts": [
                {
                    "name": part.name,
                    "weights": part.weights,
                    "bytes": part.num_bytes,
                    "bits_per_weight": part.bits_per_weight,
                    "formats": dict(part.formats),
                }
                for part in model.parts
            ],
        },
        "conversation": {
            "ctx_size": conversation.context_size,
            "dtype": conversation.dtype,
            "kv_dtype": conversation.kv_dtype,
            "kv_bytes_per_token": size.bytes_per_token,
        },
        "images": [
            {
                "name": image.name,
                "original_size": list(image.original_size),
                "resized_size": list(image.resized_size),
                "patches": image.patches,
                "tokens": image.tokens,
                "kv_bytes": image.tokens * size.bytes_per_token,
                "encoder_bytes": image.encoder_bytes(model.config),
            }
            for image in conversation.images
        ],
    }


def report_fields(report: Report) -> dict[str, object]:
    """The keys of plans and speeds."""
    cpu, placement = report.cpu, report.cpu.placement
    fields: dict[str, object] = {
        "cpu": {
            "fits": cpu.fits,
            "experts": None
            if placement is None
            else ("resident" if placement.paged_bytes is None else "paged"),
            "chunk_tokens": None if placement is None else placement.chunk_tokens,
            "slots_bytes": cpu.slots_bytes,
            "resident_share": cpu.resident_share(report.model),
            "least_bytes": cpu.least_bytes,
            "resident_bytes": cpu.resident_bytes,
            "memory": _memory(cpu.memory),
            "speed": _speed(report.cpu_speed),
        },
        "solved": report.solved,
        "make_it_fit": list(report.flags),
    }
    if report.gpu is not None:
        assert report.gpu_speed is not None
        fields["gpu"] = {"name": report.target.gpu_name, **_gpu(report.gpu, report.gpu_speed)} | {
            "vram": _memory(report.gpu.vram),
            "ram": _memory(report.gpu.ram),
        }
    return fields


def gpu_list(gpus: Iterable[tuple[GpuModel, GpuPlan, Speed]]) -> list[dict[str, object]]:
    """One entry a GPU, without terms."""
    return [
        {
            "id": gpu.gpu_id,
            "name": gpu.name,
            "kind": gpu.kind,
            "compute_capability": gpu.compute_capability,
            "usable_bytes": gpu.usable_bytes,
            **_gpu(plan, speed),
        }
        for gpu, plan, speed in gpus
    ]


def _gpu(plan: GpuPlan, speed: Speed) -> dict[str, object]:
    return {
        "verdict": plan.tier,
        "slots_bytes": plan.slots_bytes,
        "resident_share": plan.resident_share,
        "host_bytes": plan.host_bytes,
        "least_bytes": plan.least_bytes,
        "speed": _speed(speed) if plan.fits else None,
    }


def _memory(memory: MemoryPlan) -> dict[str, object]:
    return {
        "limit_bytes": memory.limit_bytes,
        "peak_phase": memory.peak_phase,
        "peak": _amount(memory.peak),
        "terms": [
            {
                "name": term.name,
                "provenance": term.provenance,
                "phases": {phase: _amount(amount) for phase, amount in term.phases.items()},
            }
            for term in memory.terms
        ],
    }


def _amount(amount: Amount) -> dict[str, int]:
    return {"low": amount.low, "best": amount.best, "high": amount.high}


def _speed(speed: Speed) -> dict[str, object]:
    return {
        "decode_tok_s": _band(speed.decode),
        "prefill_tok_s": None if speed.prefill is None else _band(speed.prefill),
        "hit_rates": {
            "uniform": speed.hits.uniform,
            "traced": speed.hits.traced,
            "sticky": speed.hits.sticky,
        },
        "is_measured": speed.is_measured,
    }


def _band(band: Band) -> dict[str, float]:
    return {"low": band.low, "best": band.best, "high": band.high}
