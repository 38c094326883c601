"""Makes the video of one request, and goes on where a killed process had been.

After every chunk its frames and the stream's state are kept. Whoever takes the request next encodes the kept frames
anew and goes on from the state: the encoder sees the same frames in the same order, so the file has the same bytes as
one that was made in one go.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from videossm.batch.folder import Folder
from videossm.batch.rows import Request
from videossm.runtime.errors import StateError, UserError
from videossm.runtime.loaded_plan import LoadedPlan
from videossm.runtime.rollout import Rollout
from videossm.runtime.sinks import open_sink, side_by_side
from videossm.runtime.state import write_state

WORK = "work"  # folder of what is not done
_STATE, _ATTEMPTS = ".safetensors", "attempts.json"


def result_of(folder: Folder, request: Request) -> dict[str, Any] | None:
    """What an earlier run says of the request's video, None if there is none.

    Raises UserError for a video of that id that shows something else.
    """
    content = folder.read(f"{request.id}.json")
    if content is None:
        return None
    result: dict[str, Any] = json.loads(content)
    if result.get("request") != request.digest:
        raise UserError(
            f"id: got {request.id}, whose video in {folder.path()} is of another prompt, seed, length or plan, "
            "expected a new one; choose another id or -o"
        )
    return result


def make_video(loaded: LoadedPlan, request: Request, folder: Folder) -> dict[str, Any]:
    """Writes ID.mp4 and ID.json and returns the latter's content; an earlier run's result as it is.

    Raises what rollouts and sinks raise.
    """
    work = f"{WORK}/{request.id}-{request.digest[:16]}"
    done = result_of(folder, request)
    if done is not None:
        folder.remove(work)  # of a process that was killed after its last file
        return done
    started = perf_counter()
    with _begun(loaded, request, folder, work) as rollout, folder.scratch(work) as scratch:
        attempts = _count_attempt(folder, work, rollout.next_index)
        file = scratch / f"{request.id}.mp4"
        _roll(rollout, request, folder, work, file)
        folder.put(file, file.name)
        result = _result(rollout, request, attempts, perf_counter() - started)
    folder.write(f"{request.id}.json", json.dumps(result, indent=1).encode())
    folder.remove(work)
    return result


def _begun(loaded: LoadedPlan, request: Request, folder: Folder, work: str) -> Rollout:
    """The rollout where the last attempt left it, or at its start; so also where a crash has damaged what that left."""
    kept = folder.names(work)
    for name in sorted((name for name in kept if name.endswith(_STATE)), reverse=True):
        with folder.local(f"{work}/{name}") as state, suppress(StateError):
            if state is not None:
                rollout = Rollout.resume(loaded, state)
                if kept.issuperset(_part(index) for index in range(rollout.next_index)):
                    return rollout
    first = request.prompts.get(0)
    batch = loaded.manifest.stream.batch
    return Rollout(loaded, None if first is None else [first] * batch, request.seed)


def _count_attempt(folder: Folder, work: str, chunk: int) -> list[int]:
    """The chunks that each attempt so far has started with, this one included."""
    attempts = [*json.loads(folder.read(f"{work}/{_ATTEMPTS}") or b"[]"), chunk]
    folder.write(f"{work}/{_ATTEMPTS}", json.dumps(attempts).encode())
    return attempts


def _roll(rollout: Rollout, request: Request, folder: Folder, work: str, file: Path) -> None:
    """Encodes what is kept, then makes and keeps the rest."""
    stream = rollout.plan.manifest.stream
    width, first = stream.width * stream.batch, rollout.next_index
    prompts = {chunk: [text] * stream.batch for chunk, text in request.prompts.items()}
    with open_sink(file, width, stream.height, stream.fps) as sink:
        for index in range(first):
            kept = folder.read(f"{work}/{_part(index)}") or b""
            sink.write(np.frombuffer(kept, np.uint8).reshape(-1, stream.height, width, 3))
        for chunk in rollout.play(
            request.chunks - first, prompts, ahead=False
        ):  # a state is that after the last chunk begun
            frames = side_by_side(chunk.frames)
            sink.write(frames)
            folder.write(f"{work}/{_part(chunk.index)}", np.ascontiguousarray(frames).data)
            snapshot = rollout.snapshot()
            with folder.writing(f"{work}/{_state(chunk.index)}") as out:
                write_state(out, rollout.plan.manifest, snapshot.header, snapshot.tensors)
            # Of a file that is gone soon a disk sees nothing; one in whose place another comes is written out first.
            folder.remove(f"{work}/{_state(chunk.index - 1)}")


def _part(chunk: int) -> str:
    return f"{chunk:08d}.rgb"


def _state(chunk: int) -> str:
    """That after `chunk`."""
    return f"{chunk:08d}{_STATE}"


def _result(rollout: Rollout, request: Request, attempts: list[int], wall_s: float) -> dict[str, Any]:
    stream = rollout.plan.manifest.stream
    chunks = rollout.next_index
    frames, made = stream.frames_before(chunks), chunks - attempts[-1]
    return {
        "id": request.id,
        "file": f"{request.id}.mp4",
        "plan": rollout.plan.name,
        "seeds": rollout.seeds,
        "prompts": [{"start_s": stream.start_s(chunk), "prompt": text} for chunk, text in request.prompts.items()],
        "chunks": chunks,
        "frames": frames,
        "seconds": frames / stream.fps,
        "attempts": attempts,
        "wall_s": wall_s,
        "ms_per_chunk": 1000 * wall_s / made if made else None,
        "engines_s": rollout.timings,
        "request": request.digest,
    }
