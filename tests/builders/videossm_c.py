"""videossm.h by ctypes, for the tests alone: there is no second Python interface."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

OK, ENDED, CANCELLED = 0, 1, 2
PLAN, STATE, PROMPT, BACKEND, ARGUMENT, MEMORY = 16, 17, 18, 19, 20, 21
Log = ctypes.CFUNCTYPE(None, c_void_p, c_char_p)
Progress = ctypes.CFUNCTYPE(None, c_void_p, c_int64, c_size_t, c_size_t)


class PlanOptions(ctypes.Structure):
    _fields_ = [
        ("size_bytes", c_size_t),
        ("threads", c_int32),
        ("log", Log),
        ("log_user", c_void_p),
        ("device", c_int32),
    ]


class PlanInfo(ctypes.Structure):
    _fields_ = [
        ("size_bytes", c_size_t),
        *((name, c_char_p) for name in ("name", "precision", "backend", "identity")),
        ("fps", c_double),
        *((name, c_int64) for name in ("batch", "height", "width", "first_frames", "later_frames", "chunks")),
        ("text_length", c_int64),
        ("takes_text", c_int32),
        ("takes_samples", c_int32),
        *((name, c_size_t) for name in ("sample_count", "state_bytes", "engine_count", "pass_count")),
    ]


class RolloutOptions(ctypes.Structure):
    _fields_ = [
        ("size_bytes", c_size_t),
        ("prompts", POINTER(c_char_p)),
        ("prompt_count", c_size_t),
        ("ids", POINTER(c_int64)),
        ("mask", POINTER(c_int64)),
        ("seeds", POINTER(c_uint64)),
        ("seed_count", c_size_t),
        ("progress", Progress),
        ("progress_user", c_void_p),
    ]


class ChunkView(ctypes.Structure):
    _fields_ = [
        ("index", c_int64),
        ("start_s", c_double),
        *((name, c_int64) for name in ("batch", "frames", "height", "width")),
        ("pixels", POINTER(c_uint8)),
        *((name, c_size_t) for name in ("stream_stride", "frame_stride", "row_stride")),
    ]


class Target(ctypes.Structure):
    pixels_type = POINTER(c_uint8)
    _fields_ = [
        ("pixels", POINTER(c_uint8)),
        *((name, c_size_t) for name in ("size_bytes", "stream_stride", "frame_stride", "row_stride")),
    ]


class CError(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Library:
    """The shared library at `path`."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        self.functions.videossm_error_text.restype = c_char_p
        self.functions.videossm_rollout_next_bytes.restype = c_size_t
        self.functions.videossm_rollout_next_index.restype = c_int64
        self.functions.videossm_version.restype = ctypes.c_uint32

    def call(self, name: str, *arguments: Any) -> int:
        """The status; raises CError with the text of an error."""
        error = c_void_p()
        status = getattr(self.functions, f"videossm_{name}")(*arguments, byref(error))
        if not self.functions.videossm_is_error(status):
            assert not error, "no text without an error"
            return int(status)
        text = self.functions.videossm_error_text(error).decode()
        assert self.functions.videossm_error_status(error) == status
        self.functions.videossm_error_free(error)
        raise CError(status, text)


class CPlan:
    def __init__(self, library: Library, path: Path, threads: int = 0, log: Any = None, device: int = 0) -> None:
        self.library, self.handle = library, c_void_p()
        options = PlanOptions(ctypes.sizeof(PlanOptions), threads, Log(log) if log else Log(), None, device)
        library.call("plan_open", str(path).encode(), byref(options), byref(self.handle))

    @property
    def info(self) -> PlanInfo:
        info = PlanInfo(ctypes.sizeof(PlanInfo))
        self.library.call("plan_describe", self.handle, byref(info))
        return info

    def __del__(self) -> None:
        self.library.functions.videossm_plan_free(self.handle)


