"""`ernie-local vram --sessions`: full-context sessions of a server, by the published rule and by ours."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ernie_cli.json_object import fill_result
from ernie_cli.vram.options import VramOptions
from ernie_cli.vram.result import OurSessionsObject, SessionsObject, SessionTermObject
from ernie_local.sizes import GIB, format_bytes, parse_bytes

if TYPE_CHECKING:
    from ernie_cli.console import Console
    from ernie_local.planner.conversation import ChatPlan
    from ernie_local.planner.model_size import ModelSize
    from ernie_local.planner.rental import RentedServer

_PUBLISHED_BITS = "16"  # of the model as it is published


def published_sessions_object(options: VramOptions) -> SessionsObject:
    """What the page would say; UsageError for bits that it has no rule for."""
    from ernie_local.planner.rental import SESSION_TOKENS, published_sessions

    server, bits = _server(options), options.bits or _PUBLISHED_BITS
    return SessionsObject(
        rule=options.rule,
        gpus=options.gpus,
        vram_gib=server.gib_a_gpu,
        bits=bits,
        tokens=SESSION_TOKENS,
        max_concurrency=published_sessions(server, bits),
    )


def our_sessions_object(model: ModelSize, conversation: ChatPlan, options: VramOptions) -> OurSessionsObject:
    """Our figure, with what the page leaves out, term by term."""
    from ernie_local.planner.gpu import session_terms
    from ernie_local.planner.rental import SESSION_TOKENS, our_sessions

    session = dataclasses.replace(conversation, context_size=SESSION_TOKENS)
    session_bytes = session.kv_size(model.config.text).num_bytes
    terms = session_terms(model, session, options.gpus)
    counted = our_sessions(_server(options), terms, session_bytes)
    return OurSessionsObject(
        counted.low / 1000,
        counted.best / 1000,
        counted.high / 1000,
        session_bytes,
        [
            fill_result(SessionTermObject, term.most, name=term.name, provenance=term.provenance)
            for term in terms
        ],
    )


def tell_sessions(sessions: SessionsObject, console: Console) -> None:
    """Both numbers; with ours the terms."""
    ours = sessions.ours
    if ours is None:
        console.answer(f"{sessions.max_concurrency:.3f} sessions of {sessions.tokens:,} tokens at once\n")
        return
    console.answer(
        f"published rule: {sessions.max_concurrency:.3f} sessions of {sessions.tokens:,} tokens\n"
        f"ours: {ours.best:.3f} ({ours.low:.3f} to {ours.high:.3f}), "
        f"{format_bytes(ours.session_bytes)} per session, besides\n"
    )
    for term in ours.terms:
        console.answer(f"  {term.name:<26}{format_bytes(term.best):>11}  {term.provenance}\n")


def _server(options: VramOptions) -> RentedServer:
    from ernie_local.planner.rental import RentedServer

    assert options.vram is not None, "check_options refuses this"
    return RentedServer(options.gpus, parse_bytes(options.vram, "vram") / GIB)
