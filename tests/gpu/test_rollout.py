"""Rollouts of `shapes` on the GPU against the same precision's plan on the CPU."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from itertools import islice

import numpy as np
import onnxruntime as ort
import pytest

from videossm.runtime import BackendError, Rollout
from videossm.runtime.cli.measure import resident_bytes

pytestmark = pytest.mark.gpu
PROMPT, SEED = "a red circle bounces on gray", 7
CHUNKS = 24
LARGEST_ERROR = {"fp32": 1e-4, "fp16": 1e-3, "fp8": 1e-2, "int8": 1e-2}  # relative, of a chunk's latent
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nv-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}


@pytest.fixture(params=MODULES)
def engines(request, gpu, shapes_plan):
    """`engines(precision)`: (plan of ONNX graphs, plan of engines)"""
    backend = request.param
    if find_spec(MODULES[backend]) is None:
        pytest.skip(f"{backend} is not installed")
    if backend == "tensorrt-rtx" and gpu.architecture == "sm_90":
        pytest.skip("TensorRT-RTX builds nothing for sm_90")
    arch = ("--gpu-arch", gpu.architecture) if backend == "tensorrt-rtx" else ()
    return lambda precision: (shapes_plan(precision), shapes_plan(precision, "--backend", backend, *arch))


@pytest.mark.parametrize("precision", LARGEST_ERROR)
def test_tensorrt_makes_the_cpus_chunks(engines, relative_errors, precision):
    reference, plan = (Rollout(made, PROMPT, SEED) for made in engines(precision))
    assert max(relative_errors(reference, plan, CHUNKS)) <= LARGEST_ERROR[precision]


def test_passes_become_graphs_and_frames_stay(engines):
    """A second rollout of the backend, before and after its passes are captured, makes the same frames."""
    _, plan = engines("fp16")
    rollout = Rollout(plan, PROMPT, SEED)
    fork = rollout.fork()
    first = [chunk.frames for chunk in islice(rollout, 12)]
    assert rollout.device_usage.graphs > 0, rollout.device_usage.notes
    assert not rollout.device_usage.notes
    assert all(map(np.array_equal, first, (chunk.frames for chunk in islice(fork, 12))))


def test_a_closed_rollout_can_be_made_again(engines):
    """What is freed while CUDA or TensorRT still uses it shows here, if anywhere."""
    _, plan = engines("fp16")
    expected = None
    for _ in range(3):
        with Rollout(plan, PROMPT, SEED) as rollout:
            fork = rollout.fork()
            frames = [chunk.frames for chunk in rollout.play(8)]
            next(fork)
        expected = expected or frames
        assert all(map(np.array_equal, frames, expected))


def test_memory_does_not_grow(engines):
    _, plan = engines("fp16")
    rollout = Rollout(plan, PROMPT, SEED)
    for _ in islice(rollout, 20):
        pass
    before = replace(rollout.device_usage, used_bytes=0)
    for _ in islice(rollout, 200):
        pass
    assert replace(rollout.device_usage, used_bytes=0) == before


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp8"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_onnx_runtime_makes_the_cpus_chunks(shapes_plan, relative_errors, provider, precision):
    if PROVIDERS[provider] not in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {PROVIDERS[provider]}")
    plan = shapes_plan(precision)
    try:
        rollout = Rollout(plan, PROMPT, SEED, "cuda:0", provider=provider)
    except BackendError as error:
        if provider == "cuda":
            raise
        pytest.skip(f"built for {provider}, but: {error}")  # the package always is, with TensorRT or without
    reference = Rollout(plan, PROMPT, SEED)
    assert max(relative_errors(reference, rollout, CHUNKS)) <= LARGEST_ERROR[precision]


def test_an_engine_of_another_gpu_is_refused_with_tensorrts_reason(gpu, shapes_plan):
    if find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("tensorrt-rtx is not installed")
    other = "sm_120" if gpu.architecture != "sm_120" else "sm_89"
    plan = shapes_plan("fp16", "--backend", "tensorrt-rtx", "--gpu-arch", other)
    with pytest.raises(BackendError, match=r"\.engine: tensorrt-rtx .* cannot load it: "):
        Rollout(plan, PROMPT, SEED)


def test_resident_memory_does_not_grow_under_onnx_runtime(shapes_plan):
    """Its memory for copies is freed only where the host waits for a run."""
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {PROVIDERS['cuda']}")
    rollout = Rollout(shapes_plan("fp16"), PROMPT, SEED, "cuda:0")
    for _ in islice(rollout, 100):
        pass
    before = resident_bytes()
    for _ in islice(rollout, 400):
        pass
    assert resident_bytes() - before < 16 << 20
