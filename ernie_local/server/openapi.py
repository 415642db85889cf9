"""Describes the endpoints as an OpenAPI document, from the classes that read the requests."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgspec

from ernie_local.sampling import SamplingOptions
from ernie_local.server.requests import AnyRequest, ChatRequest, CompletionRequest
from ernie_local.server.responses_request import ResponsesRequest

_REF = "#/components/schemas/{name}"
_REQUESTS: dict[str, tuple[str, type[AnyRequest]]] = {
    "/v1/chat/completions": ("Answer a conversation, whole or as server-sent events.", ChatRequest),
    "/v1/completions": ("Go on with a text, whole or as server-sent events.", CompletionRequest),
    "/v1/responses": ("The same in the newer form; nothing is kept.", ResponsesRequest),
}
_READING = {
    "/health": "Whether the model is loaded.",
    "/v1/models": "The model of this server.",
    "/v1/models/{model_id}": "The model, by its name.",
    "/metrics": "Counters in Prometheus' text format.",
    "/openapi.json": "This document.",
}


def openapi_document(version: str, *, has_key: bool) -> dict[str, Any]:
    """The document. has_key: whether a key is asked for."""
    kinds = [kind for _, kind in _REQUESTS.values()]
    _, components = msgspec.json.schema_components([*kinds, SamplingOptions], ref_template=_REF)
    sampling = components.pop("SamplingOptions")["properties"]
    for kind in kinds:
        components[kind.__name__]["properties"] |= {
            one.name: {"anyOf": [_without_default(sampling[one.name]), {"type": "null"}]}
            for one in fields(SamplingOptions)
        }
    components["Error"] = _ERROR
    paths: dict[str, Any] = {path: {"get": _reading(path, summary)} for path, summary in _READING.items()}
    for path, (summary, kind) in _REQUESTS.items():
        paths[path] = {"post": _asking(summary, kind.__name__)}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "ernie-local", "version": version},
        "paths": paths,
        "components": {"schemas": components},
    }
    if has_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}


def _without_default(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != "default"}


def _responses() -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}}
    return {
        "200": {"description": "The answer."},
        "default": {"description": "A refusal, with the reason.", "content": error},
    }


def _reading(path: str, summary: str) -> dict[str, Any]:
    described: dict[str, Any] = {"summary": summary, "responses": _responses()}
    if "{model_id}" in path:
        name = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}
        described["parameters"] = [name]
    return described


def _asking(summary: str, kind: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(name=kind)}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": _responses(),
    }
