"""Other implementations of the two scans on a GPU, to take turns with ours.

A peer that is not there, or that refuses a shape, says why: nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from scan_cases import SCALE, Results, Tensors, given
from torch.nn import functional as F

from videossm.models.scans.gated_delta import gated_delta_chunked
from videossm.models.scans.selective_scan import selective_scan_parallel

Run = Callable[[], Results]


@dataclass(frozen=True)
class Peer:
    """`make` turns tensors with the names of scans.h into a call; None where `missing` says why."""

    name: str
    version: str
    make: Callable[[Tensors], Run] | None
    missing: str = ""
    note: str = ""


def gated_peers() -> list[Peer]:
    """The rules normalise both keys and queries. None of them can do without an output."""
    note = "computes its output also where ours does not"
    return [
        _load(
            "flash-linear-attention",
            ("flash-linear-attention", "fla-core"),
            "fla.ops.gated_delta_rule",
            "chunk_gated_delta_rule",
            _fla,
            note,
        ),
        Peer("torch", torch.__version__, _torch_gated, note=f"models/scans, chunk-parallel, in fp32; {note}"),
    ]


def selective_peers() -> list[Peer]:
    return [
        _load(
            "mamba-ssm",
            ("mamba-ssm",),
            "mamba_ssm.ops.selective_scan_interface",
            "selective_scan_fn",
            _mamba,
            "takes no first state: all are given zeros",
        ),
        Peer("torch", torch.__version__, _torch_selective, note="models/scans, by halves, in fp32"),
    ]


def _load(
    name: str,
    packages: tuple[str, ...],
    module: str,
    function: str,
    make: Callable[[Any, Tensors], Run],
    note: str,
) -> Peer:
    try:
        call = getattr(import_module(module), function)
    except Exception as error:  # a package for another torch or device fails in its own ways
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return Peer(name, "", None, missing=f"not imported ({why})")
    return Peer(name, _version(packages), lambda tensors: make(call, tensors), note=note)


def _version(packages: tuple[str, ...]) -> str:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"


def _fla(call: Any, x: Tensors) -> Run:
    """https://github.com/fla-org/flash-linear-attention: tensors [B, T, H, .], decay as its logarithm, as ours."""

    def run() -> Results:
        output, state = call(
            x["query"],
            x["key"],
            x["value"],
            x["decay"],
            x["beta"],
            scale=SCALE,
            initial_state=x["state"],
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        return output, state

    return run


def _torch_gated(x: Tensors) -> Run:
    query, key = given(x, "query"), given(x, "key")
    value, decay, beta, state = (given(x, name) for name in ("value", "decay", "beta", "state"))

    def run() -> Results:
        q, k = F.normalize(query.float(), dim=-1), F.normalize(key.float(), dim=-1)
        return gated_delta_chunked(q, k, value, decay, beta, state, SCALE)

    return run


def _mamba(call: Any, x: Tensors) -> Run:
    """https://github.com/state-spaces/mamba: ours is defined as its function, but for the first state."""

    def run() -> Results:
        arguments = (x[name] for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias"))
        y, state = call(*arguments, delta_softplus=True, return_last_state=True)
        return y, state

    return run


def _torch_selective(x: Tensors) -> Run:
    u, delta, A, B, C, state = (given(x, name) for name in ("u", "delta", "A", "B", "C", "state"))
    return lambda: selective_scan_parallel(u, delta, A, B, C, state, x["D"], x["z"], x["delta_bias"], True)
