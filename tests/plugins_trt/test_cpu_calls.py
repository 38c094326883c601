"""How the scans on the CPU are called: refused arguments, workspace, threads, states in place.

Numbers are compared with references in test_cpu_scans.py.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from videossm.plugins_trt import GatedDeltaParams, ScanLibrary, SelectiveScanParams

Array = NDArray[Any]
Arrays = dict[str, Array]
Params = GatedDeltaParams | SelectiveScanParams

CANARY = 0xA5
GATED = {"batch": 2, "tokens": 5, "heads": 3, "key_dim": 8, "value_dim": 4}
SELECTIVE = {"batch": 2, "channels": 6, "tokens": 5, "state_dim": 4}
GATED_INPUTS = ("query", "key", "value", "decay", "beta")
SELECTIVE_INPUTS = ("u", "delta", "A", "B", "C")
HUGE = 1 << 37


def gated_arrays(batch: int, tokens: int, heads: int, key_dim: int, value_dim: int) -> Arrays:
    """Inputs, then outputs."""
    noise = np.random.default_rng(tokens)
    shapes = {
        "query": (batch, tokens, heads, key_dim),
        "key": (batch, tokens, heads, key_dim),
        "value": (batch, tokens, heads, value_dim),
        "decay": (batch, tokens, heads),
        "beta": (batch, tokens, heads),
        "state": (batch, heads, key_dim, value_dim),
        "output": (batch, tokens, heads, value_dim),
        "last_state": (batch, heads, key_dim, value_dim),
    }
    arrays = {name: noise.random(shape, np.float32) / key_dim for name, shape in shapes.items()}
    return arrays | {"decay": -arrays["decay"]}


def selective_arrays(batch: int, channels: int, tokens: int, state_dim: int) -> Arrays:
    noise = np.random.default_rng(tokens)
    rows, columns, states = (batch, channels, tokens), (batch, state_dim, tokens), (batch, channels, state_dim)
    shapes = {
        "u": rows,
        "delta": rows,
        "A": states[1:],
        "B": columns,
        "C": columns,
        "state": states,
        "D": (channels,),
        "z": rows,
        "delta_bias": (channels,),
        "y": rows,
        "last_state": states,
    }
    arrays = {name: noise.random(shape, np.float32) for name, shape in shapes.items()}
    return arrays | {"A": -arrays["A"]}


class Call:
    """Parameters that are accepted, and the memory that they point at."""

    def __init__(self, library: ScanLibrary, scan: str) -> None:
        sizes = GATED if scan == "gated_delta" else SELECTIVE
        arrays = gated_arrays(**GATED) if scan == "gated_delta" else selective_arrays(**SELECTIVE)
        # Far apart: a larger tensor in the place of another must not reach a third one.
        self.memory = np.zeros((len(arrays), 1024), np.float32)
        pointers = {}
        for name, array, memory in zip(arrays, arrays.values(), self.memory, strict=True):
            memory[: array.size] = array.ravel()
            pointers[name] = memory.ctypes.data
        params = GatedDeltaParams if scan == "gated_delta" else SelectiveScanParams
        self.params: Params = params(**sizes, **pointers)
        self.workspace = np.empty(library.workspace_bytes(self.params), np.uint8)
        self.params.workspace, self.params.workspace_bytes = self.workspace.ctypes.data, self.workspace.nbytes
        library.run(self.params)


@pytest.mark.parametrize("scan", ["gated_delta", "selective_scan"])
def test_null_parameters_are_refused(cpu_library_path: Path, scan: str) -> None:
    library = ctypes.CDLL(str(cpu_library_path))
    library.videossm_last_error.restype = ctypes.c_char_p
    name = "videossm_gated_delta" if scan == "gated_delta" else "videossm_selective_scan"
    run = library.videossm_gated_delta_scan if scan == "gated_delta" else library.videossm_selective_scan
    assert run(None, None) == 1
    assert library.videossm_last_error().startswith(b"params: got null, expected")
    assert getattr(library, f"{name}_workspace")(None) == 0


@pytest.mark.parametrize(
    ("scan", "name", "value", "got"),
    [
        *(("gated_delta", name, value, str(value)) for name in GATED for value in (0, -3)),
        *(("selective_scan", name, value, str(value)) for name in SELECTIVE for value in (0, -3)),
        *(("gated_delta", name, 2, "2") for name in ("normalize_key", "normalize_query")),
        ("gated_delta", "scale", np.nan, "nan"),
        ("gated_delta", "scale", np.inf, "inf"),
        ("selective_scan", "delta_softplus", -1, "-1"),
        *((scan, "dtype", value, str(value)) for scan in ("gated_delta", "selective_scan") for value in (-1, 3)),
    ],
)
def test_wrong_sizes_and_flags_are_refused(
    cpu_library: ScanLibrary, scan: str, name: str, value: float, got: str
) -> None:
    call = Call(cpu_library, scan)
    setattr(call.params, name, value)
    assert cpu_library.workspace_bytes(call.params) == 0
    with pytest.raises(ValueError, match=f"^{name}: got {got}, expected"):
        cpu_library.run(call.params)


@pytest.mark.parametrize(
    ("scan", "sizes", "tensor"),
    [
        ("gated_delta", {"tokens": HUGE}, "key"),
        ("gated_delta", {"batch": 1 << 62, "heads": 1 << 62}, "key"),
        ("gated_delta", {"value_dim": 1 << 40}, "value"),
        ("gated_delta", {"key_dim": 1 << 20, "value_dim": 1 << 20}, "state"),
        ("selective_scan", {"tokens": HUGE}, "u"),
        ("selective_scan", {"state_dim": 1 << 40}, "B"),
        ("selective_scan", {"channels": 1 << 20, "state_dim": 1 << 20}, "state"),
    ],
)
def test_sizes_that_overflow_are_refused(
    cpu_library: ScanLibrary, scan: str, sizes: dict[str, int], tensor: str
) -> None:
    call = Call(cpu_library, scan)
    for name, value in sizes.items():
        setattr(call.params, name, value)
    assert cpu_library.workspace_bytes(call.params) == 0
    with pytest.raises(ValueError, match=f"^sizes of {tensor}: got more than 2"):
        cpu_library.run(call.params)


@pytest.mark.parametrize(
    ("scan", "name"),
    [
        *(("gated_delta", name) for name in (*GATED_INPUTS, "state", "last_state")),
        *(("selective_scan", name) for name in (*SELECTIVE_INPUTS, "state", "last_state")),
        *((scan, "workspace") for scan in ("gated_delta", "selective_scan")),
    ],
)
def test_missing_tensors_are_refused(cpu_library: ScanLibrary, scan: str, name: str) -> None:
    call = Call(cpu_library, scan)
    setattr(call.params, name, None)
    with pytest.raises(ValueError, match=f"^{name}: got null, expected"):
        cpu_library.run(call.params)


@pytest.mark.parametrize(
    ("scan", "name"),
    [
        *(("gated_delta", name) for name in gated_arrays(**GATED)),
        *(("selective_scan", name) for name in selective_arrays(**SELECTIVE)),
    ],
)
def test_misaligned_tensors_are_refused(cpu_library: ScanLibrary, scan: str, name: str) -> None:
    call = Call(cpu_library, scan)
    setattr(call.params, name, getattr(call.params, name) + 2)
    with pytest.raises(ValueError, match=rf"^{name}: got address 0x\w+, expected a multiple of 4"):
        cpu_library.run(call.params)


@pytest.mark.parametrize(
    ("scan", "name", "other"),
    [
        *(("gated_delta", name, "output") for name in ("query", "key", "value", "decay", "beta", "state")),
        *(("gated_delta", name, "last_state") for name in ("query", "key", "value", "decay", "beta", "output")),
        *(("selective_scan", name, "y") for name in ("u", "delta", "A", "B", "C", "state", "D", "z", "delta_bias")),
        *(
            ("selective_scan", name, "last_state")
            for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "y")
        ),
    ],
)
def test_overlapping_tensors_are_refused(cpu_library: ScanLibrary, scan: str, name: str, other: str) -> None:
    call = Call(cpu_library, scan)
    setattr(call.params, name, getattr(call.params, other))
    with pytest.raises(ValueError, match=rf"^{other}: got memory of {name}, expected memory of its own"):
        cpu_library.run(call.params)


@pytest.mark.parametrize("scan", ["gated_delta", "selective_scan"])
def test_a_shifted_state_and_tensors_in_the_workspace_are_refused(cpu_library: ScanLibrary, scan: str) -> None:
    call = Call(cpu_library, scan)
    state = call.params.state
    call.params.state = call.params.last_state + 4
    with pytest.raises(ValueError, match=r"^last_state: got memory of state"):
        cpu_library.run(call.params)
    call.params.state = call.workspace.ctypes.data // 4 * 4 + 8
    with pytest.raises(ValueError, match=r"^workspace: got memory of state"):
        cpu_library.run(call.params)
    call.params.state = state
    cpu_library.run(call.params)


@pytest.mark.parametrize("scan", ["gated_delta", "selective_scan"])
def test_a_small_workspace_is_refused(cpu_library: ScanLibrary, scan: str) -> None:
    call = Call(cpu_library, scan)
    needed = call.params.workspace_bytes
    call.params.workspace_bytes = needed - 1
    with pytest.raises(ValueError, match=f"^workspace_bytes: got {needed - 1}, expected at least {needed}"):
        cpu_library.run(call.params)


def test_what_is_not_read_may_be_anything(cpu_library: ScanLibrary) -> None:
    gated, selective = Call(cpu_library, "gated_delta"), Call(cpu_library, "selective_scan")
    gated.params.output, gated.params.query = None, 3
    selective.params.y = None
    selective.params.C = selective.params.D = selective.params.z = 3
    cpu_library.run(gated.params)
    cpu_library.run(selective.params)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("VIDEOSSM_THREADS", "0", "VIDEOSSM_THREADS: got 0, expected a number from 1 to"),
        ("VIDEOSSM_THREADS", "two", "VIDEOSSM_THREADS: got two, expected a number from 1 to"),
        ("VIDEOSSM_CPU", "avx9", "VIDEOSSM_CPU: got avx9, expected"),
    ],
)
@pytest.mark.parametrize("scan", ["gated_delta", "selective_scan"])
def test_wrong_settings_are_refused(
    cpu_library: ScanLibrary, monkeypatch: pytest.MonkeyPatch, scan: str, variable: str, value: str, expected: str
) -> None:
    call = Call(cpu_library, scan)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"^{expected}"):
        cpu_library.run(call.params)


def test_the_binding_refuses_what_the_library_cannot_see(cpu_library: ScanLibrary) -> None:
    arrays = gated_arrays(**GATED)
    with pytest.raises(ValueError, match=r"^value: got float32 \(2, 4, 3, 4\), expected float32 \(2, 5, 3, 4\)"):
        cpu_library.gated_delta_scan(**arrays | {"value": np.zeros((2, 4, 3, 4), np.float32)}, scale=1.0)
    with pytest.raises(ValueError, match=r"^decay: got float64"):
        cpu_library.gated_delta_scan(**arrays | {"decay": arrays["decay"].astype(np.float64)}, scale=1.0)
    with pytest.raises(ValueError, match=r"^state: got an array with strides"):
        cpu_library.gated_delta_scan(**arrays | {"state": np.asfortranarray(arrays["state"])}, scale=1.0)
    with pytest.raises(ValueError, match=r"^key: got int64, expected one of float32, float16, bfloat16"):
        cpu_library.gated_delta_scan(**arrays | {"key": arrays["key"].astype(np.int64)}, scale=1.0)
    frozen = arrays["last_state"].copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r"^last_state: got a read-only array"):
        cpu_library.gated_delta_scan(**arrays | {"last_state": frozen}, scale=1.0)
    other = selective_arrays(**SELECTIVE)
    with pytest.raises(ValueError, match=r"^u, A: got 2 and 2 dimensions"):
        cpu_library.selective_scan(**other | {"u": other["u"][0]})


def test_state_in_place(cpu_library: ScanLibrary) -> None:
    gated, selective = gated_arrays(1, 65, 2, 32, 24), selective_arrays(2, 21, 65, 8)
    expected = cpu_library.gated_delta_scan(**gated, scale=1.0)[1].copy()
    state = gated["state"].copy()
    cpu_library.gated_delta_scan(**gated | {"state": state, "last_state": state}, scale=1.0)
    np.testing.assert_array_equal(state, expected)

    expected = cpu_library.selective_scan(**selective)[1].copy()
    state = selective["state"].copy()
    cpu_library.selective_scan(**selective | {"state": state, "last_state": state})
    np.testing.assert_array_equal(state, expected)


@pytest.mark.usefixtures("all_processors")
@pytest.mark.parametrize("threads", ["1", "2", "5"])
@pytest.mark.parametrize("offset", [0, 1, 64])
@pytest.mark.parametrize("scan", ["gated_delta", "selective_scan"])
def test_workspace_is_what_it_was_said_to_be(
    cpu_library: ScanLibrary, monkeypatch: pytest.MonkeyPatch, scan: str, offset: int, threads: str
) -> None:
    monkeypatch.setenv("VIDEOSSM_THREADS", threads)
    run: Callable[..., tuple[Array, Array]]
    if scan == "gated_delta":
        arrays = gated_arrays(2, 192, 2, 48, 80)
        params: Params = GatedDeltaParams(2, 192, 2, 48, 80, 0, 1.0)
        run = partial(cpu_library.gated_delta_scan, **arrays, scale=1.0)
    else:
        arrays = selective_arrays(2, 50, 500, 7)
        params = SelectiveScanParams(2, 50, 500, 7)
        run = partial(cpu_library.selective_scan, **arrays)
    expected = [array.copy() for array in run()]
    size = cpu_library.workspace_bytes(params)
    memory = np.full(size + 4096, CANARY, np.uint8)
    memory[offset : offset + size] = 0xFF  # NaN
    for actual, wanted in zip(run(workspace=memory[offset : offset + size]), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    assert (memory[:offset] == CANARY).all(), "workspace: got writes before it, expected none"
    assert (memory[offset + size :] == CANARY).all(), "workspace: got writes behind it, expected none"


@pytest.mark.usefixtures("all_processors")
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("instructions", ["", "generic"])
def test_threads_change_no_bit(
    cpu_library: ScanLibrary, monkeypatch: pytest.MonkeyPatch, heads: int, instructions: str
) -> None:
    monkeypatch.setenv("VIDEOSSM_CPU", instructions)
    gated, selective = gated_arrays(1, 300, heads, 64, 72), selective_arrays(heads, 100, 300, 16)
    results = []
    for threads in ("1", "2", "7"):
        monkeypatch.setenv("VIDEOSSM_THREADS", threads)
        outputs = cpu_library.gated_delta_scan(**gated, scale=1.0) + cpu_library.selective_scan(**selective)
        results.append([array.copy() for array in outputs])
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.usefixtures("all_processors")
def test_calls_from_many_threads(cpu_library: ScanLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSSM_THREADS", "2")
    inputs = gated_arrays(1, 500, 4, 64, 64)
    del inputs["output"], inputs["last_state"]
    expected = cpu_library.gated_delta_scan(**inputs, scale=1.0)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: cpu_library.gated_delta_scan(**inputs, scale=1.0), range(16)):
            for actual, wanted in zip(result, expected, strict=True):
                np.testing.assert_array_equal(actual, wanted)


@pytest.mark.usefixtures("all_processors")
def test_a_forked_child_has_threads_of_its_own(cpu_library_path: Path) -> None:
    script = f"""
import os, numpy as np
from videossm.plugins_trt import ScanLibrary
os.environ["VIDEOSSM_THREADS"] = "3"
library = ScanLibrary({str(cpu_library_path)!r})
rows, gates, state = (np.full(shape, 0.1, np.float32) for shape in ((1, 600, 4, 64), (1, 600, 4), (1, 4, 64, 64)))
scan = lambda: library.gated_delta_scan(rows, rows, rows, -gates, gates, state, 1.0)[1]
first = scan()
child = os.fork()
same = np.array_equal(scan(), first)
if child == 0:
    os._exit(0 if same else 1)
assert same and os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
