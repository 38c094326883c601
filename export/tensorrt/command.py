"""The command of TensorRT's own tool that builds the same engine, for whoever wants to repeat it by hand.

trtexec of TensorRT 11; `tensorrt_rtx`, of which TensorRT-RTX's documentation names the options used here.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from videossm.export.tensorrt.options import TensorRtOptions

TOOLS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
HARDWARE_LEVELS = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}


def build_command(
    backend: str, graph: Path, engine: str, options: TensorRtOptions, fused: bool, tf32: bool = False
) -> str:
    """The line for a shell that makes the file `engine` of `graph`, which has no scans that are plugins.

    `fused`: whether all its attention builds so. `tf32`: whether its fp32 products may be TF32's.
    """
    words = [TOOLS[backend], f"--onnx={graph}", f"--saveEngine={engine}", "--skipInference"]
    words += ["--noTF32"] * (not tf32) + ["--decomposableAttentions=*"] * (not fused)
    if options.gpu_arch:
        words += [f"--computeCapabilities={','.join(arch.removeprefix('sm_') for arch in options.gpu_arch)}"]
    if options.workspace is not None:
        words += [f"--memPoolSize=workspace:{options.workspace}M"]
    if options.builder_level is not None:
        words += [f"--builderOptimizationLevel={options.builder_level}"]
    if options.timing_cache is not None:
        words += [f"--timingCacheFile={options.timing_cache}"]
    if options.profiling_verbosity is not None:
        words += [f"--profilingVerbosity={options.profiling_verbosity}"]
    words += ["--refit"] * options.refit
    words += ["--stripWeights"] * options.strip_weights
    words += ["--allowWeightStreaming"] * options.weight_streaming
    words += ["--versionCompatible"] * options.version_compatible
    if options.hardware_compatible is not None:
        words += [f"--hardwareCompatibilityLevel={HARDWARE_LEVELS[options.hardware_compatible]}"]
    return shlex.join(words)
