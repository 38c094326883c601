"""A connection that frames are sent to, between the thread that makes them and the event loop that sends them."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from threading import Lock
from typing import Any

CHANGED = object()


class Viewer:
    """Holds a few chunks at most: of a viewer that is too slow the oldest one goes when a new one comes.

    So the stream waits for nobody, memory does not grow, and who catches up sees what is newest. `form`: `h264`,
    `jpeg`, or `rgb` for plain arrays.
    """

    def __init__(self, form: str, depth: int) -> None:
        """To be made inside the event loop that calls `next`."""
        self.form = form
        self.missed = 0
        self._chunks: deque[Any] = deque()
        self._depth = depth
        self._ended = self._told = False
        self._lock = Lock()
        self._loop = asyncio.get_running_loop()
        self._there = asyncio.Event()

    def offer(self, chunk: Any) -> bool:
        """From any thread. Whether there was room; else the oldest one has gone."""
        with self._lock:
            full = len(self._chunks) == self._depth
            if full:
                self._chunks.popleft()
                self.missed += 1
            self._chunks.append(chunk)
        self._wake()
        return not full

    def tell(self) -> None:
        """From any thread: something else about the stream has changed."""
        self._told = True
        self._wake()

    def end(self) -> None:
        """From any thread: nothing more comes."""
        self._ended = True
        self._wake()

    async def next(self) -> Any:
        """The oldest chunk that is held, waited for; CHANGED after a `tell`, None at the end."""
        while True:
            self._there.clear()
            if self._told:
                self._told = False
                return CHANGED
            with self._lock:
                if self._chunks:
                    return self._chunks.popleft()
            if self._ended:
                return None
            await self._there.wait()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever would wait
            self._loop.call_soon_threadsafe(self._there.set)
