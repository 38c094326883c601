"""Buffers on the host and on an emulated GPU: parts, values, copies, and what lies where."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from videossm.runtime import BackendError
from videossm.runtime.backends.cuda import CudaDevice
from videossm.runtime.backends.cuda_memory import CudaMemory
from videossm.runtime.backends.memory import HostBuffer

ORDERS = ("late", "early", "compute-first", "copies-first", "random")


@pytest.fixture(params=["host", *ORDERS])
def make(request, emulate):
    """`make(shape, dtype)`: a buffer of that kind."""
    if request.param == "host":
        return lambda shape, dtype: HostBuffer(np.zeros(shape, dtype))
    emulate(request.param)
    memory = CudaMemory(CudaDevice(0, "use --device cpu"))
    return lambda shape, dtype: memory.buffer(shape, np.dtype(dtype))


@pytest.fixture
def cuda(emulate):
    return emulate()


@pytest.fixture
def memory(cuda):
    return CudaMemory(CudaDevice(0, "use --device cpu"))


def buffer(memory, *shape, dtype="float32"):
    return memory.buffer(shape, np.dtype(dtype))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8"])
def test_parts_are_slices_of_the_whole(make, batch, dtype):
    whole, expected = make((batch, 6, 2, 2), dtype), np.zeros((batch, 6, 2, 2), dtype)
    assert np.array_equal(whole.read(), expected), "zeros at first"
    values = np.arange(batch * 8).reshape(batch, 2, 2, 2).astype(dtype)
    part = whole.part(2, 4)
    part.write(values)
    expected[:, 2:4] = values
    assert np.array_equal(whole.read(), expected)
    assert np.array_equal(part.read(), values) and part.shape == values.shape
    assert whole.bindable and part.bindable == (
        batch == 1 and (part.address % 256 == 0 or isinstance(part, HostBuffer))
    )
    assert part.address == whole.address + 2 * 4 * np.dtype(dtype).itemsize


def test_what_is_read_later_is_as_it_was(make):
    """Whatever is written before anybody waits."""
    tensor = make((2, 3), "float32")
    transfers = []
    for value in range(5):
        tensor.write(np.full((2, 3), value, np.float32))
        transfers.append(tensor.read_later())
    tensor.write(np.full((2, 3), 9, np.float32))
    for value, transfer in enumerate(transfers):
        assert (transfer.wait() == value).all(), f"transfer {value}"
        assert transfer.ready and transfer.wait() is transfer.wait(), "the same array, kept"


@pytest.mark.parametrize("order", ORDERS)
def test_a_copy_waits_for_who_reads_its_target(emulate, order):
    emulate(order)
    memory = CudaMemory(CudaDevice(0, "use --device cpu"))
    target, source = buffer(memory, 1, 4), buffer(memory, 1, 4)
    transfer = target.read_later()
    source.write(np.ones((1, 4)))
    target.copy_from(source)
    memory.device.finish()
    assert not transfer.wait().any() and target.read().all()


def test_written_values_may_change_at_once(make):
    tensor, values = make((1, 4), "float32"), np.ones((1, 4), np.float32)
    tensor.write(values)
    values[...] = 7
    assert (tensor.read() == 1).all()


def test_written_values_take_the_buffers_dtype(make):
    tensor = make((1, 2), "float16")
    tensor.write(np.array([[0.1, 2.0]], np.float32))
    assert tensor.read().tolist() == np.array([[0.1, 2.0]], np.float16).tolist()


def test_copies_between_parts_on_the_device(memory):
    whole, small = buffer(memory, 2, 6, 3), buffer(memory, 2, 2, 3)
    values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    small.write(values)
    whole.part(4, 6).copy_from(small)
    assert np.array_equal(whole.read()[:, 4:], values) and not whole.read()[:, :4].any()


def test_values_larger_than_a_staging_block_go_in_pieces(cuda, memory):
    large = buffer(memory, 1, (10 << 20) + 12, dtype="uint8")
    values = np.random.default_rng(0).integers(0, 256, large.shape, np.uint8)
    large.write(values)
    assert np.array_equal(large.read(), values)
    assert cuda.bytes_of("pinned") == 12 << 20


def test_a_block_is_freed_when_all_that_is_queued_is_done(cuda, memory):
    tensor = memory.buffer((1, 4), np.dtype("float32"))
    cuda.calls.clear()
    del tensor
    assert [name for _, name in cuda.calls] == ["cudaStreamSynchronize", "cudaStreamSynchronize", "cudaFree"]


def test_nothing_waits_but_reads(cuda, memory):
    tensor, other = buffer(memory, 2, 8), buffer(memory, 2, 8)
    for _ in range(20):
        tensor.write(np.ones((2, 8)))
        other.copy_from(tensor)
    transfer = other.read_later()
    other.write(np.zeros((2, 8)))
    assert not cuda.waits and not transfer.ready and not cuda.done, "all is queued"
    transfer.wait()
    assert cuda.waits == ["cudaEventSynchronize"] and (transfer.wait() == 1).all()


def test_staging_blocks_are_bounded_and_used_again(cuda, memory):
    tensor = buffer(memory, 1, 4)
    for value in range(1000):
        tensor.write(np.full((1, 4), value, np.float32))
    assert cuda.bytes_of("pinned") == 64 * 256, "64 blocks of the smallest size"
    assert (tensor.read() == 999).all()
    before = cuda.bytes_of("pinned")
    for _ in range(64):
        tensor.write(np.zeros((1, 4)))
        tensor.read()
    assert cuda.bytes_of("pinned") == before


def test_two_landing_blocks_however_many_transfers(cuda, memory):
    """Those that nobody wants are not copied; those that somebody wants move to memory of their own."""
    tensor, kept = buffer(memory, 1, 1000), []
    for value in range(40):
        tensor.write(np.full((1, 1000), value, np.float32))
        transfer = tensor.read_later()
        if value % 2:
            kept.append((value, transfer))
    assert cuda.bytes_of("pinned") - 8 * 4096 <= 64 * 4096, "two blocks beside the staging"
    assert memory.device.taken["pinned"] == cuda.bytes_of("pinned")
    assert all((transfer.wait() == value).all() for value, transfer in kept)


def test_every_call_is_on_the_buffers_device(emulate):
    """Another thread may have another current device."""
    cuda = emulate(devices=4)
    memory = CudaMemory(CudaDevice(3, "use --device cpu"))
    tensor = buffer(memory, 1, 4)
    for operation in ("write", "read", "read_later", "free"):
        cuda.current = 0
        if operation == "free":
            del tensor, memory
        elif operation == "write":
            tensor.write(np.ones((1, 4)))
        else:
            getattr(tensor, operation)()
    assert {device for device, _ in cuda.calls} == {3}


def test_memory_is_freed_with_its_last_part(cuda, memory):
    tensor = buffer(memory, 1, 4)
    part = tensor.part(1, 2)
    del tensor
    assert cuda.bytes_of("device") == memory.device.taken["buffers"] == 16, "a part keeps the whole alive"
    del part
    assert cuda.bytes_of("device") == memory.device.taken["buffers"] == 0


def test_no_room_on_the_device_says_what_was_taken(cuda, memory):
    kept = buffer(memory, 1, 1 << 20)
    cuda.fail("cudaMalloc", 2)
    expected = r"^cudaMalloc: got CUDA error 2 \(.*\), expected room for 4 MB of buffers, .*; free memory of the GPU"
    with pytest.raises(BackendError, match=expected):
        buffer(memory, 1, 4)
    assert not kept.read().any(), "what was there stays"


def test_work_that_fails_is_told_where_it_is_waited_for(cuda, memory):
    tensor = buffer(memory, 1, 4)
    cuda.fail("work", 700)
    with pytest.raises(BackendError, match=r"got CUDA error 700 \(.*illegal memory access"):
        tensor.read()
    with pytest.raises(BackendError, match=r"^cudaMemcpyAsync: got CUDA error 700|^cudaMalloc"):
        buffer(memory, 1, 4)


def test_cuda_bindings_that_are_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"pip install 'cuda-bindings>=13', or use --device cpu$"):
        CudaDevice(0, "use --device cpu")


def test_devices_that_are_not_there(emulate):
    cuda = emulate(devices=2)
    with pytest.raises(BackendError, match=r"^device: got cuda:2, expected cuda:0 to cuda:1; change --device$"):
        CudaDevice(2, "use --device cpu")
    cuda.fail("cudaGetDeviceCount", 35)
    with pytest.raises(
        BackendError, match=r"no usable GPU here \(CUDA driver version is insuff.*\).*; use --device cpu$"
    ):
        CudaDevice(0, "use --device cpu")


def test_a_capture_records_and_does_not_execute(cuda, memory):
    device, tensor, other = memory.device, buffer(memory, 1, 4), buffer(memory, 1, 4)
    tensor.write(np.ones((1, 4)))
    graph = device.capture(lambda: other.copy_from(tensor))
    assert not other.read().any() and device.graphs == 1, "nothing was executed"
    for value in (1, 5):
        tensor.write(np.full((1, 4), value))
        graph.launch()
        assert (other.read() == value).all(), "what lies there when it is launched"
    del graph
    assert device.graphs == 0 and not cuda.graphs


def test_memory_that_dies_within_a_capture_is_freed_after_it(cuda, memory):
    """Python collects garbage when it likes, and CUDA forbids to free within a capture."""
    garbage, tensor, other = [buffer(memory, 1, 4)], buffer(memory, 1, 4), buffer(memory, 1, 4)

    def work():
        garbage.clear()
        other.copy_from(tensor)

    memory.device.capture(work).launch()
    assert cuda.bytes_of("device") == 32


@pytest.mark.parametrize("where", ["cudaStreamBeginCapture", "work", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_capture_that_fails_leaves_the_stream_as_it_was(cuda, memory, where):
    tensor, other = buffer(memory, 1, 4), buffer(memory, 1, 4)
    tensor.write(np.ones((1, 4)))
    if where != "work":
        cuda.fail(where, 901)

    def work():
        other.copy_from(tensor)
        if where == "work":
            memory.device.finish()  # forbidden: it invalidates the capture

    with pytest.raises(BackendError, match="CUDA error 90"):
        memory.device.capture(work)
    assert not other.read().any()
    other.copy_from(tensor)
    assert (other.read() == 1).all() and not cuda.graphs
