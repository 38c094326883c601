"""The ONNX Runtime backend: what it binds, what it refuses."""

from __future__ import annotations

import importlib
import sys
from itertools import islice
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from videossm.runtime import BackendError, Rollout
from videossm.runtime.backends import device_index, open_backend, session
from videossm.runtime.backends.memory import HostBuffer
from videossm.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine
from videossm.runtime.backends.session import session_options
from videossm.runtime.manifest import EngineSpec, Input, Output

BF16_BITS = np.array([[0x3F80, 0xBF81, 0x0001], [0x7F80, 0x7FC1, 0x8000]], np.uint16)  # subnormal, inf, NaN, -0 too


@pytest.fixture
def backend(tiny_plan):
    with open_backend(tiny_plan.manifest, threads=1) as opened:
        yield opened


@pytest.fixture
def decoder(backend, tiny_plan):
    spec = tiny_plan.manifest.engines["decoder"]
    return backend.load("decoder", spec, tiny_plan.path / spec.file)


def buffers(backend, tensors):
    return {tensor.name: backend.buffer(tensor.shape, tensor.dtype) for tensor in tensors}


def test_a_pass_fills_the_bound_buffers(backend, decoder, tiny_plan):
    spec = tiny_plan.manifest.engines["decoder"]
    inputs, outputs = buffers(backend, spec.inputs), buffers(backend, spec.outputs)
    poison = np.full(outputs["cache_next.0"].shape, np.nan, np.float32)
    outputs["cache_next.0"].write(poison)
    bound = decoder.bind(inputs, outputs)
    for level in (0.25, -0.5):
        inputs["latents"].write(np.full(inputs["latents"].shape, level, np.float32))
        bound.run()
        assert (outputs["cache_next.0"].read() == level).all(), "the same binding sees new values"


def test_only_bindable_buffers_are_bound(backend, decoder, tiny_plan):
    spec = tiny_plan.manifest.engines["decoder"]
    inputs, outputs = buffers(backend, spec.inputs), buffers(backend, spec.outputs)
    inputs["latents"] = backend.buffer((2, 6, 1, 4, 4), "float32").part(0, 3)
    with pytest.raises(AssertionError, match="latents must be bindable"):
        decoder.bind(inputs, outputs)


@pytest.fixture
def fresh_import(monkeypatch):
    """The module is imported anew; what stood in its place comes back."""
    monkeypatch.delitem(sys.modules, "videossm.runtime.backends.onnxruntime")
    return lambda: importlib.import_module("videossm.runtime.backends.onnxruntime")


def test_onnxruntime_that_is_not_installed(monkeypatch, fresh_import):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"^backend: got no onnxruntime, .* pip install videossm$"):
        fresh_import()


