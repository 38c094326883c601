"""Devices by their makers' published figures: dense, at the boost clock, which no long run holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from videossm.runtime.errors import UserError

TF32 = "tf32"  # of fp32 products whose factors are read with 10 bits


@dataclass(frozen=True)
class Device:
    """`flops`: a second, by the type of a product: 16 bits, fp8 and TF32 with sums in fp32; fp32 by no tensor core."""

    name: str
    source: str
    memory_bytes: int
    bytes_per_s: float
    flops: Mapping[str, float]

    def rate(self, dtype: str) -> float:
        """FLOPs a second; types that a device does not multiply, it multiplies in 16 bits."""
        return self.flops.get(dtype) or self.flops["bfloat16"]


def _flops(half: float, eight_bit_float: float | None, int8: float, tf32: float, float32: float) -> dict[str, float]:
    found = {"float16": half, "bfloat16": half, "int8": int8, "uint8": int8, TF32: tf32, "float32": float32}
    if eight_bit_float is not None:
        found["float8_e4m3fn"] = eight_bit_float
    return {dtype: 1e12 * rate for dtype, rate in found.items()}


GB = 10**9
DEVICES = {
    "h200": Device("H200 SXM", "NVIDIA H200 data sheet", 141 * GB, 4.8e12, _flops(989.5, 1979, 1979, 494.7, 67)),
    "h100": Device("H100 SXM", "NVIDIA H100 data sheet", 80 * GB, 3.35e12, _flops(989.5, 1979, 1979, 494.7, 67)),
    "a100": Device("A100 SXM 80 GB", "NVIDIA A100 data sheet", 80 * GB, 2.039e12, _flops(312, None, 624, 156, 19.5)),
    "l40s": Device("L40S", "NVIDIA L40S data sheet", 48 * GB, 864e9, _flops(362, 733, 733, 183, 91.6)),
    "rtx4090": Device(
        "GeForce RTX 4090",
        "NVIDIA Ada architecture, appendix A",
        24 * GB,
        1.008e12,
        _flops(165.2, 330.3, 660.6, 82.6, 82.6),
    ),
    "rtx5090": Device(
        "GeForce RTX 5090",
        "NVIDIA RTX Blackwell architecture",
        32 * GB,
        1.792e12,
        _flops(209.5, 419, 838, 104.8, 104.8),
    ),
}


def find_device(name: str) -> Device:
    """Raises UserError for a name that is not in DEVICES."""
    if name not in DEVICES:
        raise UserError(f"--device: got {name}, expected one of {', '.join(DEVICES)}; choose one")
    return DEVICES[name]
