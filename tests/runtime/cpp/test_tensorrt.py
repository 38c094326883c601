"""The TensorRT backend on the emulations that the Python one is tested on: the CPU's frames bit by bit, in whatever
order a GPU may work; graphs, memory, errors. What TensorRT computes, and its speed, only a GPU can show.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from emulated_cuda import ORDERS, EmulatedCuda
from emulated_gpu import CudaLibrary, TensorRtLibrary, write_stubs
from emulated_tensorrt import EmulatedTensorRt
from running import run
from videossm_c import ARGUMENT, BACKEND, MEMORY, STATE, CError, CPlan, CRollout, Library

from videossm.runtime import Plan, Rollout

EMULATED = Path(__file__).with_name("emulated")
RED, GREEN = "a red circle moves left", "a green square"
CHUNKS = 9
KINDS = {
    "euler": {},
    "renoise": {"sampler": "renoise"},
    "batch-2-renoise": {"batch": 2, "sampler": "renoise"},
    "no-memory": {"memory": False},
    "aligned-slots": {"chunk_frames": 4, "window_frames": 12, "sink_frames": 4},
}
Emulate = Callable[..., EmulatedTensorRt]


@pytest.fixture(scope="module")
def headers(built: Path) -> tuple[Path, Path]:
    """The folders of TensorRT's and CUDA's headers that the library was built with."""
    found = dict(re.findall(r"^(TensorRT\w*_DIR):PATH=(.*)$", (built / "CMakeCache.txt").read_text(), re.MULTILINE))
    folders = [found.get(name, "NOTFOUND") for name in ("TensorRT_INCLUDE_DIR", "TensorRT_CUDA_INCLUDE_DIR")]
    if any(folder.endswith("NOTFOUND") for folder in folders):
        pytest.skip("the library is built without TensorRT: no headers of it, or of CUDA's runtime; set TensorRT_ROOT")
    return Path(folders[0]), Path(folders[1])


@pytest.fixture(scope="module")
def libraries(headers: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """libcudart and libnvinfer, which ask the emulation."""
    folder = tmp_path_factory.mktemp("emulated")
    tensorrt, cuda = headers
    write_stubs(tensorrt / "NvInferImpl.h", folder / "stubs.h")
    (version,) = re.findall(r"define CUDART_VERSION\s+(\d+)", (cuda / "cuda_runtime_api.h").read_text())
    (major,) = re.findall(r"define TRT_MAJOR_ENTERPRISE (\d+)", (tensorrt / "NvInferVersion.h").read_text())
    cudart, nvinfer = f"libcudart.so.{int(version) // 1000}", f"libnvinfer.so.{major}"
    shared = ("-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
    run("cc", *shared, EMULATED / "cudart.c", "-o", folder / cudart, f"-Wl,-soname,{cudart}")
    includes = ("-isystem", tensorrt, "-isystem", cuda, "-I", folder)
    source = (EMULATED / "nvinfer.cpp", "-Wno-unused-parameter", "-Wno-deprecated-declarations", "-std=c++17")
    run("c++", *shared, *source, *includes, "-o", folder / nvinfer, f"-Wl,-soname,{nvinfer}")
    return folder / cudart, folder / nvinfer


@pytest.fixture
def emulate(libraries: tuple[Path, Path]) -> Iterator[Emulate]:
    """`emulate(order="late")`: from now on that is TensorRT, and its `cuda` CUDA."""
    made: list[CudaLibrary | TensorRtLibrary] = []

    def make(order: str = "late") -> EmulatedTensorRt:
        trt = EmulatedTensorRt(EmulatedCuda(order), rtx=False)
        made.extend([CudaLibrary(libraries[0], trt.cuda), TensorRtLibrary(libraries[1], trt)])
        return trt

    yield make
    gc.collect()  # an exception that was caught may have a plan in its traceback
    assert not [error for each in made for error in each.errors]


def prompts(plan: Plan, text: str) -> list[str]:
    return [text] * plan.manifest.stream.batch


def start(library: Library, plan: Plan, text: str = RED, seed: int = 5) -> CRollout:
    return CRollout.create(CPlan(library, plan.path), prompts(plan, text), [seed])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_frames_and_states_are_the_cpus(
    library: Library,
    build_plan: Callable[..., Plan],
    engine_plan: Callable[..., Plan],
    emulate: Emulate,
    tmp_path: Path,
    kind: dict[str, object],
    order: str,
) -> None:
    cpu = build_plan(**kind)
    mine, trt = Rollout(cpu, prompts(cpu, RED), 5, threads=1), emulate(order)
    other = start(library, engine_plan(cpu))
    fork = snapshot = None
    for index in range(CHUNKS):
        if index in (2, 6):
            text = GREEN if index == 2 else RED
            mine.set_prompt(prompts(cpu, text))
            other.set_prompt(*prompts(cpu, text))
        if index == 4:
            fork, snapshot = other.fork(), other.snapshot()
            other.save(tmp_path / "gpu.state")
        expected = next(mine).frames
        assert np.array_equal(other.frames(), expected), f"chunk {index}"
        if index == 4:
            assert fork is not None and np.array_equal(fork.frames(), expected)
            assert np.array_equal(next(Rollout.resume(cpu, tmp_path / "gpu.state", threads=1)).frames, expected)
    assert np.array_equal(other.sample(), mine.sample.reshape(-1))
    mine.save(tmp_path / "cpu.state")
    expected = next(mine).frames
    resumed = CRollout.resume(CPlan(library, engine_plan(cpu).path), tmp_path / "cpu.state")
    assert np.array_equal(resumed.frames(), expected)
    assert fork is not None and snapshot is not None
    other.restore(snapshot)
    library.functions.videossm_snapshot_free(snapshot)
    other.frames()
    assert np.array_equal(other.frames(), fork.frames())
    sample = np.random.default_rng(1).standard_normal(mine._program.sample_shape, np.float32)
    assert np.array_equal(resumed.append(sample), mine.append(sample).frames)
    assert trt.cuda.graphs


def test_each_side_of_a_pair_is_a_graph_of_its_own(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate
) -> None:
    """As in Python. From then on graphs are launched, and nothing is allocated or freed."""
    trt = emulate()
    rollout = start(library, engine_plan(tiny_plan))
    calls = len(trt.cuda.calls)
    for _ in range(30):
        rollout.frames()
    taken = {name for _, name in trt.cuda.calls[calls:]} & {"cudaMalloc", "cudaMallocHost", "cudaEventCreateWithFlags"}
    assert not taken, "all memory is taken before the first chunk"
    passes, sides, evicting_slots = len(tiny_plan.manifest.passes), 2, 2
    assert len(trt.cuda.graphs) == passes * sides + sides + evicting_slots
    runs, calls = sum(context.runs for context in trt.contexts), len(trt.cuda.calls)
    kept = (len(trt.cuda.blocks), len(trt.cuda.events), len(trt.cuda.graphs))
    for _ in range(60):
        rollout.frames()
    assert sum(context.runs for context in trt.contexts) == runs
    assert kept == (len(trt.cuda.blocks), len(trt.cuda.events), len(trt.cuda.graphs))


def test_making_a_chunk_waits_for_its_frames_alone(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate
) -> None:
    """Between passes the host waits for a staging block at most, eight copies later."""
    trt = emulate()
    rollout = start(library, engine_plan(tiny_plan))
    before = len(trt.cuda.waits)
    rollout.frames()
    assert trt.cuda.waits[before:] == ["cudaEventSynchronize"]


def test_without_graphs_it_runs_all_the_same(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate
) -> None:
    trt, mine = emulate("random"), Rollout(tiny_plan, RED, 5, threads=1)
    trt.options.capturable = False
    rollout = start(library, engine_plan(tiny_plan))
    for _ in range(6):
        assert np.array_equal(rollout.frames(), next(mine).frames)
    assert not trt.cuda.graphs


def test_all_that_was_taken_is_given_back(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate
) -> None:
    trt = emulate()
    plan = CPlan(library, engine_plan(tiny_plan).path)
    rollout = CRollout.create(plan, [RED])
    for _ in range(4):
        rollout.frames()
    fork = rollout.fork()
    fork.frames()
    del plan, rollout
    fork.frames()
    del fork
    assert not (trt.cuda.blocks or trt.cuda.events or trt.cuda.graphs or trt.cuda.streams)


@pytest.mark.parametrize("nth", [1, 2, 5, 20])
def test_what_fails_to_load_leaves_nothing(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate, nth: int
) -> None:
    trt = emulate()
    trt.cuda.fail("cudaMalloc" if nth > 1 else "cudaMallocHost", 2, nth)
    with pytest.raises(
        CError, match=r"^cudaMalloc(Host)?: got CUDA error 2 \(out of memory\), expected more"
    ) as caught:
        start(library, engine_plan(tiny_plan))
    assert caught.value.status == MEMORY
    del caught  # its traceback has the plan
    gc.collect()
    assert not (trt.cuda.blocks or trt.cuda.events or trt.cuda.graphs or trt.cuda.streams)


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("createInferRuntime", "backend: tensorrt cannot start: {}; check the driver"),
        ("deserialize_cuda_engine", "text_encoder.engine: tensorrt cannot load it: {}; export the plan for this GPU"),
        ("create_execution_context", "step.engine: no execution context: {}; free memory of the GPU"),
        ("input_ids", "text_encoder.engine: inputs: input_ids: got int64 1x5 on the host, expected int64 1x5 by "),
        ("set_tensor_address", "text_encoder.engine: input_ids: no such address: {}; export the plan again"),
        ("execute_async_v3", "text_encoder.engine: cannot run: {}; check the plan's GPU"),
    ],
)
def test_what_tensorrt_refuses(
    library: Library,
    tiny_plan: Plan,
    engine_plan: Callable[..., Plan],
    emulate: Emulate,
    refuses: str,
    message: str,
) -> None:
    trt = emulate()
    trt.options.refuses = refuses
    with pytest.raises(CError) as caught:
        start(library, engine_plan(tiny_plan)).frames()
    said = f"[{refuses}] it failed, as the test wanted"
    assert str(caught.value).startswith(message.format(said)) and caught.value.status == BACKEND
    del caught
    gc.collect()
    assert not (trt.cuda.blocks or trt.cuda.events or trt.cuda.graphs or trt.cuda.streams)


def test_work_that_fails_ends_the_rollout(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate
) -> None:
    trt = emulate()
    rollout = start(library, engine_plan(tiny_plan))
    rollout.frames()
    trt.cuda.fail("work", 700, nth=12)
    with pytest.raises(CError, match="got CUDA error 700"):
        rollout.frames()
    with pytest.raises(CError, match=r"^rollout: interrupted within a chunk, whose state is lost") as caught:
        rollout.frames()
    assert caught.value.status == STATE


@pytest.mark.parametrize(("status", "devices"), [(35, 1), (100, 1), (0, 0)], ids=["no-driver", "no-device", "none"])
def test_without_a_gpu_it_says_so_before_tensorrt_does(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate, status: int, devices: int
) -> None:
    trt = emulate()
    trt.cuda.devices = devices
    if status:
        trt.cuda.fail("cudaGetDeviceCount", status)
    expected = r"^device: got cuda:0, but no usable GPU here \(.*\), expected one; .* --backend onnxruntime$"
    with pytest.raises(CError, match=expected):
        CPlan(library, engine_plan(tiny_plan).path)
    assert not trt.runtimes


def test_options_of_the_other_backend(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate
) -> None:
    emulate()
    for plan, options, message in (
        (engine_plan(tiny_plan), {"threads": 2}, "threads: got 2 for tensorrt, expected 0, "),
        (engine_plan(tiny_plan), {"device": 1}, "device: got cuda:1, expected cuda:0 to cuda:0; "),
        (tiny_plan, {"device": 1}, "device: got 1 for onnxruntime, expected 0, "),
    ):
        with pytest.raises(CError) as caught:
            CPlan(library, plan.path, **options)
        assert str(caught.value).startswith(message) and caught.value.status in (ARGUMENT, BACKEND)


@pytest.mark.parametrize("compatible", [False, True])
def test_only_version_compatible_engines_run_code_of_their_own(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate, compatible: bool
) -> None:
    trt = emulate()
    target = {"architectures": ["sm_90"], "version_compatible": compatible}
    CPlan(library, engine_plan(tiny_plan, target=target).path)
    assert trt.runtimes[0].engine_host_code_allowed is compatible


def test_engines_without_their_weights_are_for_python(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate
) -> None:
    emulate()
    plan = engine_plan(tiny_plan)
    engines = plan.values()["engines"]
    for engine in engines.values():
        engine["weights"] = engine["file"]
    with pytest.raises(CError, match=r"^text_encoder\.engine: got an engine without its weights, "):
        CPlan(library, engine_plan(plan, engines=engines).path)


def test_streamed_weights_get_what_is_left_the_most_used_first(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate
) -> None:
    trt = emulate()
    trt.options.streamable = 300_000
    trt.cuda.memory_bytes = 600_000
    rollout = start(library, engine_plan(tiny_plan))
    budgets = [context.engine.weight_streaming_budget_v2 for context in trt.contexts]
    assert budgets[0] == 300_000 and budgets[1] < 300_000 and budgets[2:] == [0] * (len(budgets) - 2)
    mine = Rollout(tiny_plan, RED, 5, threads=1)
    for _ in range(4):
        assert np.array_equal(rollout.frames(), next(mine).frames)


def test_rollouts_side_by_side_over_one_plan(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate
) -> None:
    emulate("random")
    shared, found = CPlan(library, engine_plan(tiny_plan).path), {}

    def play(seed: int) -> None:
        rollout = CRollout.create(shared, [RED], [seed])
        found[seed] = [rollout.frames() for _ in range(6)]

    threads = [threading.Thread(target=play, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, frames in found.items():
        mine = Rollout(tiny_plan, RED, seed, threads=1)
        assert all(np.array_equal(chunk, next(mine).frames) for chunk in frames), seed


def test_timings_are_the_devices(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate
) -> None:
    """In the emulation an engine takes a millisecond, and a copy no time."""
    emulate()
    rollout, passes = start(library, engine_plan(tiny_plan)), len(tiny_plan.manifest.passes)
    for _ in range(12):
        rollout.frames()
    expected = {"text_encoder": 1, "step": 12 * passes, "memory": 9, "decoder": 12}
    found = dict(rollout.timing(index) for index in range(len(tiny_plan.manifest.engines)))
    assert found == pytest.approx({name: runs / 1000 for name, runs in expected.items()})


def test_another_device_of_the_callers_stays_current(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate
) -> None:
    trt = emulate()
    trt.cuda.devices = 2
    trt.cuda.cudaSetDevice(1)
    start(library, engine_plan(tiny_plan)).frames()
    assert trt.cuda.current == 1


def test_tensorrt_rtx_says_itself_why_it_cannot_load_an_engine(
    library: Library, tiny_plan: Plan, engine_plan: Callable[..., Plan], emulate: Emulate
) -> None:
    """Its own library, which the backend finds and starts without a GPU."""
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    if found is None or not found.submodule_search_locations:
        pytest.skip("no TensorRT-RTX: make test installs it on Linux x86-64")
    (file,) = Path(found.submodule_search_locations[0]).glob("libtensorrt_rtx.so.*")
    ctypes.CDLL(str(file))
    emulate()
    with pytest.raises(CError, match=r"^text_encoder\.engine: tensorrt-rtx cannot load it: .+; export the plan"):
        CPlan(library, engine_plan(tiny_plan, backend="tensorrt-rtx").path)


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "package"), [("tensorrt", "tensorrt_libs"), ("tensorrt-rtx", "tensorrt_rtx_libs")])
@pytest.mark.usefixtures("headers")
def test_on_a_gpu_the_scenario_makes_pythons_frames(built: Path, tmp_path: Path, backend: str, package: str) -> None:
    """The same engines in both runtimes. Another process, as this one may have the emulation."""
    from videossm.export.cli import export
    from videossm.runtime.driver import probe_driver

    driver = probe_driver()
    if not driver.gpus:
        pytest.skip(f"no GPU here: {driver.problem}")
    libraries = importlib.util.find_spec(package)
    if libraries is None or not libraries.submodule_search_locations:
        pytest.skip(f"no {package}")
    architecture = ("--gpu-arch", driver.gpus[0].architecture) if backend == "tensorrt-rtx" else ()
    options = ("--precision", "fp16", "--backend", backend, *architecture, "--no-verify")
    with pytest.raises(SystemExit):
        export.main(["shapes", *options, "-o", str(tmp_path / "engine.plan")])
    plan, texts = Plan.open(tmp_path / "engine.plan"), ("a red circle", "a blue square")
    found = {"LD_LIBRARY_PATH": libraries.submodule_search_locations[0]}
    run(built / "scenario", plan.path, 0, 16, tmp_path / "frames", *texts, **found)
    mine, expected = Rollout(plan, texts[0], 5), []
    for index in range(16):
        if index == 8:
            mine.set_prompt(texts[1])
        expected.append(next(mine).frames.tobytes())
    assert (tmp_path / "frames").read_bytes() == b"".join(expected)
