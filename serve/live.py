"""Frames to whoever watches: messages of a WebSocket, and MP4 for any player."""

from __future__ import annotations

import asyncio

from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from videossm.runtime.cli import one_line
from videossm.runtime.errors import UserError
from videossm.serve import models
from videossm.serve.encode import Mp4Fragments
from videossm.serve.errors import RefusedError, refusal, told
from videossm.serve.host import Host
from videossm.serve.stream import Stream
from videossm.serve.viewer import CHANGED, Viewer

_STALLED_S = 30.0  # for which a player may read nothing


class Mp4Response(Response):
    """The stream from now on, as MP4 in fragments, until the player leaves."""

    def __init__(self, stream: Stream, host: Host) -> None:
        super().__init__(media_type="video/mp4", headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._stream, self._host = stream, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        viewer = self._stream.watch("rgb")
        tasks = []
        try:
            await send(start)
            self._host.notify()
            tasks = [asyncio.ensure_future(self._send(viewer, send)), asyncio.ensure_future(_left(receive))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stream.leave(viewer)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, viewer: Viewer, send: Send) -> None:
        stream = self._host.plan.manifest.stream
        muxer = Mp4Fragments(stream.width * stream.batch, stream.height, stream.fps)
        while (frames := await viewer.next()) is not None:
            if frames is not CHANGED:
                content = await asyncio.to_thread(muxer.encode, frames)
                message = {"type": "http.response.body", "body": content, "more_body": True}
                await asyncio.wait_for(send(message), _STALLED_S)
                self._stream.count_sent(len(content))
        await send({"type": "http.response.body", "body": b""})


class Live:
    """The WebSocket of a stream: chunks out, prompts and pauses in."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def watch(self, websocket: WebSocket) -> None:
        """Serves one viewer until it leaves or the stream ends."""
        form = websocket.query_params.get("codec", "h264")
        try:
            stream = self._host.streams.get(websocket.path_params["id"])
            if stream is None:
                raise RefusedError(404, "stream: got one that does not exist, expected one of /api/streams")
            if form not in ("h264", "jpeg") or (form == "h264" and not self._host.even_sides):
                raise RefusedError(422, "codec: expected h264, for frames with even sides, or jpeg; change it")
            viewer = stream.watch(form)
        except UserError as error:
            await websocket.send_denial_response(refusal(error))
            return
        tasks = []
        try:
            await websocket.accept()
            self._host.notify()
            tasks = [asyncio.ensure_future(self._send(websocket, stream, viewer))]
            tasks += [asyncio.ensure_future(self._receive(websocket, stream))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stream.leave(viewer)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, websocket: WebSocket, stream: Stream, viewer: Viewer) -> None:
        await websocket.send_json({"type": "stream", **stream.describe()})
        while (message := await viewer.next()) is not None:
            if message is CHANGED:
                await websocket.send_json({"type": "stream", **stream.describe()})
            else:
                await websocket.send_bytes(message)
                stream.count_sent(len(message))
        await websocket.send_json({"type": "stream", **stream.describe(), "ended": True})
        await websocket.close()

    async def _receive(self, websocket: WebSocket, stream: Stream) -> None:
        """Each wrong message is answered with an error, and ends nothing."""
        while True:
            received = await websocket.receive()
            if received["type"] == "websocket.disconnect":
                return
            try:
                await self._take(stream, received.get("text"), received.get("bytes"))
            except UserError as error:
                await websocket.send_json({"type": "error", "error": one_line(str(error))})

    async def _take(self, stream: Stream, text: str | None, content: bytes | None) -> None:
        if text is None:
            got = f"{len(content or b'')} bytes"
            raise RefusedError(422, f"message: got {got}, expected a text of JSON; send that")
        if len(text) > self._host.limits.body_bytes:
            got = f"{len(text)} characters"
            raise RefusedError(422, f"message: got {got}, expected at most {self._host.limits.body_bytes}; send less")
        try:
            message = models.MESSAGE.validate_json(text)
        except ValidationError as error:
            raise RefusedError(422, f"message: {told(error)}") from error
        if isinstance(message, models.PauseMessage):
            stream.pause(message.paused)
            self._host.notify()
        else:
            prompts = self._host.prompts(message.prompt) or []
            await self._host.do(lambda: self._host.set_prompt(stream, prompts))


async def _left(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
