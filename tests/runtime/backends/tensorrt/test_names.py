"""What the emulation has of TensorRT and CUDA exists there: so does what the runtime calls, as it ran on the emulation.

The names of TensorRT 11.1, which is not installed here, are listed in tests/test_tensorrt_api.py.
"""

from __future__ import annotations

import pytest
from cuda.bindings import runtime as real

ENUMS = ("DataType", "EngineStat", "ExecutionContextAllocationStrategy", "TensorIOMode", "TensorLocation")
RTX_ONLY = {
    "": {"IRuntimeCache"},
    "IExecutionContext": {"is_stream_capturable"},
    "IRuntimeCache": {"deserialize", "serialize"},
    "IRuntimeConfig": {"create_runtime_cache", "set_runtime_cache"},
}
NO_NAMES_OF_TENSORRTS = {"cuda", "options", "contexts", "runtimes", "refused", "engine", "logger", "file", "filled",
                         "session", "memory", "addresses", "runs", "IExecutionContext", "caches", "cache", "kernels",
                         "compile", "compiled", "digest", "IRuntimeConfig", "strategy"}  # fmt: skip


def emulated(trt, tiny_plan):
    """Names by class, as the emulation has them."""
    trt.cuda.cudaSetDevice(0)
    runtime = trt.Runtime(None)
    decoder = tiny_plan.path / tiny_plan.manifest.engines["decoder"].file
    engine = runtime.deserialize_cuda_engine(decoder.read_bytes())
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    refitter = trt.Refitter(engine, None)
    parts = {"Runtime": runtime, "ICudaEngine": engine, "IExecutionContext": context, "Refitter": refitter}
    config = engine.create_runtime_config()
    parts["IRuntimeConfig"] = config
    if hasattr(trt, "IRuntimeCache"):
        parts["IRuntimeCache"] = config.create_runtime_cache()
    parts |= {"OnnxParserRefitter": trt.OnnxParserRefitter(refitter, None), "ILogger": trt.ILogger, "": trt}
    names = {part: public(value) - (NO_NAMES_OF_TENSORRTS - {"ILogger"}) for part, value in parts.items()}
    names[""] |= {"__version__"}
    return names | {name: {member.name for member in getattr(trt, name)} for name in ENUMS}


def public(value):
    return {name for name in dir(value) if not name.startswith("_")}


def test_only_tensorrt_rtx_has_a_question_for_captures_and_a_cache(tiny_plan, tensorrt):
    both, rtx = (emulated(tensorrt(rtx=rtx), tiny_plan) for rtx in (False, True))
    assert rtx == {part: both.get(part, set()) | RTX_ONLY.get(part, set()) for part in both.keys() | RTX_ONLY.keys()}


def test_tensorrt_rtx_has_them_all(tiny_plan, tensorrt):
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    for part, names in emulated(tensorrt(rtx=True), tiny_plan).items():
        where = getattr(trt, part) if part else trt
        missing = {name for name in names if not hasattr(where, name)}
        assert names and not missing, f"{part or 'the module'} lacks {missing}"


def test_cuda_python_has_them_all(emulate):
    names = {name for name in dir(emulate()) if name.startswith("cuda")}
    assert len(names) > 25 and {name for name in names if not hasattr(real, name)} == set()


def test_a_real_runtime_takes_a_mapped_file(tmp_path):
    """It refuses it here for want of a driver, or of an engine in it, but not for its type."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    np = pytest.importorskip("numpy")
    from videossm.runtime.backends.tensorrt.module import Log

    log = Log(trt)
    (tmp_path / "step.engine").write_bytes(b"no engine" * 100)
    runtime = trt.Runtime(log.logger)
    runtime.engine_host_code_allowed = True
    assert runtime.deserialize_cuda_engine(np.memmap(tmp_path / "step.engine", np.uint8, "r")) is None
    assert "TensorRT said nothing" not in str(log.fail("step.engine: cannot load it", "export it again"))
