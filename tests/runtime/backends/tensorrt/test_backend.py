"""The TensorRT backend: what it refuses, and with which words; refit, streaming, errors of TensorRT's logger."""

from __future__ import annotations

import json

import numpy as np
import pytest

from videossm.runtime import BackendError, Plan, Rollout
from videossm.runtime.backends import open_backend
from videossm.runtime.backends.tensorrt.module import Log
from videossm.runtime.manifest import EngineSpec, Input

RED = "a red circle moves left"


@pytest.fixture
def plan(tiny_plan, engine_plan):
    return engine_plan(tiny_plan)


@pytest.fixture
def decoder(plan):
    """(spec, file)"""
    spec = plan.manifest.engines["decoder"]
    return spec, plan.path / spec.file


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_on_a_cpu_there_is_another_way(tiny_plan, engine_plan, name):
    expected = rf"^device: got cpu for a plan of {name}, expected cuda:N; a plan for the CPU .* --backend onnxruntime$"
    with pytest.raises(BackendError, match=expected):
        open_backend(engine_plan(tiny_plan, backend=name).manifest, "cpu")


@pytest.mark.parametrize("status", [35, 100], ids=["no-driver", "no-device"])
def test_without_a_gpu_it_says_so_before_tensorrt_does(plan, tensorrt, status):
    trt = tensorrt()
    trt.cuda.fail("cudaGetDeviceCount", status)
    expected = r"^device: got cuda:0, but no usable GPU here \(.*\), expected one; .* --backend onnxruntime$"
    with pytest.raises(BackendError, match=expected):
        open_backend(plan.manifest)
    assert not trt.runtimes


@pytest.mark.parametrize("option", [{"threads": 2}, {"provider": "cuda"}], ids=lambda option: next(iter(option)))
def test_options_of_onnx_runtime(plan, option):
    with pytest.raises(BackendError, match=r"for tensorrt, expected none, it is ONNX Runtime's; leave it out$"):
        open_backend(plan.manifest, **option)


@pytest.mark.parametrize(
    ("compatible", "lowering"), [(False, "standard"), (True, "standard"), (False, "plugin")], ids=str
)
def test_only_what_brings_code_along_may_run_its_own(tiny_plan, engine_plan, tensorrt, compatible, lowering):
    trt = tensorrt()
    target = {"architectures": ["sm_90"], "version_compatible": compatible}
    Rollout(engine_plan(tiny_plan, target=target, lowering=lowering), RED)
    assert trt.runtimes[0].engine_host_code_allowed is (compatible or lowering == "plugin")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            "deserialize_cuda_engine",
            r"^decoder\.engine: tensorrt 11\.1\.0 cannot load it: \[.*\] it failed, as",
        ),
        ("create_execution_context", r"^decoder: no execution context: .* it failed, as the test wanted; free memory"),
    ],
)
def test_what_tensorrt_logs_is_the_reason(plan, tensorrt, decoder, call, message):
    trt = tensorrt()
    trt.options.refuses = call
    with pytest.raises(BackendError, match=message) as caught:
        backend = open_backend(plan.manifest)
        bind(backend, backend.load("decoder", *decoder), decoder[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", ["execute_async_v3", "set_tensor_address"])
def test_a_run_that_is_refused(tiny_plan, engine_plan, tensorrt, call):
    trt = tensorrt()
    rollout = Rollout(engine_plan(tiny_plan), RED)
    trt.options.refuses = call
    with pytest.raises(BackendError, match=rf"^text_encoder: .*\[{call}\] it failed, as the test wanted; "):
        next(rollout)


def test_messages_are_told_once_and_only_errors(tensorrt):
    trt = tensorrt()
    log = Log(trt)
    for severity, text in (
        (trt.ILogger.WARNING, "slow"),
        (trt.ILogger.ERROR, "first\nline"),
        (trt.ILogger.ERROR, "last"),
    ):
        log.logger.log(severity, text)
    assert str(log.fail("engine", "mend it")) == "engine: first line; last; mend it"
    assert str(log.fail("engine", "mend it")) == "engine: TensorRT said nothing; mend it"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "other"},
            r"^decoder\.engine: inputs: cache\.0: got float32 1x1x1x4x4, expected none by manifest\.json",
        ),
        ({"shape": (1, 2, 1, 4, 4)}, r"cache\.0: got float32 1x1x1x4x4, expected float32 1x2x1x4x4"),
        ({"dtype": "float16"}, r"cache\.0: got float32 1x1x1x4x4, expected float16 1x1x1x4x4"),
    ],
    ids=["name", "shape", "dtype"],
)
def test_engine_that_is_not_what_the_manifest_says(plan, tensorrt, decoder, change, message):
    tensorrt()
    spec, file = decoder
    changed = [Input(**{**t.model_dump(), **(change if t.name == "cache.0" else {})}) for t in spec.inputs]
    wrong = EngineSpec(file=spec.file, inputs=tuple(changed), outputs=spec.outputs)
    with pytest.raises(BackendError, match=message):
        open_backend(plan.manifest).load("decoder", wrong, file)


def test_a_tensor_on_the_host_is_refused(plan, tensorrt, decoder):
    trt = tensorrt()
    trt.options.refuses = "cache.0"
    with pytest.raises(BackendError, match=r"inputs: cache\.0: got float32 1x1x1x4x4 on the host, expected float32"):
        open_backend(plan.manifest).load("decoder", *decoder)


