"""Times of the CUDA scans over the grid, of other implementations in turn with them, and the device's own rates."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from scan_cases import TORCH_DTYPES, GatedCase, Results, SelectiveCase, Tensors, errors, given
from scan_floors import (
    GatedShape,
    Rates,
    Shape,
    clocked_rates,
    floor,
    is_of_videossm,
    tensor_rates,
)
from scan_peers import Peer, Run

from videossm.plugins_trt import ScanLibrary
from videossm.plugins_trt.params import Params

CALLS = 20  # of each, timed
WARM_UP = 3
FASTEST_CLOCK_HZ = 3e9  # of any device: a wait in cycles then takes as long as it should, or longer
LONGEST_WAIT_S = 0.2
COPY_BYTES = 2 << 30
GEMM_SIZE = 8192
CLOCK_RATE = 13  # CU_DEVICE_ATTRIBUTE_CLOCK_RATE, in kHz
DIFFERENCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 2e-2}  # relative: above, the two do not compute the same

TIMING = (
    f"Median of {CALLS} calls by CUDA events, taking turns call by call. Before each the second-level cache is "
    "overwritten, and the device waits until the host has queued the call: a launch from Python costs nothing here."
)


def measure_rates() -> Rates:
    """Bandwidth and tensor cores by a copy and matrix products, the rest by the clock and multiprocessors."""
    properties = torch.cuda.get_device_properties(0)
    size = min(COPY_BYTES, properties.total_memory // 8)
    source = torch.zeros(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_ms = clocked({"copy": partial(target.copy_, source)}, None)["copy"]["min_ms"]
    del source, target

    def product_flops(dtype: torch.dtype, tf32: bool = False) -> float:
        a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, device="cuda").to(dtype) for _ in range(2))
        before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, tf32
        ms = clocked({"product": partial(torch.matmul, a, b)}, None)["product"]["min_ms"]
        torch.backends.cuda.matmul.allow_tf32 = before
        return 2 * GEMM_SIZE**3 / (ms / 1000)

    half = {name: product_flops(TORCH_DTYPES[name]) for name in ("fp16", "bf16")}
    tf32 = product_flops(torch.float32, tf32=True)
    architecture = f"{properties.major}{properties.minor}"
    clocked_by = clocked_rates(architecture, properties.multi_processor_count, clock_hz())
    moved = 2 * size / (copy_ms / 1000)
    return Rates(properties.name, "measured", moved, tensor_rates(half, tf32), *clocked_by)


def clock_hz() -> float:
    """The highest of the device, from the driver."""
    value = ctypes.c_int()
    driver = ctypes.CDLL("libcuda.so.1")
    if status := driver.cuDeviceGetAttribute(ctypes.byref(value), CLOCK_RATE, torch.cuda.current_device()):
        raise RuntimeError(f"clock: got error {status} from the driver, expected its rate")
    return 1000.0 * value.value


def flush_buffer() -> torch.Tensor:
    """Twice the second-level cache."""
    size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
    return torch.empty(max(size, 64 << 20), dtype=torch.uint8, device="cuda")


def clocked(runs: dict[str, Callable[[], object]], flush: torch.Tensor | None) -> dict[str, dict[str, float]]:
    """`ms`, the median, and `min_ms` of each, which take turns."""
    waits = {name: _wait_cycles(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(CALLS):
        for name, run in runs.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(waits[name])
            if flush is not None:
                flush.zero_()
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(stop))
    return {name: {"ms": median(taken), "min_ms": min(taken)} for name, taken in times.items()}


def _wait_cycles(run: Callable[[], object]) -> int:
    """As long as the host needs to queue the call, twice."""
    for _ in range(WARM_UP):
        run()
    torch.cuda.synchronize()
    start = perf_counter()
    run()
    queued_s = perf_counter() - start
    torch.cuda.synchronize()
    return int(FASTEST_CLOCK_HZ * min(2 * queued_s + 1e-4, LONGEST_WAIT_S))


def make_tensors(shape: Shape, device: str = "cuda") -> Tensors:
    """Made on the device: the host would take longer than all calls."""
    torch.manual_seed(0)
    dtype = TORCH_DTYPES[shape.dtype]

    def normal(*sizes: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(sizes, device=device, dtype=kind)

    if isinstance(shape, GatedShape):
        gates = (1, shape.tokens, shape.heads)
        tensors: Tensors = {name: normal(*gates, shape.dim, kind=dtype) for name in ("query", "key", "value")}
        gates_of = {"decay": -0.1 * normal(*gates).exp(), "beta": normal(*gates).sigmoid()}
        return {**tensors, **gates_of, "state": normal(1, shape.heads, shape.dim, shape.dim)}
    rows, columns = (1, shape.channels, shape.tokens), (1, shape.states, shape.tokens)
    tensors = {name: normal(*rows, kind=dtype) for name in ("u", "z")}
    tensors |= {name: normal(*columns, kind=dtype) for name in ("B", "C")}
    steps = {"delta": (normal(*rows) - 3).to(dtype), "delta_bias": 0.1 * normal(shape.channels)}
    A = -torch.arange(1, shape.states + 1, device=device, dtype=torch.float32).repeat(shape.channels, 1)
    state = torch.zeros(1, shape.channels, shape.states, device=device)  # mamba-ssm starts there
    return {**tensors, **steps, "A": A, "D": normal(shape.channels), "state": state}


@dataclass(frozen=True)
class OurCall:
    """`kept`: what params has the addresses of, since an address keeps nothing alive."""

    library: ScanLibrary
    params: Params
    stream: int
    results: Results
    kept: tuple[object, ...]

    def __call__(self) -> Results:
        self.library.run(self.params, self.stream)
        return self.results


def make_ours(library: ScanLibrary, shape: Shape, tensors: Tensors) -> tuple[Run, int]:
    """The call, and the bytes of its workspace."""
    value, state = given(tensors, "value" if isinstance(shape, GatedShape) else "u"), given(tensors, "state")
    output, last, wanted = torch.empty_like(value), torch.empty_like(state), True
    if isinstance(shape, GatedShape):
        wanted = shape.wanted
        case = GatedCase(shape.dtype, shape.tokens, shape.dim, shape.dim, heads=shape.heads, wanted=wanted)
        params: Params = case.params()
        params.output = output.data_ptr() if wanted else 0
    else:
        params = SelectiveCase(shape.dtype, shape.tokens, shape.channels, shape.states, batch=1).params()
        params.y = output.data_ptr()
    for name, tensor in tensors.items():
        setattr(params, name, tensor.data_ptr() if tensor is not None else 0)
    params.last_state = last.data_ptr()
    workspace = torch.empty(library.workspace_bytes(params), dtype=torch.uint8, device=value.device)
    params.workspace, params.workspace_bytes = workspace.data_ptr(), workspace.numel()
    stream = torch.cuda.current_stream().cuda_stream if value.is_cuda else 0

    kept = (tensors, workspace, output, last)
    return OurCall(library, params, stream, (output if wanted else None, last), kept), workspace.numel()


def measure(library: ScanLibrary, shape: Shape, peers: list[Peer], rates: Rates, flush: torch.Tensor) -> dict[str, Any]:
    """A shape's times and floor; at VideoSSM's shapes beside the peers, after their results were compared."""
    tensors = make_tensors(shape)
    ours, workspace = make_ours(library, shape, tensors)
    runs: dict[str, Callable[[], object]] = {"ours": ours}
    left_out, differences = {}, {}
    for peer in peers if is_of_videossm(shape) else []:
        found = compared(peer, ours(), tensors, shape)
        if isinstance(found, str):
            left_out[peer.name] = found
        else:
            runs[peer.name], differences[peer.name] = found
    times = clocked(runs, flush)
    our_ms = times["ours"]["ms"]
    counted = floor(shape, rates)
    beside = {
        name: {**times[name], "ratio": times[name]["ms"] / our_ms, "difference": difference}
        for name, difference in differences.items()
    }
    row = {**asdict(shape), "of_videossm": is_of_videossm(shape), "workspace_bytes": workspace, **times["ours"]}
    return {**row, **counted, "of_floor": counted["floor_ms"] / our_ms, "peers": beside, "left_out": left_out}


def compared(peer: Peer, ours: Results, tensors: Tensors, shape: Shape) -> tuple[Run, float] | str:
    """A peer's call and how far its results are from ours, or why it takes no turn."""
    if peer.make is None:
        return peer.missing
    try:
        run = peer.make(tensors)
        output, state = run()
    except Exception as error:  # whatever a peer raises at a shape that it does not take, out of memory included
        gc.collect()
        torch.cuda.empty_cache()
        return f"{type(error).__name__}: {error}".splitlines()[0]
    expected = None if output is None else output.double()
    difference = max(errors(ours, (expected, state.double())))
    if not difference <= DIFFERENCE[shape.dtype]:
        return f"got a relative difference of {difference:.1e}, expected at most {DIFFERENCE[shape.dtype]:.0e}"
    return run, difference
