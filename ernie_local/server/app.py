"""Joins the endpoints to an ASGI application, which may listen before the model is loaded."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ernie_local.sampling import SamplingOptions, model_sampling
from ernie_local.server.attachments import AttachmentLimits, check_attached_size
from ernie_local.server.chat_completions import ChatCompletion, question_of
from ernie_local.server.completions import Completion, completion_question
from ernie_local.server.events import data_line
from ernie_local.server.failures import ApiError, api_error, client_gone
from ernie_local.server.guard import Endpoint, Guard, GuardSettings, error_response, receive_body
from ernie_local.server.memory import ServedMemory
from ernie_local.server.metrics import CONTENT_TYPE, Metrics
from ernie_local.server.openapi import openapi_document
from ernie_local.server.page import GivenFile, looks_of, page_file, safe_html, view_of
from ernie_local.server.requests import Body, ChatRequest, CompletionRequest, read_body
from ernie_local.server.responses import ResponseWriter
from ernie_local.server.responses_request import ResponsesRequest, as_chat_request, ignored_includes
from ernie_local.server.service import ClientQuestion, Ended, Event, Service
from ernie_local.server.state import modalities_of, page_state
from ernie_local.strict_json import show

# What the conversation is called in requests that do not call it messages.
_PROMPT_FIELDS = {"/v1/completions": "prompt", "/v1/responses": "input"}
_LOG = logging.getLogger("ernie_local.server")
_MOST_TOLD_FIELDS = 1000
_Result = TypeVar("_Result")
_Lines = Callable[[AsyncIterator[Event]], AsyncGenerator[bytes, None]]


@dataclass(kw_only=True)
class Server:
    """What the endpoints share. service: None until the model is loaded. model_name: as clients call it.

    version: of the program. memory: what the page shows of it; None for nothing.
    """

    model_name: str
    version: str = ""
    guard: GuardSettings = field(default_factory=GuardSettings)
    attachments: AttachmentLimits = field(default_factory=AttachmentLimits)
    service: Service | None = None
    memory: ServedMemory | None = None
    metrics: Metrics = field(default_factory=Metrics)
    told_fields: set[str] = field(default_factory=set)

    def app(self) -> Starlette:
        """The application."""
        routes = [
            Route(path, self._answering(path, endpoint), methods=[method])
            for method, path, endpoint in (
                ("GET", "/health", self._health),
                ("GET", "/v1/health", self._health),
                ("GET", "/v1/models", self._models),
                ("GET", "/v1/models/{model_id:path}", self._model),
                ("GET", "/", self._page),
                ("GET", "/page/state", self._page_state),
                ("POST", "/page/look", self._page_look),
                ("POST", "/page/view/{page:int}", self._page_view),
                ("POST", "/page/markdown", self._page_markdown),
                ("GET", "/page/{name}", self._page),
                ("GET", "/metrics", self._metrics),
                ("GET", "/openapi.json", self._openapi),
                ("POST", "/v1/chat/completions", self._chat_completions),
                ("POST", "/v1/completions", self._completions),
                ("POST", "/v1/responses", self._responses),
            )
        ]
        origins = list(self.guard.origins)
        middleware = [Middleware(Guard, settings=self.guard)]
        if origins:
            cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
            middleware.insert(0, cors)
        handlers: Any = {HTTPException: _refuse_unknown}
        return Starlette(
            routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=self._lifespan
        )

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        yield
        if self.service is not None:
            await self.service.close()

    def _answering(self, path: str, endpoint: Endpoint) -> Endpoint:
        """The endpoint, counted, with what goes wrong as an answer."""

        async def answer(request: Request) -> Response:
            try:
                response = await endpoint(request)
            except Exception as error:  # noqa: BLE001  (a client gets an answer whatever happens)
                failure = _told(error)
                if failure.param == "messages":
                    failure.param = _PROMPT_FIELDS.get(path, failure.param)
                response = error_response(failure)
            self.metrics.count_request(path, response.status_code)
            return response

        return answer

    async def _metrics(self, _request: Request) -> Response:
        return Response(self.metrics.text(self.service), media_type=CONTENT_TYPE)

    async def _openapi(self, _request: Request) -> Response:
        has_key = self.guard.api_key is not None
        return JSONResponse(openapi_document(self.version, has_key=has_key))

    async def _page(self, request: Request) -> Response:
        return page_file(request.path_params.get("name", "index.html"))

    async def _page_state(self, _request: Request) -> Response:
        about = self.model_name, self.service, self.memory, self.guard, self.attachments
        return JSONResponse(await to_thread.run_sync(page_state, *about))

    async def _page_look(self, request: Request) -> Response:
        return JSONResponse(await self._of_file(request, looks_of))

    async def _page_view(self, request: Request) -> Response:
        view = partial(view_of, request.path_params["page"])
        return Response(await self._of_file(request, view), media_type="image/jpeg")

    async def _of_file(self, request: Request, work: Callable[[GivenFile], _Result]) -> _Result:
        """What `work` makes of the file that was sent, in a thread; it ends when the client goes."""
        model, limits = self.ready_service().model, self.attachments
        data = await receive_body(request, self.guard)
        check_attached_size(data, limits)
        is_gone = threading.Event()

        def pause() -> None:
            if is_gone.is_set():
                raise client_gone()

        file = GivenFile(data, model.files, model.settings.context_size, limits, pause)
        try:
            working = to_thread.run_sync(work, file, abandon_on_cancel=True)
            return await _unless_disconnected(request, working)
        finally:
            is_gone.set()

    async def _page_markdown(self, request: Request) -> Response:
        text = (await receive_body(request, self.guard)).decode("utf-8", "replace")
        return Response(await to_thread.run_sync(safe_html, text), media_type="text/plain")

    async def _counted(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Ended):
                    self.metrics.count_answer(event)
                yield event

    def ready_service(self) -> Service:
        """The service; ApiError 503 while the model is loading."""
        if self.service is None:
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "Loading model", headers={"Retry-After": "5"})
        return self.service

    async def _health(self, _request: Request) -> Response:
        if self.service is None:
            loading = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
            return JSONResponse({"error": loading}, status_code=503)
        return JSONResponse({"status": "ok"})

    def _model_object(self) -> dict[str, object]:
        described: dict[str, object] = {
            "id": self.model_name,
            "object": "model",
            "created": 0,
            "owned_by": "ernie-local",
        }
        if self.service is not None:
            model = self.service.model
            described["meta"] = {
                "n_ctx": model.settings.context_size,
                "modalities": modalities_of(self.service),
            }
        return described

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_object()]})

    async def _model(self, request: Request) -> Response:
        if request.path_params["model_id"] != self.model_name:
            raise ApiError(
                HTTPStatus.NOT_FOUND, f"this server has one model, {self.model_name}", "model_not_found"
            )
        return JSONResponse(self._model_object())

    async def _chat_completions(self, request: Request) -> Response:
        body = read_body(await receive_body(request, self.guard), ChatRequest)
        writer = ChatCompletion(self.model_name, body.request)
        return await self._answered(request, body, writer, partial(question_of, body, self.attachments))

    async def _completions(self, request: Request) -> Response:
        body = read_body(await receive_body(request, self.guard), CompletionRequest)
        writer = Completion(self.model_name, body.request)
        return await self._answered(request, body, writer, partial(completion_question, body))

    async def _responses(self, request: Request) -> Response:
        read = read_body(await receive_body(request, self.guard), ResponsesRequest)
        unknown = [*read.unknown, *ignored_includes(read.request)]
        body = Body(as_chat_request(read.request), read.sampling, unknown)
        writer = ResponseWriter(self.model_name, body.request)
        return await self._answered(request, body, writer, partial(question_of, body, self.attachments))

    async def _answered(
        self,
        request: Request,
        body: Body[Any],
        writer: ChatCompletion | Completion | ResponseWriter,
        asked: Callable[[SamplingOptions], ClientQuestion],
    ) -> Response:
        """asked: the question, given the sampling of the model."""
        service = self.ready_service()
        self._tell_unknown(body.unknown)
        of_model = model_sampling(service.model.files.generation_config)
        events = self._counted(service.answer(asked(of_model)))
        if body.request.stream:
            return await _streamed(writer.lines, events)
        async with aclosing(events):
            whole = await _unless_disconnected(request, writer.whole(events))
        return JSONResponse(whole)

    def _tell_unknown(self, fields: Sequence[str]) -> None:
        # Clients invent names, which must not fill the memory or the log, nor control a terminal.
        names = sorted({show(name) for name in fields} - self.told_fields)
        new = names[: _MOST_TOLD_FIELDS - len(self.told_fields)]
        if new:
            self.told_fields.update(new)
            _LOG.warning("fields of requests that mean nothing here, and are ignored: %s", ", ".join(new))


async def _streamed(lines: _Lines, events: AsyncGenerator[Event, None]) -> Response:
    """A stream that begins when the question is known to be sound, or the client has waited for a while."""
    first = await anext(events)

    async def all_events() -> AsyncGenerator[Event, None]:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event

    async def body() -> AsyncIterator[bytes]:
        try:
            async with aclosing(lines(all_events())) as written:
                async for line in written:
                    yield line
        except Exception as error:  # noqa: BLE001  (a client gets an answer whatever happens)
            yield data_line(_told(error).as_json())

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)


async def _unless_disconnected(request: Request, work: Awaitable[_Result]) -> _Result:
    """The result of the work, which is cancelled when the client goes."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise client_gone()
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refuse_unknown(_request: Request, error: Exception) -> Response:
    """A path or a method that is not there."""
    assert isinstance(error, HTTPException)
    return error_response(ApiError(error.status_code, error.detail, headers=error.headers))


def _told(error: Exception) -> ApiError:
    failure = api_error(error)
    if failure.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _LOG.error("a defect of ernie-local", exc_info=error)
    return failure
