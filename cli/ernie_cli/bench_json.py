"""The object that `ernie-local bench --json` prints: its shape, described in docs/bench-json.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_local.loading import LoadedModel
    from ernie_local.machine.model_speed import ModelRun
    from ernie_local.planner.profile import MachineProfile
    from ernie_local.replay.replay import Replayed
    from ernie_local.replay.simulate import Simulated
    from ernie_local.replay.trace import Trace

SCHEMA = "ernie-local.bench/1"


def empty_object() -> dict[str, object]:
    """The object of a run that has measured and replayed nothing."""
    return {
        "schema": SCHEMA,
        "ok": False,
        "machine": None,
        "model": None,
        "speed": None,
        "miss_rules": {},
        "saved": None,
        "trace": None,
        "prompt_tokens": None,
        "decoded_tokens": None,
        "expert_bytes": {"text": None, "vision": None},
        "budgets": [],
        "predictions": [],
        "error": None,
    }


def machine_fields(profile: MachineProfile) -> dict[str, object]:
    """The key that measuring the machine fills: the profile without its model."""
    machine = dataclasses.asdict(profile)
    del machine["model"], machine["miss_rules"]
    return {"machine": machine}


def model_fields(model: LoadedModel, measured: ModelRun) -> dict[str, object]:
    """The keys that measuring a model fills."""
    image = measured.image
    return {
        "model": model.directory.name,
        "speed": {
            "weight_bytes": model.weight_bytes,
            "expert_memory_bytes": measured.expert_memory_bytes,
            "hit_rate": measured.hit_rate,
            "prompt_tokens": measured.prompt_tokens,
            "first_token_seconds": dataclasses.asdict(measured.first_token_seconds),
            "prefill_tokens_per_second": dataclasses.asdict(measured.prefill),
            "decode_tokens_per_second": dataclasses.asdict(measured.decode),
            "predicted_decode_tokens_per_second": measured.predicted_decode,
            "disk_bytes_per_second": None if measured.disk is None else dataclasses.asdict(measured.disk),
            "memory_share": None
            if measured.memory_share is None
            else dataclasses.asdict(measured.memory_share),
            "image": None
            if image is None
            else {
                "tokens": image.tokens,
                "encode_seconds": dataclasses.asdict(image.encode_seconds),
                "prefill_tokens_per_second": dataclasses.asdict(image.prefill),
            },
        },
    }


def trace_fields(path: Path, trace: Trace) -> dict[str, object]:
    """The keys that the trace itself fills."""
    return {
        "trace": str(path),
        "model": trace.model,
        "prompt_tokens": trace.prompt_tokens,
        "decoded_tokens": trace.decoded_tokens,
        "expert_bytes": {bank: trace.bank_bytes(bank) for bank in ("text", "vision")},
    }


def budget_fields(trace: Trace, budget: int, results: Sequence[Replayed]) -> dict[str, object]:
    """One entry of `budgets`."""
    return {
        "bytes": budget,
        "share": budget / trace.bank_bytes("text"),
        "policies": [_policy(result) for result in results],
    }


def prediction_fields(
    gpu_id: str, gpu_bytes: int, ram_bytes: int, misses: str, found: Simulated
) -> dict[str, object]:
    """One entry of `predictions`."""
    stats, above = found.stats, found.stats.gpu
    assert above is not None
    tokens = stats.decoded_tokens
    seconds = {
        "predicted_seconds_per_token": found.decode_seconds,
        "predicted_link_wait_seconds_per_token": above.decode_wait_seconds,
        "predicted_disk_wait_seconds_per_token": stats.decode_wait_seconds,
    }
    return {
        "gpu": gpu_id,
        "gpu_bytes": gpu_bytes,
        "ram_bytes": ram_bytes,
        "misses": misses,
        "gpu_hit_rate": above.banks["text"].decode_hit_rate,
        "ram_hit_rate": stats.banks["text"].decode_hit_rate,
        **{name: value / tokens if tokens else None for name, value in seconds.items()},
    }


def _policy(result: Replayed) -> dict[str, object]:
    return {
        "policy": result.policy,
        "decay": result.decay,
        "bytes_per_token": result.bytes_per_token,
        "prompt_bytes": result.prompt_bytes,
        "banks": {
            bank: {
                "decode_hits": one.decode_hits,
                "decode_misses": one.decode_misses,
                "decode_hit_rate": one.decode_hit_rate,
                "prompt_hits": one.prompt_hits,
                "prompt_misses": one.prompt_misses,
            }
            for bank, one in result.stats.banks.items()
        },
    }
