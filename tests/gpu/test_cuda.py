"""The runtime's own CUDA on a real device: what the emulation in tests/runtime/backends assumes."""

from __future__ import annotations

import numpy as np
import pytest

from videossm.runtime import BackendError
from videossm.runtime.backends.cuda import CudaDevice
from videossm.runtime.backends.cuda_memory import CudaMemory

pytestmark = pytest.mark.gpu


@pytest.fixture
def memory():
    opened = CudaMemory(CudaDevice(0, "use --device cpu"))
    yield opened
    opened.close()


def test_values_go_there_and_back(memory):
    """In pieces, and by the rows of a part."""
    large = memory.buffer((3, 4 << 20), np.dtype("uint8"))
    assert not large.read().any(), "zeros at first"
    values = np.random.default_rng(0).integers(0, 256, (3, 1 << 20), np.uint8)
    part = large.part(1 << 20, 2 << 20)
    part.write(values)
    other = memory.buffer(values.shape, np.dtype("uint8"))
    other.copy_from(part)
    for result in (part.read(), part.read_later().wait(), other.read()):
        assert np.array_equal(result, values)
    assert large.read().sum() == values.sum(dtype=np.uint64)


def test_transfers_are_what_the_buffer_held(memory):
    tensor = memory.buffer((1, 1 << 20), np.dtype("float32"))
    transfers = []
    for value in range(20):
        tensor.write(np.full((1, 1 << 20), value, np.float32))
        transfers.append(tensor.read_later())
    assert all((transfer.wait() == value).all() for value, transfer in enumerate(transfers))


def test_a_captured_copy_is_executed_only_when_launched(memory):
    tensor, other = (memory.buffer((1, 1024), np.dtype("float32")) for _ in range(2))
    graph = memory.device.capture(lambda: other.copy_from(tensor))
    tensor.write(np.ones((1, 1024)))
    assert not other.read().any()
    graph.launch()
    assert other.read().all()


def test_close_gives_memory_back_though_it_is_referred_to(memory):
    free_bytes, _ = memory.device.memory_bytes()
    kept = [memory.buffer((1, 64 << 20), np.dtype("uint8")) for _ in range(4)]
    graph = memory.device.capture(lambda: kept[1].copy_from(kept[0]))
    graph.launch()
    transfer = kept[1].read_later()
    memory.close()
    memory.close()
    with pytest.raises(BackendError, match=r"^device: got cuda:0 after it was closed"):
        transfer.wait()
    another = CudaDevice(0, "use --device cpu")
    assert another.memory_bytes()[0] > free_bytes - (64 << 20)
    another.close()
