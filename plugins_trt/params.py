"""The parameters of `include/videossm/scans.h` as ctypes sees them. Pointers are integers, 0 for null.

In Python the members are named as there; sizes count elements. Members that are not given are 0.
"""

from __future__ import annotations

from ctypes import Structure, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p

FP32, FP16, BF16 = 0, 1, 2  # videossm_dtype


class GatedDeltaParams(Structure):
    """videossm_gated_delta_params."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "tokens", "heads", "key_dim", "value_dim")),
        ("dtype", c_int),
        ("scale", c_float),
        *((name, c_int32) for name in ("normalize_key", "normalize_query")),
        *((name, c_void_p) for name in ("query", "key", "value", "decay", "beta", "state", "output", "last_state")),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


class SelectiveScanParams(Structure):
    """videossm_selective_scan_params."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "channels", "tokens", "state_dim")),
        ("dtype", c_int),
        ("delta_softplus", c_int32),
        *((name, c_void_p) for name in ("u", "delta", "A", "B", "C", "state", "D", "z", "delta_bias")),
        *((name, c_void_p) for name in ("y", "last_state", "workspace")),
        ("workspace_bytes", c_size_t),
    )


Params = GatedDeltaParams | SelectiveScanParams
