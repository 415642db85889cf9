"""`ernie-local vram --sessions`: full-context sessions of a server, by the published rule and by ours."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ernie_cli.vram_options import VramOptions
from ernie_local.sizes import GIB, format_bytes, parse_bytes

_PUBLISHED_BITS = "16"  # of the model as it is published

if TYPE_CHECKING:
    from ernie_cli.console import Console
    from ernie_local.planner.conversation import ChatPlan
    from ernie_local.planner.model_size import ModelSize
    from ernie_local.planner.rental import RentedServer
    from ernie_local.planner.terms import Term


def published_fields(options: VramOptions) -> dict[str, object]:
    """What the page would say; UsageError for bits that it has no rule for."""
    from ernie_local.planner.rental import SESSION_TOKENS, published_sessions

    return {
        "rule": "rental",
        "gpus": options.gpus,
        "vram_gib": _server(options).gib_a_gpu,
        "bits": options.bits or _PUBLISHED_BITS,
        "tokens": SESSION_TOKENS,
        "max_concurrency": published_sessions(_server(options), options.bits or _PUBLISHED_BITS),
        "ours": None,
    }


def tell_sessions(
    model: ModelSize,
    conversation: ChatPlan,
    options: VramOptions,
    console: Console,
    json_object: dict[str, object] | None,
) -> None:
    """Both numbers, and what the page leaves out, term by term."""
    from ernie_local.planner.gpu import session_terms
    from ernie_local.planner.rental import SESSION_TOKENS, our_sessions

    fields = published_fields(options)
    session = dataclasses.replace(conversation, context_size=SESSION_TOKENS)
    session_bytes = session.kv_size(model.config.text).num_bytes
    terms = session_terms(model, session, options.gpus)
    counted = our_sessions(_server(options), terms, session_bytes)
    fields["rule"] = "ours"
    fields["ours"] = {
        "low": counted.low / 1000,
        "best": counted.best / 1000,
        "high": counted.high / 1000,
        "session_bytes": session_bytes,
        "terms": [_fields(term) for term in terms],
    }
    if json_object is not None:
        json_object["sessions"] = fields
        return
    console.answer(f"published rule: {fields['max_concurrency']:.3f} sessions of {SESSION_TOKENS:,} tokens\n")
    best, low, high = counted.best / 1000, counted.low / 1000, counted.high / 1000
    console.answer(
        f"ours: {best:.3f} ({low:.3f} to {high:.3f}), {format_bytes(session_bytes)} a session, beside\n"
    )
    for term in terms:
        console.answer(f"  {term.name:<26}{format_bytes(term.most.best):>11}  {term.provenance}\n")


def _fields(term: Term) -> dict[str, object]:
    most = term.most
    return {
        "name": term.name,
        "provenance": term.provenance,
        "low": most.low,
        "best": most.best,
        "high": most.high,
    }


def _server(options: VramOptions) -> RentedServer:
    from ernie_local.planner.rental import RentedServer

    assert options.vram is not None, "check_options saw to it"
    return RentedServer(options.gpus, parse_bytes(options.vram, "--vram") / GIB)