def stripped(plan, weights):
    """The plan with `weights` named for each engine, without reading it again."""
    engines = {name: engine.model_dump() | {"weights": weights[name]} for name, engine in plan.manifest.engines.items()}
    manifest = plan.manifest.model_validate_json(
        json.dumps({**plan.manifest.model_dump(mode="json"), "engines": engines})
    )
    return Plan(plan.path, manifest)


def test_stripped_engines_take_their_weights_when_they_load(tiny_plan, engine_plan, tensorrt):
    expected = next(Rollout(tiny_plan, RED, threads=1)).frames
    trt = tensorrt()
    trt.options.stripped = True
    plan = engine_plan(tiny_plan)
    with pytest.raises(AssertionError, match="the engine has no weights"):
        next(Rollout(plan, RED))
    refitted = stripped(plan, {name: engine.file for name, engine in plan.manifest.engines.items()})
    assert np.array_equal(next(Rollout(refitted, RED)).frames, expected)


def test_weights_that_do_not_fit(tiny_plan, engine_plan, tensorrt):
    tensorrt()
    plan = engine_plan(tiny_plan)
    (plan.path / "none.onnx").write_bytes(b"")
    wrong = stripped(plan, dict.fromkeys(("text_encoder", "step", "memory", "decoder"), "none.onnx"))
    with pytest.raises(BackendError, match=r"^text_encoder\.engine: cannot take the weights of none\.onnx: no graph; "):
        Rollout(wrong, RED)


def test_streamed_weights_get_what_is_left_the_most_used_first(plan, tensorrt):
    """Beside the buffers that were taken by then, the activations, and 5% of the device."""
    trt = tensorrt()
    trt.options.streamable = 300_000
    trt.cuda.memory_bytes = 400_000
    backend = open_backend(plan.manifest)
    names = ("text_encoder", "step", "memory", "decoder")
    specs = {name: plan.manifest.engines[name] for name in names}
    loaded = {name: backend.load(name, spec, plan.path / spec.file) for name, spec in specs.items()}
    assert not trt.contexts, "they are opened when the first one is bound"
    activations = max(engine.activations_bytes for engine in loaded.values())
    bound = bind(backend, loaded["decoder"], specs["decoder"])
    taken = backend.usage().buffers_bytes
    budgets = {name: engine._loaded.weight_streaming_budget_v2 for name, engine in loaded.items()}
    rest = 400_000 - taken - activations - 20_000 - 300_000
    assert budgets == {"step": 300_000, "memory": rest, "decoder": 0, "text_encoder": 0} and rest > 0
    files = sum((plan.path / spec.file).stat().st_size for spec in specs.values())
    assert backend.usage().weights_bytes == files + 300_000 + rest
    bound.run()
    trt.cuda.finish()
    assert trt.cuda.sticky is None


def bind(backend, engine, spec):
    """A pass over fresh buffers."""
    return engine.bind(
        *(
            {tensor.name: backend.buffer(tensor.shape, tensor.host_dtype) for tensor in side}
            for side in (spec.inputs, spec.outputs)
        )
    )


def test_a_later_larger_engine_leaves_the_block_of_those_before_it(plan, tensorrt):
    """Their graphs have its address."""
    trt = tensorrt()
    backend = open_backend(plan.manifest)
    engines = plan.manifest.engines
    memory = {}
    for name in ("decoder", "step"):
        spec = engines[name]
        engine = backend.load(name, spec, plan.path / spec.file)
        tensors = [
            {t.name: backend.buffer(t.shape, t.host_dtype) for t in side} for side in (spec.inputs, spec.outputs)
        ]
        bound = engine.bind(*tensors)
        for _ in range(3):
            bound.run()
        memory[name] = (trt.contexts[-1].memory, bound)
    assert memory["decoder"][0] != memory["step"][0]
    memory["decoder"][1].run()
    trt.cuda.finish()
    assert trt.cuda.sticky is None


def test_no_room_while_it_loads(tiny_plan, engine_plan, tensorrt):
    trt = tensorrt()
    trt.cuda.fail("cudaMalloc", 2, nth=5)
    with pytest.raises(BackendError, match=r"^cudaMalloc: got CUDA error 2 \(out of memory\)"):
        Rollout(engine_plan(tiny_plan), RED)


def test_work_that_fails_ends_the_rollout(tiny_plan, engine_plan, tensorrt):
    trt = tensorrt()
    rollout = Rollout(engine_plan(tiny_plan), RED)
    next(rollout).frames  # noqa: B018
    trt.cuda.fail("work", 700, nth=12)
    with pytest.raises(BackendError, match="got CUDA error 700"):
        next(rollout).frames  # noqa: B018


def test_a_graph_that_cannot_be_launched_is_an_error(tiny_plan, engine_plan, tensorrt):
    trt = tensorrt()
    rollout = Rollout(engine_plan(tiny_plan), RED)
    next(rollout), next(rollout)
    trt.cuda.fail("cudaGraphLaunch", 1)
    with pytest.raises(BackendError, match=r"^cudaGraphLaunch: got CUDA error 1"):
        next(rollout)
