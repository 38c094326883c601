"""The scans' C libraries from Python, by ctypes: arrays for the CPU's, addresses for any."""

from __future__ import annotations

import ctypes
from os import PathLike, fspath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videossm.plugins_trt.params import BF16, FP16, FP32, GatedDeltaParams, Params, SelectiveScanParams

Array = NDArray[Any]

DTYPES = {"float32": FP32, "float16": FP16, "bfloat16": BF16}  # bfloat16: that of the package ml_dtypes
OUTPUTS = ("output", "y", "last_state")
ERRORS: dict[int, type[Exception]] = {1: ValueError, 2: NotImplementedError, 3: RuntimeError}  # by videossm_status
NAMES: dict[type[Params], tuple[str, str]] = {
    GatedDeltaParams: ("videossm_gated_delta_scan", "videossm_gated_delta_workspace"),
    SelectiveScanParams: ("videossm_selective_scan", "videossm_selective_scan_workspace"),
}


class ScanLibrary:
    """`libvideossm_scans_cpu.so` or `libvideossm_scans_cuda.so`.

    `workspace_bytes` and `run` take addresses and serve both. `gated_delta_scan` and `selective_scan` take NumPy
    arrays, and are for the CPU's library.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        """Raises OSError for what is no shared library and AttributeError for one without the scans."""
        library = ctypes.CDLL(fspath(path))
        self._scans: dict[type[Params], tuple[Any, Any]] = {}
        for params, (scan_name, workspace_name) in NAMES.items():
            scan, workspace = getattr(library, scan_name), getattr(library, workspace_name)
            scan.argtypes, scan.restype = [ctypes.POINTER(params), ctypes.c_void_p], ctypes.c_int
            workspace.argtypes, workspace.restype = [ctypes.POINTER(params)], ctypes.c_size_t
            self._scans[params] = scan, workspace
        self._last_error = library.videossm_last_error
        self._last_error.restype = ctypes.c_char_p

    def workspace_bytes(self, params: Params) -> int:
        """What `params.workspace` must have; 0 for sizes that `run` will refuse."""
        size: int = self._scans[type(params)][1](ctypes.byref(params))
        return size

    def run(self, params: Params, stream: int = 0) -> None:
        """`stream`: the address of a CUDA stream.

        Raises ValueError, NotImplementedError (a size or type without a kernel) or RuntimeError (the device refused).
        """
        if status := self._scans[type(params)][0](ctypes.byref(params), stream):
            raise ERRORS[status](self._last_error().decode())

    def gated_delta_scan(
        self,
        query: Array | None,
        key: Array,
        value: Array,
        decay: Array,
        beta: Array,
        state: Array,
        scale: float,
        *,
        normalize_key: bool = False,
        normalize_query: bool = False,
        output: Array | None = None,
        last_state: Array | None = None,
        workspace: Array | None = None,
    ) -> tuple[Array | None, Array]:
        """query, key [B, T, H, d_k], value [B, T, H, d_v] in fp32, fp16 or bf16; decay, beta [B, T, H] and state
        [B, H, d_k, d_v] in fp32. Without `query` only the state is wanted.

        `output`, `last_state` (which may be `state`) and `workspace` are written in place if given and made if not.

        Returns the output [B, T, H, d_v] in value's type, None without `query`, and the last state. Raises ValueError.
        """
        dtype = _dtype("key", key)
        if key.ndim != 4 or value.ndim != 4:
            raise ValueError(f"key, value: got {key.ndim} and {value.ndim} dimensions, expected [B, T, H, d]")
        batch, tokens, heads, key_dim = key.shape
        value_dim = value.shape[3]
        if query is not None and output is None:
            output = np.empty(value.shape, value.dtype)
        if last_state is None:
            last_state = np.empty((batch, heads, key_dim, value_dim), np.float32)
        tensors = {
            "query": (query, key.shape, key.dtype),
            "key": (key, key.shape, key.dtype),
            "value": (value, (batch, tokens, heads, value_dim), key.dtype),
            "decay": (decay, (batch, tokens, heads), np.float32),
            "beta": (beta, (batch, tokens, heads), np.float32),
            "state": (state, (batch, heads, key_dim, value_dim), np.float32),
            "output": (output, (batch, tokens, heads, value_dim), key.dtype),
            "last_state": (last_state, (batch, heads, key_dim, value_dim), np.float32),
        }
        params = GatedDeltaParams(
            batch,
            tokens,
            heads,
            key_dim,
            value_dim,
            dtype,
            scale,
            normalize_key,
            normalize_query,
            **{name: _address(name, *tensor) for name, tensor in tensors.items()},
        )
        self._run_with_workspace(params, workspace)
        return output, last_state

    def selective_scan(
        self,
        u: Array,
        delta: Array,
        A: Array,
        B: Array,
        C: Array | None,
        state: Array,
        D: Array | None = None,
        z: Array | None = None,
        delta_bias: Array | None = None,
        delta_softplus: bool = False,
        *,
        y: Array | None = None,
        last_state: Array | None = None,
        workspace: Array | None = None,
    ) -> tuple[Array | None, Array]:
        """u, delta, z [B, D, T], B, C [B, N, T] in fp32, fp16 or bf16; A [D, N], D, delta_bias [D], state [B, D, N] in
        fp32. Without `C` only the state is wanted.

        `y`, `last_state` (which may be `state`) and `workspace` are written in place if given and made if not.

        Returns y [B, D, T] in u's type, None without `C`, and the last state. Raises ValueError.
        """
        dtype = _dtype("u", u)
        if u.ndim != 3 or A.ndim != 2:
            raise ValueError(f"u, A: got {u.ndim} and {A.ndim} dimensions, expected [B, D, T] and [D, N]")
        batch, channels, tokens = u.shape
        state_dim = A.shape[1]
        if C is not None and y is None:
            y = np.empty(u.shape, u.dtype)
        if last_state is None:
            last_state = np.empty((batch, channels, state_dim), np.float32)
        tensors = {
            "u": (u, u.shape, u.dtype),
            "delta": (delta, u.shape, u.dtype),
            "A": (A, (channels, state_dim), np.float32),
            "B": (B, (batch, state_dim, tokens), u.dtype),
            "C": (C, (batch, state_dim, tokens), u.dtype),
            "state": (state, (batch, channels, state_dim), np.float32),
            "D": (D, (channels,), np.float32),
            "z": (z, u.shape, u.dtype),
            "delta_bias": (delta_bias, (channels,), np.float32),
            "y": (y, u.shape, u.dtype),
            "last_state": (last_state, (batch, channels, state_dim), np.float32),
        }
        params = SelectiveScanParams(
            batch,
            channels,
            tokens,
            state_dim,
            dtype,
            delta_softplus,
            **{name: _address(name, *tensor) for name, tensor in tensors.items()},
        )
        self._run_with_workspace(params, workspace)
        return y, last_state

    def _run_with_workspace(self, params: Params, workspace: Array | None) -> None:
        if workspace is None:
            workspace = np.empty(self.workspace_bytes(params), np.uint8)
        params.workspace, params.workspace_bytes = workspace.ctypes.data, workspace.nbytes
        self.run(params)


def _dtype(name: str, array: Array) -> int:
    dtype = DTYPES.get(array.dtype.name)
    if dtype is None:
        raise ValueError(f"{name}: got {array.dtype}, expected one of {', '.join(DTYPES)}")
    return dtype


def _address(name: str, array: Array | None, shape: tuple[int, ...], dtype: Any) -> int:
    """0 for None. Raises ValueError for an array of another shape, type or layout."""
    if array is None:
        return 0
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{name}: got {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: got an array with strides, expected C order; call numpy.ascontiguousarray")
    if name in OUTPUTS and not array.flags.writeable:
        raise ValueError(f"{name}: got a read-only array, expected one to write to")
    return array.ctypes.data
