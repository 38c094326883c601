"""Which processor this is, and what to expect of int8 on it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

# Of x86-64 and of ARM, as Linux names them: those that decide how ONNX Runtime multiplies.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
VNNI = ("avx512_vnni", "avx_vnni")
DOT_PRODUCTS = ("asimddp", "i8mm")
_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Processor:
    """`name`: as the system calls it. `features`: what the system lists of FEATURES."""

    name: str = ""
    features: tuple[str, ...] = ()

    def text(self, threads: int) -> str:
        """As a report and the doctor show it, with the number of its threads."""
        return ", ".join(filter(None, [self.name, f"{threads} threads", " ".join(self.features)]))


def probe_processor() -> Processor:
    """The processor of this machine, in an emulator the host's. Never raises."""
    try:
        lines = [line.partition(":") for line in _INFO.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        lines = []
    told = {label.strip().lower(): value.strip() for label, _, value in reversed(lines)}  # of the first core
    flags = told.get("flags", told.get("features", "")).split()
    name = told.get("model name") or platform.processor() or platform.machine()
    return Processor(name, tuple(feature for feature in FEATURES if feature in flags))


def expected_of_int8(processor: Processor) -> str:
    """How exact and how fast ONNX Runtime's products in int8 are there, in one line."""
    vnni = [feature for feature in VNNI if feature in processor.features]
    if vnni:
        return f"this processor has VNNI ({', '.join(vnni)}): int8 products are exact and run at full speed"
    if "avx2" in processor.features:
        return "this processor has no VNNI: int8 products are exact, but gain less than with it"
    dot = [feature for feature in DOT_PRODUCTS if feature in processor.features]
    if dot:
        return f"this processor has dot products ({', '.join(dot)}): int8 has not been tried on one"
    return "this processor has none of the features that make int8 fast, or the system does not tell"
