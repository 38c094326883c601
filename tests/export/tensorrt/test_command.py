"""The printed commands, word by word: trtexec's options are those of TensorRT 11's samples/common/sampleOptions.cpp."""

from __future__ import annotations

from pathlib import Path

from videossm.export.tensorrt.command import build_command
from videossm.export.tensorrt.options import TensorRtOptions

GRAPH = Path("my plans/step.onnx")


def test_the_least() -> None:
    assert build_command("tensorrt", Path("a/step.onnx"), "step.engine", TensorRtOptions(), True) == (
        "trtexec --onnx=a/step.onnx --saveEngine=step.engine --skipInference --noTF32"
    )


def test_architectures_and_a_name_that_the_shell_would_split() -> None:
    options = TensorRtOptions(gpu_arch=("sm_89", "sm_120"), weight_streaming=True)
    assert build_command("tensorrt-rtx", GRAPH, "step.engine", options, False) == (
        "tensorrt_rtx '--onnx=my plans/step.onnx' --saveEngine=step.engine --skipInference --noTF32 "
        "'--decomposableAttentions=*' --computeCapabilities=89,120 --allowWeightStreaming"
    )


def test_all_of_tensorrt() -> None:
    options = TensorRtOptions(
        workspace=64,
        builder_level=5,
        timing_cache=Path("timings"),
        profiling_verbosity="detailed",
        refit=True,
        strip_weights=True,
        version_compatible=True,
        hardware_compatible="same_compute_capability",
    )
    assert build_command("tensorrt", GRAPH, "step.engine", options, False).split("' ")[-1].split() == [
        "--memPoolSize=workspace:64M",
        "--builderOptimizationLevel=5",
        "--timingCacheFile=timings",
        "--profilingVerbosity=detailed",
        "--refit",
        "--stripWeights",
        "--versionCompatible",
        "--hardwareCompatibilityLevel=sameComputeCapability",
    ]
