"""The API's table, and the OpenAPI document made of it, so that the two cannot differ."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from videossm.serve import models
from videossm.serve.api import BINARY, JSON, MP4, TEXT, Api

Handler = Callable[[Request], Awaitable[Response]]
_ERRORS = {
    404: "No such stream",
    409: "The stream's state was lost in an error; delete it",
    413: "More than a request may hold",
    415: "Another content type than the operation takes",
    422: "Wrong input; the error says what to do",
    429: "A limit of the server is reached",
}
_OF_BODY = (413, 415, 422)


@dataclass(frozen=True)
class Operation:
    """`takes`: the body's model, or its content type. `gives`: likewise, of the answer; None for no content."""

    method: str
    path: str
    handler: Handler
    summary: str
    gives: type[BaseModel] | str | None
    takes: type[BaseModel] | str | None = None
    status: int = 200
    errors: tuple[int, ...] = ()
    open: bool = False  # to everybody, without a token


def operations(api: Api) -> list[Operation]:
    """All of them, but for the WebSocket, of which OpenAPI has no notion."""
    one = "/api/streams/{id}"
    info = models.StreamInfo
    return [
        Operation("get", "/api/health", api.health, "Whether the server answers", models.Health, open=True),
        Operation("get", "/metrics", api.metrics, "Metrics for Prometheus", TEXT),
        Operation("get", "/api/plan", api.plan, "The plan that is served, and the server's limits", models.PlanInfo),
        Operation("get", "/api/streams", api.streams, "All streams", models.Streams),
        Operation(
            "post",
            "/api/streams",
            api.create,
            "Begin a stream; chunks are made while somebody watches",
            info,
            models.NewStream,
            201,
            (*_OF_BODY, 429),
        ),
        Operation("get", one, api.stream, "A stream", info, errors=(404,)),
        Operation("delete", one, api.delete, "End a stream", None, status=204, errors=(404,)),
        Operation(
            "put",
            f"{one}/prompt",
            api.set_prompt,
            "Follow another prompt from the next chunk on",
            info,
            models.NewPrompt,
            errors=(404, *_OF_BODY),
        ),
        Operation(
            "put",
            f"{one}/paused",
            api.set_paused,
            "Pause, or go on",
            info,
            models.Pause,
            errors=(404, *_OF_BODY),
        ),
        Operation(
            "post",
            f"{one}/fork",
            api.fork,
            "Begin a second stream from this one's state",
            info,
            models.Fork,
            201,
            (404, 409, *_OF_BODY, 429),
        ),
        Operation(
            "get", f"{one}/state", api.save, "The state, as `videossm-run --resume` reads it", BINARY, errors=(404, 409)
        ),
        Operation("post", "/api/states", api.load, "Begin a stream from a state", info, BINARY, 201, (*_OF_BODY, 429)),
        Operation(
            "get",
            f"{one}/video.mp4",
            api.video,
            "The stream from now on as MP4 without end, for any player",
            MP4,
            errors=(404, 409, 422, 429),
        ),
    ]


def document(table: Sequence[Operation], version: str, needs_token: bool) -> dict[str, Any]:
    """OpenAPI 3.1."""
    named: list[type[BaseModel]] = [models.Error, models.PromptMessage, models.PauseMessage]
    named += [each for op in table for each in (op.gives, op.takes) if isinstance(each, type)]
    wanted = dict.fromkeys(named)
    _, schemas = models_json_schema(
        [(model, "validation") for model in wanted], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for op in table:
        paths.setdefault(op.path, {})[op.method] = _described(op, needs_token)
    content: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "videossm-serve", "version": version, "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }
    if needs_token:
        content["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return content


_DESCRIPTION = (
    "Streams of one plan. `/api/streams/{id}/live?codec=h264|jpeg` is a WebSocket. It sends binary messages, a chunk "
    "each: the length of the head (uint32, little-endian), the head (JSON: chunk, start_s, prompts, chunk_ms, "
    "engines_ms, codec, sizes) and the frames in a row, of `sizes` bytes each; and texts, `StreamInfo` with "
    "`type: stream` or an error with `type: error`. It takes texts: `PromptMessage`, `PauseMessage`."
)


def _described(op: Operation, needs_token: bool) -> dict[str, Any]:
    errors = {*op.errors, *((401,) if needs_token and not op.open else ())}
    described: dict[str, Any] = {
        "operationId": op.handler.__name__,
        "summary": op.summary,
        "responses": {str(op.status): {"description": "Done", **_content(op.gives)}}
        | {str(error): {"description": _ERRORS.get(error, "No token"), **_content(models.Error)} for error in errors},
    }
    if "{id}" in op.path:
        where = {"name": "id", "in": "path", "required": True}
        described["parameters"] = [{**where, "schema": {"type": "string", "minLength": 1}}]
    if op.takes is not None:
        described["requestBody"] = {"required": True, **_content(op.takes)}
    if needs_token and not op.open:
        described["security"] = [{"token": []}]
    return described


def _content(kind: type[BaseModel] | str | None) -> Mapping[str, Any]:
    if kind is None:
        return {}
    if isinstance(kind, str):
        schema = {"type": "string"} if kind == TEXT else {}
        return {"content": {kind: {"schema": schema}}}
    return {"content": {JSON: {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}}