class CRollout:
    """As `videossm.runtime.Rollout` as far as the tests need."""

    def __init__(self, library: Library, handle: c_void_p) -> None:
        self.library, self.handle = library, handle

    @classmethod
    def create(
        cls,
        plan: CPlan,
        prompts: Sequence[str] = (),
        seeds: Sequence[int] = (),
        tokens: tuple[np.ndarray, np.ndarray] | None = None,
        progress: Any = None,
    ) -> CRollout:
        options = RolloutOptions(ctypes.sizeof(RolloutOptions))
        if prompts:
            options.prompts, options.prompt_count = _texts(prompts), len(prompts)
        if tokens:
            options.ids, options.mask = (_integers(array) for array in tokens)
        options.seeds, options.seed_count = (c_uint64 * len(seeds))(*seeds), len(seeds)
        callback = Progress(progress) if progress else Progress()
        options.progress = callback
        rollout = cls(plan.library, c_void_p())
        rollout.callback = callback
        plan.library.call("rollout_create", plan.handle, byref(options), byref(rollout.handle))
        return rollout

    @classmethod
    def resume(cls, plan: CPlan, path: Path) -> CRollout:
        rollout = cls(plan.library, c_void_p())
        plan.library.call("rollout_resume", plan.handle, str(path).encode(), None, byref(rollout.handle))
        return rollout

    def next(self, target: Target | None = None) -> ChunkView | int:
        """The chunk, or the status where there is none."""
        chunk = ChunkView()
        status = self.library.call("rollout_next", self.handle, target and byref(target), byref(chunk))
        return chunk if status == OK else status

    def frames(self) -> np.ndarray:
        """Of the next chunk, a copy."""
        chunk = self.next()
        assert isinstance(chunk, ChunkView), chunk
        return pixels(chunk)

    def append(self, sample: np.ndarray) -> np.ndarray:
        chunk, values = ChunkView(), np.ascontiguousarray(sample, np.float32)
        numbers = values.ctypes.data_as(POINTER(c_float))
        self.library.call("rollout_append", self.handle, numbers, c_size_t(values.size), None, byref(chunk))
        return pixels(chunk)

    def sample(self) -> np.ndarray:
        count = c_size_t()
        self.library.call("rollout_sample", self.handle, None, byref(count))
        values = np.empty(count.value, np.float32)
        self.library.call("rollout_sample", self.handle, values.ctypes.data_as(POINTER(c_float)), byref(count))
        return values

    def set_prompt(self, *prompts: str) -> None:
        self.library.call("rollout_set_prompt", self.handle, _texts(prompts), c_size_t(len(prompts)))

    def set_prompt_ids(self, ids: np.ndarray, mask: np.ndarray) -> None:
        self.library.call("rollout_set_prompt_ids", self.handle, _integers(ids), _integers(mask))

    def cancel(self) -> None:
        self.library.functions.videossm_rollout_cancel(self.handle)

    def save(self, path: Path) -> None:
        self.library.call("rollout_save", self.handle, str(path).encode())

    def fork(self) -> CRollout:
        other = CRollout(self.library, c_void_p())
        self.library.call("rollout_fork", self.handle, byref(other.handle))
        return other

    def snapshot(self) -> c_void_p:
        snapshot = c_void_p()
        self.library.call("rollout_snapshot", self.handle, byref(snapshot))
        return snapshot

    def restore(self, snapshot: c_void_p) -> None:
        self.library.call("rollout_restore", self.handle, snapshot)

    def timing(self, index: int) -> tuple[str, float]:
        name, seconds = c_char_p(), c_double()
        self.library.call("rollout_timing", self.handle, c_size_t(index), byref(name), byref(seconds))
        return (name.value or b"").decode(), seconds.value

    @property
    def next_index(self) -> int:
        return int(self.library.functions.videossm_rollout_next_index(self.handle))

    @property
    def next_bytes(self) -> int:
        return int(self.library.functions.videossm_rollout_next_bytes(self.handle))

    def __del__(self) -> None:
        self.library.functions.videossm_rollout_free(self.handle)


def pixels(chunk: ChunkView) -> np.ndarray:
    """[B, T, H, W, 3], a copy."""
    shape = (chunk.batch, chunk.frames, chunk.height, chunk.width, 3)
    size = (chunk.batch - 1) * chunk.stream_stride + (chunk.frames - 1) * chunk.frame_stride
    size += (chunk.height - 1) * chunk.row_stride + chunk.width * 3
    flat = np.ctypeslib.as_array(chunk.pixels, (size,))
    strides = (chunk.stream_stride, chunk.frame_stride, chunk.row_stride, 3, 1)
    return np.lib.stride_tricks.as_strided(flat, shape, strides).copy()


def _texts(prompts: Sequence[str]) -> Any:
    return (c_char_p * len(prompts))(*(prompt.encode() for prompt in prompts))


def _integers(array: np.ndarray) -> Any:
    return (c_int64 * array.size)(*array.reshape(-1).tolist())
