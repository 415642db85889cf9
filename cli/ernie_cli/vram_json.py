"""The object that `ernie-local vram --json` prints: its shape, described in docs/vram-json.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_cli.vram_report import Report
    from ernie_local.planner.card_memory import CardPlan
    from ernie_local.planner.cards import Card
    from ernie_local.planner.conversation import Conversation
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
        "pictures": [],
        "cpu": None,
        "card": None,
        "cards": [],
        "solved": None,
        "sessions": None,
        "make_it_fit": [],
        "error": None,
    }


def model_fields(model: ModelSize, conversation: Conversation) -> dict[str, object]:
    """The keys of the model, its conversation and its pictures."""
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
        "pictures": [
            {
                "name": picture.name,
                "original_size": list(picture.original_size),
                "resized_size": list(picture.resized_size),
                "patches": picture.patches,
                "tokens": picture.tokens,
                "kv_bytes": picture.tokens * size.bytes_per_token,
                "encoder_bytes": picture.encoder_bytes(model.config),
            }
            for picture in conversation.pictures
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
    if report.card is not None:
        assert report.card_speed is not None
        fields["card"] = {"name": report.target.card_name, **_card(report.card, report.card_speed)} | {
            "vram": _memory(report.card.vram),
            "ram": _memory(report.card.ram),
        }
    return fields


def card_list(cards: Iterable[tuple[Card, CardPlan, Speed]]) -> list[dict[str, object]]:
    """One entry a card, without terms."""
    return [
        {
            "id": card.card_id,
            "name": card.name,
            "kind": card.kind,
            "compute_capability": card.compute_capability,
            "usable_bytes": card.usable_bytes,
            **_card(plan, speed),
        }
        for card, plan, speed in cards
    ]


def _card(plan: CardPlan, speed: Speed) -> dict[str, object]:
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
