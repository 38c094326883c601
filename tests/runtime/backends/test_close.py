"""What a device has given is given back: by `close`, in a fixed order, or once nothing refers to it, in any order."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from videossm.runtime import BackendError
from videossm.runtime.backends import open_backend
from videossm.runtime.backends.cuda import CudaDevice, CudaEvent, CudaStopwatch
from videossm.runtime.backends.cuda_memory import CudaMemory

RELEASES = ["cudaGraphExecDestroy", "cudaEventDestroy", "cudaFree", "cudaFreeHost", "cudaStreamDestroy"]


@pytest.fixture
def cuda(emulate):
    return emulate()


@pytest.fixture
def memory(cuda):
    return on_device()


def on_device():
    return CudaMemory(CudaDevice(0, "use --device cpu"))


def left(cuda):
    return [cuda.blocks, cuda.events, cuda.graphs, cuda.streams]


def opened(memory):
    """One of everything, with work that is still queued."""
    source, target = (memory.buffer((1, 4), np.dtype("float32")) for _ in range(2))
    graph = memory.device.capture(lambda: target.copy_from(source))
    watch = CudaStopwatch(memory.device)
    watch.start()
    source.write(np.ones((1, 4)))
    graph.launch()
    watch.stop()
    return [graph, source, CudaEvent(memory.device), target.read_later(), target, watch]


def test_close_gives_all_back_in_order_while_it_is_referred_to(cuda, memory):
    kept = opened(memory)
    cuda.calls.clear()
    memory.close()
    released = [name for _, name in cuda.calls if name in RELEASES]
    assert released == sorted(released, key=RELEASES.index) and set(released) == set(RELEASES)
    assert not any(left(cuda)), "nothing is left"
    assert memory.device.taken == {"buffers": 0, "activations": 0, "pinned": 0} and memory.device.graphs == 0
    cuda.calls.clear()
    memory.close()
    del kept
    gc.collect()
    assert not cuda.calls, "neither a second close nor the end of an object calls CUDA"


@pytest.mark.parametrize("first", range(6))
def test_what_is_not_referred_to_is_gone_in_any_order(cuda, first):
    kept = opened(on_device())
    kept = kept[first:] + kept[:first]
    while kept:
        kept.pop(0)
    assert not any(left(cuda))


def test_garbage_in_a_cycle_is_given_back(cuda):
    kept = opened(on_device())
    kept.append(kept)
    assert all(left(cuda))
    del kept
    gc.collect()
    assert not any(left(cuda))


def test_a_closed_device_says_so(cuda, memory):
    tensor = memory.buffer((1, 4), np.dtype("float32"))
    transfer = tensor.read_later()
    memory.close()
    for use in (tensor.read, transfer.wait, lambda: memory.buffer((1, 4), np.dtype("float32"))):
        with pytest.raises(
            BackendError, match=r"^device: got cuda:0 after it was closed, expected it open; open anoth"
        ):
            use()


def test_what_was_read_stays(cuda, memory):
    transfer = memory.buffer((1, 4), np.dtype("float32")).read_later()
    values = transfer.wait()
    memory.close()
    assert transfer.ready and transfer.wait() is values and not values.any()


def test_a_stream_that_cannot_be_made_leaves_none(emulate):
    cuda = emulate()
    cuda.fail("cudaStreamCreateWithFlags", 2, nth=2)
    with pytest.raises(BackendError):
        CudaDevice(0, "use --device cpu")
    gc.collect()
    assert not any(left(cuda))


def test_a_backend_is_closed_by_with(tiny_plan):
    with open_backend(tiny_plan.manifest, threads=1) as backend:
        spec = tiny_plan.manifest.engines["decoder"]
        engine = backend.load("decoder", spec, tiny_plan.path / spec.file)
    backend.close()
    with pytest.raises(AttributeError):
        engine.bind({}, {})
