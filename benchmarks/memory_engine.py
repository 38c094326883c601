"""The memory engine on a CPU, by lowering, as ONNX Runtime runs it: a part of `scans_cpu.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from videossm.export.lowering import lower
from videossm.export.trace import trace
from videossm.models.family import Engine
from videossm.models.videossm.step import MemoryUpdate
from videossm.runtime.backends.session import session_options

LOWERINGS = ("native", "contrib", "standard")


def sessions(layers: int, tokens: int, heads: int, dim: int, threads: int) -> dict[str, onnxruntime.InferenceSession]:
    """Of LOWERINGS. VIDEOSSM_SCANS names the library of `native`."""
    rows, gates = torch.zeros(1, tokens, heads * dim), torch.zeros(1, tokens, heads)
    example = ([rows, rows, gates, gates] * layers, [torch.zeros(1, heads, dim, dim)] * layers)
    kinds = ("key", "value", "decay", "beta")
    inputs = [f"{kind}.{layer}" for layer in range(layers) for kind in kinds]
    inputs += [f"memory.{layer}" for layer in range(layers)]
    outputs = [f"memory_next.{layer}" for layer in range(layers)]
    named = (dict.fromkeys(inputs, ""), dict.fromkeys(outputs, ""))
    made = {}
    with TemporaryDirectory() as folder:
        _, path = trace(Engine("memory", MemoryUpdate(), example, *named), {}, 23, Path(folder))
        for lowering in LOWERINGS:
            content = lower(onnx.load(path), lowering).SerializeToString()
            options = session_options("fp32", threads)
            made[lowering] = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return made


def runs(layers: int, tokens: int, heads: int, dim: int, threads: int) -> dict[str, Any]:
    """One call of each lowering, on the same inputs, by its name."""
    noise, feeds = np.random.default_rng(0), {}
    made = sessions(layers, tokens, heads, dim, threads)
    for value in made[LOWERINGS[0]].get_inputs():
        drawn: NDArray[np.float32] = noise.standard_normal(value.shape, np.float32)
        kind = value.name.partition(".")[0]
        feeds[value.name] = {"decay": -0.1 * np.abs(drawn), "beta": np.abs(drawn) % 1}.get(kind, drawn)
    return {lowering: partial(session.run, None, feeds) for lowering, session in made.items()}
