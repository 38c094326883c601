"""The thread that owns the engines, makes the chunks of all streams in turn, and does what is asked in between.

A backend belongs to one thread, so everything that touches a rollout happens here, between two chunks. Whose chunk is
due first is served first; a stream that was served goes behind all that are late, so none starves.
"""

from __future__ import annotations

import asyncio
import io
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Condition, Thread
from time import monotonic
from typing import Any, TypeVar

from videossm.runtime.loaded_plan import LoadedPlan
from videossm.runtime.noise import stream_seeds
from videossm.runtime.plan import Plan
from videossm.runtime.rollout import Rollout
from videossm.runtime.state import write_state
from videossm.serve.errors import RefusedError, TooManyError
from videossm.serve.limits import Limits
from videossm.serve.metrics import Metrics
from videossm.serve.stream import Stream

_T = TypeVar("_T")
_SWEEP_S = 1.0  # between two looks for streams that nobody watches


class Host:
    """All streams of one plan. `streams` may be read from any thread."""

    def __init__(self, plan: Plan, limits: Limits, metrics: Metrics, **placement: Any) -> None:
        """`placement`: device, threads and provider of the LoadedPlan."""
        self.plan, self.limits = plan, limits
        self.streams: dict[str, Stream] = {}
        self._metrics, self._placement = metrics, placement
        self._asked: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._wake = Condition()
        self._stopping = False
        self._loaded: LoadedPlan
        self._ready: Future[str] = Future()
        self._thread = Thread(target=self._work, name="engines", daemon=True)

    def start(self) -> str:
        """Loads the engines; returns the device. Raises what LoadedPlan raises."""
        self._thread.start()
        return self._ready.result()

    def stop(self) -> None:
        """Ends all streams, after the pass in hand, and gives the device back."""
        with self._wake:
            self._stopping = True
            for stream in list(self.streams.values()):
                stream.rollout.cancel()
            self._wake.notify()
        self._thread.join()

    def notify(self) -> None:
        """Something has changed that may make a stream wanted."""
        with self._wake:
            self._wake.notify()

    @property
    def even_sides(self) -> bool:
        """Whether H.264 can hold the frames: it halves the colours' planes."""
        stream = self.plan.manifest.stream
        return (stream.width * stream.batch) % 2 == 0 and stream.height % 2 == 0

    def prompts(self, given: str | Sequence[str] | None) -> list[str] | None:
        """One for each picture of the batch. Raises RefusedError for a long one."""
        if given is None:
            return None
        prompts = [given] * self.plan.manifest.stream.batch if isinstance(given, str) else list(given)
        longest = max(map(len, prompts), default=0)
        most = self.limits.prompt_characters
        if longest > most:
            raise RefusedError(422, f"prompt: got {longest} characters, expected at most {most}; shorten it")
        return prompts

    async def do(self, work: Callable[[], _T]) -> _T:
        """Runs `work` in the thread of the engines, between two chunks."""
        future: Future[_T] = Future()
        with self._wake:
            if self._stopping:
                raise TooManyError("server: is stopping; start it again")
            self._asked.append((future, work))
            self._wake.notify()
        return await asyncio.wrap_future(future)

    # What follows is for `do`.

    def create(self, prompts: Sequence[str] | None, seed: int) -> Stream:
        self._check_room()
        return self._add(Rollout(self._loaded, prompts, seed))

    def resume(self, state: Path) -> Stream:
        """From a state file, read as strictly as any."""
        self._check_room()
        return self._add(Rollout.resume(self._loaded, state))

    def fork(self, stream: Stream, prompts: Sequence[str] | None, seed: int | None) -> Stream:
        """A second stream from this moment on; another seed or prompt counts from its next chunk on."""
        self._check_room()
        rollout = stream.rollout.fork()
        if seed is not None:
            rollout.seeds = stream_seeds(seed, self.plan.manifest.stream.batch)
        if prompts is not None:
            rollout.set_prompt(prompts)
        other = self._add(rollout)
        other.paused = stream.paused
        other.history = stream.history
        other.remember()
        return other

    def save(self, stream: Stream) -> bytes:
        """What a state file holds."""
        snapshot = stream.rollout.snapshot()
        content = io.BytesIO()
        write_state(content, self.plan.manifest, snapshot.header, snapshot.tensors)
        return content.getvalue()

    def set_prompt(self, stream: Stream, prompts: Sequence[str]) -> None:
        stream.rollout.set_prompt(prompts)
        stream.remember()
        stream.tell()

    def delete(self, stream: Stream) -> None:
        if self.streams.pop(stream.id, None) is not None:
            stream.end()
            self._metrics.streams.dec()

    def _check_room(self) -> None:
        if len(self.streams) >= self.limits.streams:
            raise TooManyError(f"streams: got {len(self.streams)} already, expected fewer; delete one")

    def _add(self, rollout: Rollout) -> Stream:
        stream = Stream(rollout, self.limits, self._metrics)
        self.streams[stream.id] = stream
        self._metrics.streams.inc()
        return stream

    def _work(self) -> None:
        try:
            self._loaded = LoadedPlan(self.plan, **self._placement)
        except BaseException as error:
            self._ready.set_exception(error)
            return
        with self._loaded:
            self._ready.set_result(self._loaded.backend.device)
            while not self._stopping:
                asked, stream = self._next()
                for future, work in asked:
                    _answer(future, work)
                if stream is not None and stream.id in self.streams:
                    stream.advance()
                self._sweep()
            for stream in list(self.streams.values()):
                self.delete(stream)
            for future, _ in self._asked:
                future.cancel()

    def _next(self) -> tuple[list[tuple[Future[Any], Callable[[], Any]]], Stream | None]:
        """All that was asked, and the stream whose chunk is due first, if one is; waits for either."""
        with self._wake:
            wanted = [stream for stream in self.streams.values() if stream.wanted]
            first = min(wanted, key=lambda stream: stream.due_s, default=None)
            wait_s = _SWEEP_S if first is None else first.due_s - monotonic()
            if wait_s > 0 and not self._asked and not self._stopping:
                self._wake.wait(min(wait_s, _SWEEP_S))
            asked = [self._asked.popleft() for _ in range(len(self._asked))]
        # Once more, as viewers may have left while this waited.
        due = first is not None and first.wanted and first.due_s <= monotonic()
        return asked, first if due else None

    def _sweep(self) -> None:
        for stream in list(self.streams.values()):
            if stream.idle_s > self.limits.idle_s:
                self.delete(stream)


def _answer(future: Future[_T], work: Callable[[], _T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
