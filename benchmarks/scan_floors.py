"""What the scans cost at least: the bytes and operations that they cannot do without, against the rates of a device.

Bytes: every input read once and every output written once. A workspace is not counted.

GatedDeltaScan: products of the chunk form in the kernels' blocks of tokens, of triangles the half that is not 0, on
tensor cores. SelectiveScan: for each state of each token dt A, dt B u, and two multiply-adds in fp32, and an
exponential in the units for special functions, which also take 1 for a softplus and 2 for a SiLU.

A head's blocks of tokens come one after the other, and so do a channel's tokens: with few heads or channels it is the
time from one to the next that limits, which no floor counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

DTYPES = ("fp16", "bf16", "fp32")
NUMBER_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
BLOCK_TOKENS = {"fp32": 16, "fp16": 32, "bf16": 32}  # BLOCK of plugins_trt/kernels/gated_delta.h
TF32_PRODUCTS = 3  # that one of fp32 takes

# Of a multiprocessor and clock: CUDA's programming guide, "Throughput of Native Arithmetic Instructions".
FP32_LANES = {"80": 64}
FP32_LANES_ELSE = 128
SPECIAL_LANES = 16


@dataclass(frozen=True)
class Rates:
    """`fp32_per_s`: instructions, a multiply-add is one. `special_per_s`: exponentials or reciprocals."""

    device: str
    source: str
    bytes_per_s: float
    tensor_flops_per_s: dict[str, float]  # by dtype
    fp32_per_s: float
    special_per_s: float


def clocked_rates(architecture: str, multiprocessors: int, clock_hz: float) -> tuple[float, float]:
    """`fp32_per_s` and `special_per_s`."""
    cycles = multiprocessors * clock_hz
    return FP32_LANES.get(architecture, FP32_LANES_ELSE) * cycles, SPECIAL_LANES * cycles


def tensor_rates(half_flops: dict[str, float], tf32_flops: float) -> dict[str, float]:
    return {**half_flops, "fp32": tf32_flops / TF32_PRODUCTS}


H200 = Rates(
    "H200",
    "data sheet",
    4.8e12,
    tensor_rates({"fp16": 989e12, "bf16": 989e12}, 494e12),
    *clocked_rates("90", 132, 1.98e9),
)


@dataclass(frozen=True)
class Work:
    bytes: int
    tensor_flops: int = 0
    fp32: int = 0
    special: int = 0

    def times_ms(self, rates: Rates, dtype: str) -> dict[str, float]:
        """By what is waited for; the floor is the longest."""
        seconds = {
            "bytes": self.bytes / rates.bytes_per_s,
            "tensor cores": self.tensor_flops / rates.tensor_flops_per_s[dtype],
            "fp32": self.fp32 / rates.fp32_per_s,
            "special functions": self.special / rates.special_per_s,
        }
        return {name: 1000 * time for name, time in seconds.items() if time}


@dataclass(frozen=True)
class GatedShape:
    tokens: int
    heads: int
    dim: int  # d_k and d_v
    dtype: str
    wanted: bool  # an output

    def work(self) -> Work:
        rows, square = self.tokens * self.heads, self.dim**2
        tensors, triangle = (4, 2) if self.wanted else (2, 1), BLOCK_TOKENS[self.dtype] + 1
        size = rows * (tensors[0] * self.dim * NUMBER_BYTES[self.dtype] + 2 * 4) + 2 * 4 * self.heads * square
        # S^T k and what is added to S, and S^T q; then k . k and the inverse's, and q . k and the attention's.
        flops = rows * ((6 if self.wanted else 4) * square + tensors[1] * triangle * 2 * self.dim)
        return Work(size, flops)


@dataclass(frozen=True)
class SelectiveShape:
    """With D, z, delta_bias and softplus, as in a Mamba block."""

    tokens: int
    channels: int
    states: int
    dtype: str

    def work(self) -> Work:
        rows, updates = self.tokens * self.channels, self.tokens * self.channels * self.states
        numbers = 4 * rows + 2 * self.tokens * self.states  # u, delta, z, y; B, C
        singles = 3 * self.channels * self.states + 2 * self.channels  # A and both states; D, delta_bias
        size = NUMBER_BYTES[self.dtype] * numbers + 4 * singles
        return Work(size, fp32=4 * updates, special=updates + 3 * rows)


Shape = GatedShape | SelectiveShape


def gated_grid() -> list[GatedShape]:
    sizes = product((192, 1170, 1560, 4680), (4, 12, 360), (32, 64, 128), DTYPES, (True, False))
    return [GatedShape(*size) for size in sizes]


def selective_grid() -> list[SelectiveShape]:
    sizes = product((1, 256, 1560, 4096, 16384), (1536, 4096, 8192), (8, 16, 64), DTYPES)
    return [SelectiveShape(*size) for size in sizes]


def is_of_videossm(shape: Shape) -> bool:
    """A shape that VideoSSM runs: where other implementations take turns with ours.

    Its memory has 12 heads of 128 a layer and 30 layers, 4 heads of 32 in `shapes`. A state-space layer in place of
    the memory would have its width in channels; the long scan is that of the floor which is to be met.
    """
    if isinstance(shape, GatedShape):
        sizes = (shape.tokens, shape.heads, shape.dim)
        return sizes == (192, 4, 32) or (shape.tokens >= 1170 and shape.heads >= 12 and shape.dim == 128)
    return (shape.tokens, shape.channels, shape.states) in ((1, 1536, 16), (1560, 1536, 16), (16384, 4096, 16))


def floor(shape: Shape, rates: Rates) -> dict[str, Any]:
    """What is counted, the floor in ms, and what it is a floor of."""
    work = shape.work()
    times = work.times_ms(rates, shape.dtype)
    bound = max(times, key=lambda name: times[name])
    return {**asdict(work), "floor_ms": times[bound], "bound": bound, "times_ms": times}
