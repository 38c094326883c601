"""How each ONNX Runtime session of this project is configured, so that a graph means the same on every processor."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from videossm.runtime.backends import NATIVE_LIBRARY, NATIVE_VARIABLE
from videossm.runtime.backends.processors import Placement
from videossm.runtime.errors import BackendError

if TYPE_CHECKING:
    import onnxruntime as ort

EXACT_INT8 = "session.x64quantprecision"
NO_INT8_FUSIONS = "session.disable_quant_qdq"
NATIVE_THREADS = "videossm.threads"  # of the session, for that library
# y = MatMulInteger(a, b), serialised: a uint8, b int8, y int32. The runtime goes without the package onnx.
INT8_PRODUCT = (
    b'\x08\x04:>\n\x18\n\x01a\n\x01b\x12\x01y"\rMatMulInteger\x12\x01gZ\t\n\x01a\x12\x04\n\x02\x08\x02'
    b"Z\t\n\x01b\x12\x04\n\x02\x08\x03b\t\n\x01y\x12\x04\n\x02\x08\x06B\x04\n\x00\x10\n"
)


def session_options(precision: str, threads: int | None, placement: Placement | None = None) -> ort.SessionOptions:
    """Options of a session over a graph in `precision`, on `threads` threads; None for ONNX Runtime's own number.

    Placement: of those threads; ONNX Runtime's own, if None, collides with the caller's (see `processors`).

    Order: nodes run one after another, each in the same way every time.

    Spinning: each engine has threads of its own and the engines run in turn, so those that wait must not burn the
    cores. With ONNX Runtime's own 1 ms a chunk of `shapes` in fp32 on two threads takes 154 ms of CPU time, not 124.

    Reuse: a buffer that is kept for a later tensor of its size stays until the run ends, so that tensors of many
    sizes add up. Without it a step of 400 frames of a UNet takes half the memory, and small steps 1 to 8% less time.

    EXACT_INT8: with weights in int8 ONNX Runtime adds pairs of products in 16 bits where a processor has no VNNI.
    They saturate silently: products of codes over the full range are 0.17 to 0.20 off, relative to the right ones, and
    3e-8 off with this entry, which makes the weights uint8. It is left out where nothing saturates, as products of
    uint8 by uint8 are slow with VNNI: a chunk of `shapes` in int8 would take 1.20 times as long.

    NO_INT8_FUSIONS: fusions meant for int8 take fp8's pairs too, and make of them what no kernel can run.

    With VIDEOSSM_SCANS in the environment the operators of that library are there, for the lowering `native`. Raises
    BackendError where it cannot be loaded.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    if placement is not None:
        options.intra_op_num_threads = 1 + len(placement.workers)
    if placement is not None and placement.workers:
        workers = ";".join(str(processor + 1) for processor in placement.workers)  # it counts from 1
        options.add_session_config_entry("session.intra_op_thread_affinities", workers)
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.enable_mem_reuse = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
    if int8_saturates():
        options.add_session_config_entry(EXACT_INT8, "1")
    if precision == "fp8":
        options.add_session_config_entry(NO_INT8_FUSIONS, "1")
    if library := os.environ.get(NATIVE_VARIABLE):
        if options.intra_op_num_threads:  # which operators cannot ask for
            options.add_session_config_entry(NATIVE_THREADS, str(options.intra_op_num_threads))
        try:
            options.register_custom_ops_library(library)
        except Exception as error:  # onnxruntime has no common base class of its errors
            why = " ".join(str(error).split())
            raise BackendError(
                f"{NATIVE_VARIABLE}: got {library}, which ONNX Runtime cannot load ({why}), expected {NATIVE_LIBRARY} "
                "of make native; change it, or unset it for plans of another lowering than native"
            ) from error
    return options


@cache
def int8_saturates() -> bool:
    """Is a product of uint8 by int8 wrong on this processor, if nothing is done about it?

    One is tried, in 0.3 ms: what a system says of its processor can be wrong in a container, a virtual machine or an
    emulator, and ONNX Runtime chooses the instructions of its kernels by itself.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(INT8_PRODUCT, options, providers=["CPUExecutionProvider"])
    depth = 64
    (product,) = session.run(None, {"a": np.full((4, depth), 255, np.uint8), "b": np.full((depth, 16), 127, np.int8)})
    return bool((product != depth * 255 * 127).any())