@pytest.mark.parametrize(
    ("source", "message"), [("raise ImportError('libcudart.so')", "libcudart"), ("import no_such_part", "no_such_part")]
)
def test_onnxruntime_that_is_broken_says_why_itself(monkeypatch, tmp_path, fresh_import, source, message):
    (tmp_path / "onnxruntime.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    with pytest.raises(ImportError, match=message):
        fresh_import()


def test_device_without_its_provider(tiny_plan):
    expected = (
        r"^device: got cuda:0, .* has no CUDAExecutionProvider, expected it among \[.*pip install 'videossm\[gpu\]'"
    )
    with pytest.raises(BackendError, match=expected):
        open_backend(tiny_plan.manifest, "cuda:0")


@pytest.fixture
def gpu_build(emulate, monkeypatch):
    """`gpu_build(order)`: ONNX Runtime as if built for GPUs; its sessions queue on the stream that they are given, and
    leave nodes of the operators `on_host` to the CPU.
    """

    def make(order="late", devices=1, on_host=()):
        cuda = emulate(order, devices)
        providers = ["NvTensorRTRTXExecutionProvider", "TensorrtExecutionProvider", "CUDAExecutionProvider"]
        monkeypatch.setattr(ort, "get_available_providers", lambda: [*providers, "CPUExecutionProvider"])
        plain = ort.InferenceSession

        class Session:
            def __init__(self, file, options, providers, enable_fallback):
                assert not enable_fallback, "it would compute on the CPU"
                assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
                self._session = plain(file, options, providers=["CPUExecutionProvider"])
                self._providers = [provider if isinstance(provider, str) else provider[0] for provider in providers]
                self._stream = int(providers[0][1]["user_compute_stream"])
                self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs

            def get_providers(self):
                return self._providers

            def get_provider_graph_assignment_info(self):
                nodes = [SimpleNamespace(op_type=operator) for operator in on_host]
                parts = {"CUDAExecutionProvider": [SimpleNamespace(op_type="Gemm")], "CPUExecutionProvider": nodes}
                return [SimpleNamespace(ep_name=name, get_nodes=lambda n=n: n) for name, n in parts.items()]

            def io_binding(self):
                bound = {}

                def bind(name, kind, index, element, shape, address):
                    assert (kind, index) == ("cuda", 0), "tensors lie on the GPU"
                    bound[name] = address

                return SimpleNamespace(bind_input=bind, bind_output=bind, bound=bound)

            def run_with_iobinding(self, binding, options):
                addresses = dict(binding.bound)
                cuda.queue_work(self._stream, "engine", lambda: cuda.run_graph(self._session, addresses))
                try:
                    options.get_run_config_entry("disable_synchronize_execution_providers")
                except RuntimeError:  # not set
                    cuda.cudaStreamSynchronize(self._stream)

        monkeypatch.setattr(ort, "InferenceSession", Session)
        monkeypatch.setattr(session, "int8_saturates", lambda: False)  # it tries a product on the CPU
        return cuda

    return make


def test_cuda_provider_computes_in_full_fp32_on_our_stream(tiny_plan, gpu_build):
    cuda = gpu_build(devices=3)
    (name, options), cpu = open_backend(tiny_plan.manifest, "cuda:2")._providers
    assert (name, cpu) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    stream = options.pop("user_compute_stream")
    assert options == {"device_id": "2", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert int(stream) not in (0, None) and {device for device, _ in cuda.calls} == {2}


@pytest.mark.parametrize(
    ("provider", "name"),
    [("tensorrt", "TensorrtExecutionProvider"), ("nv-tensorrt-rtx", "NvTensorRTRTXExecutionProvider")],
)
def test_other_providers_come_before_cudas(tiny_plan, gpu_build, provider, name):
    gpu_build()
    (first, options), (second, _), cpu = open_backend(tiny_plan.manifest, "cuda:0", provider=provider)._providers
    assert (first, second, cpu) == (name, "CUDAExecutionProvider", "CPUExecutionProvider")
    assert options.keys() - {"has_user_compute_stream"} == {"device_id", "user_compute_stream"}


def test_providers_that_are_not_there(tiny_plan):
    with pytest.raises(BackendError, match=r"^device: got cuda:0, .* has no NvTensorRTRTXExecutionProvider"):
        open_backend(tiny_plan.manifest, "cuda:0", provider="nv-tensorrt-rtx")
    with pytest.raises(BackendError, match=r"^provider: got rocm, expected one of cuda, tensorrt, nv-tensorrt-rtx"):
        open_backend(tiny_plan.manifest, "cuda:0", provider="rocm")
    with pytest.raises(BackendError, match=r"^provider: got cuda on the CPU, expected --device cuda:N with it"):
        open_backend(tiny_plan.manifest, provider="cuda")


@pytest.mark.parametrize("order", ["late", "early", "compute-first", "copies-first", "random"])
@pytest.mark.parametrize("kind", [{}, {"batch": 2, "sampler": "renoise"}], ids=["euler", "batch-2-renoise"])
def test_a_rollout_on_a_gpu_is_the_cpus(build_plan, gpu_build, kind, order):
    """Frames are read after all is queued; nothing waits before that but for blocks to land in."""
    plan = build_plan(**kind)
    prompts = ["red"] * plan.manifest.stream.batch
    expected = [chunk.frames for chunk in islice(Rollout(plan, prompts, 3, threads=1), 7)]
    cuda = gpu_build(order)
    rollout = Rollout(plan, prompts, 3, "cuda:0", threads=1)
    chunks = list(islice(rollout, 7))
    assert len(cuda.waits) <= 5, "a wait a chunk, from the third on"
    assert all(np.array_equal(chunk.frames, frames) for chunk, frames in zip(chunks, expected, strict=True))
    usage = rollout.device_usage
    assert usage.buffers_bytes == cuda.bytes_of("device") and usage.weights_bytes is None
    assert rollout.device == "cuda:0" and all(seconds > 0 for seconds in rollout.timings.values())


def test_what_kernels_stage_in_pinned_memory_is_given_back_now_and_then(tiny_plan, gpu_build, monkeypatch):
    monkeypatch.setattr("videossm.runtime.backends.onnxruntime._TIDIED", 10)
    cuda = gpu_build()
    rollout = Rollout(tiny_plan, "red", 3, "cuda:0", threads=1)
    for _ in islice(rollout, 7):
        pass
    runs = 7 * len(tiny_plan.manifest.passes)
    assert cuda.waits.count("cudaStreamSynchronize") == runs // 10 and not rollout.device_usage.notes


def test_an_engine_with_nodes_on_the_cpu_is_waited_for_and_noted(tiny_plan, gpu_build):
    cuda = gpu_build(on_host=["Shape", "Gather", "Shape"])
    rollout = Rollout(tiny_plan, "red", 3, "cuda:0", threads=1)
    next(rollout)
    assert len(cuda.waits) == cuda.done.count("engine") > 0
    assert len(rollout.device_usage.notes) == len(tiny_plan.manifest.engines)
    assert "step: the host waits for each run, as some nodes run on the CPU (1 Gather, 2 Shape)" in (
        rollout.device_usage.notes
    )


def test_devices():
    assert [device_index(device) for device in ("cpu", "cuda", "cuda:0", "cuda:3")] == [None, 0, 0, 3]
    for device in ("cpu:0", "cuda:", "cuda:x", "gpu", ""):
        with pytest.raises(BackendError, match="expected cpu or cuda:N"):
            device_index(device)


def test_engine_that_is_no_graph(backend, tiny_plan, tmp_path):
    (tmp_path / "step.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"^step\.onnx: ONNX Runtime .* cannot load it") as caught:
        backend.load("step", tiny_plan.manifest.engines["step"], tmp_path / "step.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, r"inputs: cache\.0: got \('float32', \(1, 1, 1, 4, 4\)\), expected none"),
        ({"shape": (1, 2, 1, 4, 4)}, r"inputs: cache\.0: got .* expected \('float32', \(1, 2, 1, 4, 4\)\)"),
        ({"dtype": "float16"}, r"inputs: cache\.0: got .* expected \('float16'"),
    ],
    ids=["name", "shape", "dtype"],
)
def test_engine_that_is_not_what_the_manifest_says(backend, tiny_plan, change, message):
    spec = tiny_plan.manifest.engines["decoder"]
    inputs = tuple(
        Input(**{**tensor.model_dump(), **change}) if tensor.name == "cache.0" else tensor for tensor in spec.inputs
    )
    wrong = EngineSpec(file=spec.file, inputs=inputs, outputs=spec.outputs)
    with pytest.raises(BackendError, match=message):
        backend.load("decoder", wrong, tiny_plan.path / spec.file)


def save_graph(path, nodes, inputs, outputs, constants=()):
    values = [[helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "graph", *values, list(constants))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def test_bf16_goes_in_and_out_bit_by_bit(tmp_path):
    """On the host its bits are uint16; of its few CPU kernels a transposition is one."""
    ends = [("x", TensorProto.BFLOAT16, [2, 3])], [("y", TensorProto.BFLOAT16, [3, 2])]
    save_graph(tmp_path / "engine.onnx", [helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])], *ends)
    options = session_options("bf16", 1)
    opened = ort.InferenceSession(str(tmp_path / "engine.onnx"), options, providers=["CPUExecutionProvider"])
    engine = OnnxRuntimeEngine(opened)
    result = HostBuffer(np.full((3, 2), 0xFFFF, np.uint16))
    engine.bind({"x": HostBuffer(BF16_BITS)}, {"y": result}).run()
    assert np.array_equal(result.read(), BF16_BITS.T)


def test_bf16_is_refused_on_a_cpu(backend, tiny_plan):
    """Before ONNX Runtime says the same of some node: the file is not even opened."""
    spec = tiny_plan.manifest.engines["decoder"]
    inputs = tuple(t.model_copy(update={"dtype": "bfloat16"}) for t in spec.inputs)
    typed = EngineSpec(file=spec.file, inputs=inputs, outputs=spec.outputs)
    with pytest.raises(BackendError, match=r"^device: got cpu for a plan in bf16, expected cuda:N, .*; change"):
        backend.load("decoder", typed, tiny_plan.path / "none.onnx")


def test_an_fp8_engine_runs(tmp_path):
    """With the fusions for int8 on, ONNX Runtime refuses this graph: a bias that is not one-dimensional."""
    weight = numpy_helper.from_array(np.eye(16, dtype=np.float32), "weight")
    scale = numpy_helper.from_array(np.array(0.5, np.float32), "scale")
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    bias = numpy_helper.from_array(np.ones((1, 1, 16), np.float32), "bias")
    nodes = []
    for name in ("x", "weight"):
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}.q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", "scale", "zero"], [f"{name}.dq"]))
    nodes.append(helper.make_node("MatMul", ["x.dq", "weight.dq"], ["product"]))
    nodes.append(helper.make_node("Add", ["product", "bias"], ["y"]))
    shape = (1, 4, 16)
    ends = [[(name, TensorProto.FLOAT, list(shape))] for name in ("x", "y")]
    save_graph(tmp_path / "engine.onnx", nodes, *ends, [weight, scale, zero, bias])
    inputs = (Input(name="x", dtype="float32", shape=shape, source="sample"),)
    outputs = (Output(name="y", dtype="float32", shape=shape, target="sample"),)
    backend = OnnxRuntimeBackend("cpu", 1, "fp8")
    spec = EngineSpec(file="engine.onnx", inputs=inputs, outputs=outputs)
    engine = backend.load("step", spec, tmp_path / spec.file)
    x, y = (backend.buffer(shape, "float32") for _ in range(2))
    x.write(np.full(shape, 3.0, np.float32))
    engine.bind({"x": x}, {"y": y}).run()
    assert (y.read() == 4.0).all()


@pytest.mark.usefixtures("all_processors")
def test_threads_do_not_change_the_frames(tiny_plan):
    one, two = (next(Rollout(tiny_plan, "red", threads=threads)).frames for threads in (1, 2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("order", ["late", "random"])
def test_a_closed_rollout_on_a_gpu_leaves_nothing_though_it_is_referred_to(tiny_plan, gpu_build, order):
    cuda = gpu_build(order)
    with Rollout(tiny_plan, "red", 3, "cuda:0", threads=1) as rollout:
        chunks = list(islice(rollout, 5))
    rollout.close()
    assert not cuda.blocks and not cuda.events and not cuda.streams and len(chunks) == 5


def test_more_than_addresses_can_count_is_one_line(backend):
    with pytest.raises(BackendError, match=r"^memory: got too little for \[.*\] of float32 \(.*\), expected more"):
        backend.buffer((2**40, 2**40), "float32")
