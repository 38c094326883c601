"""The ASGI application: the page, the API and the WebSocket over one host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from videossm.runtime.errors import UserError
from videossm.serve.api import Api
from videossm.serve.errors import RefusedError, refusal
from videossm.serve.guard import Guard
from videossm.serve.host import Host
from videossm.serve.live import Live
from videossm.serve.metrics import Metrics
from videossm.serve.openapi import Handler, Operation, document, operations

PAGE = Path(__file__).parent / "page"


def create_app(host: Host, device: str, metrics: Metrics, token: str | None = None) -> Starlette:
    """`host` has been started on `device`. Without a `token` only pages and programs of this machine are served."""
    from importlib.metadata import version

    table = operations(Api(host, device, metrics))
    content = document(table, version("videossm"), token is not None)

    async def openapi(request: Request) -> Response:
        return JSONResponse(content)

    async def page(request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    return Starlette(
        routes=[
            Route("/", page, methods=["GET"]),
            Mount("/page", StaticFiles(directory=PAGE)),
            Route("/api/openapi.json", openapi, methods=["GET"]),
            *_routes(table),
            WebSocketRoute("/api/streams/{id}/live", Live(host).watch),
        ],
        middleware=[Middleware(Guard, token=token)],
        exception_handlers={UserError: _refused, HTTPException: _unknown},
    )


def _routes(table: Sequence[Operation]) -> list[BaseRoute]:
    """One for each path, so that another method is told which ones it has."""
    paths: dict[str, dict[str, Handler]] = {}
    for op in table:
        paths.setdefault(op.path, {})[op.method.upper()] = op.handler
    return [Route(path, _chosen(handlers), methods=list(handlers)) for path, handlers in paths.items()]


def _chosen(handlers: dict[str, Handler]) -> Handler:
    async def endpoint(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return endpoint


async def _refused(request: Request, error: Any) -> Response:
    return refusal(error)


async def _unknown(request: Request, error: Any) -> Response:
    """Of Starlette: no such path or method."""
    response = refusal(RefusedError(error.status_code, f"{request.method} {request.url.path[:80]!r}: {error.detail}"))
    response.headers.update(error.headers or {})
    return response
