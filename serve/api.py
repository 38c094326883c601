"""The operations of the API, each from a request to a response; `openapi.py` describes the same table."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from videossm.runtime.errors import UserError, shown
from videossm.runtime.state import most_state_bytes
from videossm.serve import models
from videossm.serve.errors import RefusedError, TooManyError, told
from videossm.serve.host import Host
from videossm.serve.live import Mp4Response
from videossm.serve.metrics import Metrics
from videossm.serve.stream import Stream

_Model = TypeVar("_Model", bound=BaseModel)
BINARY, JSON, MP4, TEXT = "application/octet-stream", "application/json", "video/mp4", "text/plain"


class Api:
    """Handlers over one host."""

    def __init__(self, host: Host, device: str, metrics: Metrics) -> None:
        self._host, self._device, self._metrics = host, device, metrics

    async def health(self, request: Request) -> Response:
        return _json(models.Health(status="ok"))

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=TEXT)

    async def plan(self, request: Request) -> Response:
        manifest = self._host.plan.manifest
        stream, text, limits = manifest.stream, manifest.text, self._host.limits
        return _json(
            models.PlanInfo(
                name=manifest.name,
                precision=manifest.precision,
                device=self._device,
                width=stream.width * stream.batch,
                height=stream.height,
                fps=stream.fps,
                batch=stream.batch,
                chunk_frames=stream.later_frames,
                clip_chunks=stream.chunks,
                takes_text=text is not None,
                examples=list(text.examples[:20]) if text else [],
                h264=self._host.even_sides,
                most_streams=limits.streams,
                most_prompt_characters=limits.prompt_characters,
            )
        )

    async def streams(self, request: Request) -> Response:
        infos = [_info(stream) for stream in list(self._host.streams.values())]
        return _json(models.Streams(streams=infos))

    async def create(self, request: Request) -> Response:
        given = await self._body(request, models.NewStream)
        prompts = self._host.prompts(given.prompt)
        stream = await self._host.do(lambda: self._host.create(prompts, given.seed))
        return _json(_info(stream), 201)

    async def stream(self, request: Request) -> Response:
        return _json(_info(self._found(request)))

    async def delete(self, request: Request) -> Response:
        stream = self._found(request)
        await self._host.do(lambda: self._host.delete(stream))
        return Response(status_code=204)

    async def set_prompt(self, request: Request) -> Response:
        stream = self._found(request)
        given = await self._body(request, models.NewPrompt)
        prompts = self._host.prompts(given.prompt) or []
        await self._host.do(lambda: self._host.set_prompt(stream, prompts))
        return _json(_info(stream))

    async def set_paused(self, request: Request) -> Response:
        stream = self._found(request)
        given = await self._body(request, models.Pause)
        stream.pause(given.paused)
        self._host.notify()
        return _json(_info(stream))

    async def fork(self, request: Request) -> Response:
        stream = self._going(request)
        given = await self._body(request, models.Fork)
        prompts = self._host.prompts(given.prompt)
        other = await self._host.do(lambda: self._host.fork(stream, prompts, given.seed))
        return _json(_info(other), 201)

    async def save(self, request: Request) -> Response:
        stream = self._going(request)
        content = await self._host.do(lambda: self._host.save(stream))
        name = f"{self._host.plan.name}-{stream.id}.safetensors"
        return Response(content, media_type=BINARY, headers={"content-disposition": f'attachment; filename="{name}"'})

    async def load(self, request: Request) -> Response:
        """The file is read by what reads those on disk."""
        _require_type(request, BINARY)
        with tempfile.TemporaryDirectory(prefix="videossm-") as folder:
            path = Path(folder) / "state"
            with path.open("wb") as file:
                async for part in _parts(request, most_state_bytes(self._host.plan.manifest)):
                    file.write(part)
            try:
                stream = await self._host.do(lambda: self._host.resume(path))
            except UserError as error:
                status = 429 if isinstance(error, TooManyError) else 422
                raise RefusedError(status, str(error).replace(str(path), "the upload")) from error
        return _json(_info(stream), 201)

    async def video(self, request: Request) -> Response:
        stream = self._going(request)
        if not self._host.even_sides:
            raise RefusedError(422, "video.mp4: got frames with an odd side, expected even ones; use the WebSocket")
        return Mp4Response(stream, self._host)

    def _found(self, request: Request) -> Stream:
        key = request.path_params["id"]
        stream = self._host.streams.get(key)
        if stream is None:
            raise RefusedError(404, f"stream: got {shown(key)}, which does not exist, expected one of /api/streams")
        stream.touch()
        return stream

    def _going(self, request: Request) -> Stream:
        """The stream, if its state is whole."""
        stream = self._found(request)
        if stream.problem is not None:
            raise RefusedError(409, f"stream: {stream.problem}")
        return stream

    async def _body(self, request: Request, model: type[_Model]) -> _Model:
        _require_type(request, JSON)
        content = b"".join([part async for part in _parts(request, self._host.limits.body_bytes)])
        try:
            return model.model_validate_json(content)
        except ValidationError as error:
            raise RefusedError(422, told(error)) from error


def _info(stream: Stream) -> models.StreamInfo:
    return models.StreamInfo.model_validate(stream.describe())


def _json(model: BaseModel, status: int = 200) -> Response:
    return Response(model.model_dump_json(), status, {"cache-control": "no-store"}, JSON)


def _require_type(request: Request, expected: str) -> None:
    """Also keeps another site's page from sending a form here."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != expected:
        raise RefusedError(415, f"content-type: got {shown(given)}, expected {expected}; change it")


async def _parts(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body as it comes. Raises RefusedError where it is longer than `most` bytes."""
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise RefusedError(413, f"body: got more than {most} bytes, expected at most that; send less")
        yield part
