"""The GPUs as CUDA's driver tells of them: a library of Python functions stands for the driver."""

from __future__ import annotations

import ctypes

import pytest

from videossm.runtime import driver
from videossm.runtime.driver import Driver, Gpu, ask, capability, is_architecture, probe_driver

GIB = 1 << 30
# What is asked of the driver, and the method that answers here.
FUNCTIONS = {
    "cuDriverGetVersion": "driver_get_version",
    "cuInit": "init",
    "cuDeviceGetCount": "device_get_count",
    "cuDeviceGet": "device_get",
    "cuDeviceGetName": "device_get_name",
    "cuDeviceTotalMem_v2": "device_total_mem",
    "cuDeviceGetAttribute": "device_get_attribute",
    "cuDevicePrimaryCtxRetain": "device_primary_ctx_retain",
    "cuCtxPushCurrent_v2": "ctx_push_current",
    "cuMemGetInfo_v2": "mem_get_info",
    "cuCtxPopCurrent_v2": "ctx_pop_current",
    "cuDevicePrimaryCtxRelease_v2": "device_primary_ctx_release",
    "cuGetErrorName": "get_error_name",
}


class Library:
    """Two GPUs. `fails`: a function's name, and the status that it gives."""

    gpus = (("NVIDIA RTX 4090", 8, 9, 24 * GIB, 20 * GIB), ("NVIDIA H200", 9, 0, 139 * GIB, 138 * GIB))

    def __init__(self, version: int = 13000, **fails: int) -> None:
        self.version, self.fails = version, fails
        self.calls: list[str] = []
        self.context: int | None = None

    def __getattr__(self, name: str):
        if name not in FUNCTIONS:
            raise AttributeError(f"undefined symbol: {name}")

        def call(*arguments):
            self.calls.append(name)
            return self.fails.get(name) or getattr(self, FUNCTIONS[name])(*arguments) or 0

        return call

    def driver_get_version(self, version):
        version._obj.value = self.version

    def init(self, flags):
        assert flags == 0

    def device_get_count(self, count):
        count._obj.value = len(self.gpus)

    def device_get(self, device, index):
        device._obj.value = index

    def device_get_name(self, name, size, device):
        name.value = self.gpus[device.value][0].encode()

    def device_total_mem(self, total, device):
        total._obj.value = self.gpus[device.value][3]

    def device_get_attribute(self, value, attribute, device):
        value._obj.value = self.gpus[device.value][{75: 1, 76: 2}[attribute]]

    def device_primary_ctx_retain(self, context, device):
        context._obj.value = 100 + device.value

    def ctx_push_current(self, context):
        self.context = context.value

    def mem_get_info(self, free, total):
        _, _, _, total._obj.value, free._obj.value = self.gpus[self.context - 100]

    def ctx_pop_current(self, context):
        self.context = None

    def device_primary_ctx_release(self, device):
        pass

    def get_error_name(self, status, name):
        name._obj.value = {100: b"CUDA_ERROR_NO_DEVICE"}.get(status)


@pytest.fixture(autouse=True)
def no_kernel_module(monkeypatch, tmp_path):
    monkeypatch.setattr(driver, "_MODULE_VERSION", tmp_path / "version")


def test_gpus():
    library = Library()
    rtx = Gpu(0, "NVIDIA RTX 4090", "sm_89", 24 * GIB, 20 * GIB)
    h200 = Gpu(1, "NVIDIA H200", "sm_90", 139 * GIB, 138 * GIB)
    assert ask(library) == Driver((13, 0), None, (rtx, h200))
    assert library.context is None
    assert library.calls.count("cuDevicePrimaryCtxRetain") == library.calls.count("cuDevicePrimaryCtxRelease_v2") == 2


def test_only_the_device_that_is_asked_for_gets_a_context():
    library = Library()
    assert [gpu.free_bytes for gpu in ask(library, [1]).gpus] == [None, 138 * GIB]
    assert library.calls.count("cuDevicePrimaryCtxRetain") == 1


@pytest.mark.parametrize("function", ["cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemGetInfo_v2"])
def test_a_device_that_gives_no_context(function):
    library = Library(**{function: 201})
    assert [gpu.free_bytes for gpu in ask(library).gpus] == [None, None]
    retained = 0 if function == "cuDevicePrimaryCtxRetain" else 2
    assert library.calls.count("cuDevicePrimaryCtxRelease_v2") == retained


def test_no_device():
    found = ask(Library(cuInit=100))
    assert found == Driver((13, 0), None, (), "cuInit gives CUDA_ERROR_NO_DEVICE")


def test_a_status_without_a_name():
    assert ask(Library(version=12080, cuDeviceGetCount=7)) == Driver((12, 8), None, (), "cuDeviceGetCount gives 7")


def test_no_visible_device(monkeypatch):
    monkeypatch.setattr(Library, "gpus", ())
    assert ask(Library()).problem == "the driver shows none"


def test_a_driver_that_lacks_a_function(monkeypatch):
    monkeypatch.delitem(FUNCTIONS, "cuDeviceTotalMem_v2")
    assert ask(Library()).problem == "undefined symbol: cuDeviceTotalMem_v2"


def test_no_driver(monkeypatch):
    monkeypatch.setattr(driver, "_LIBRARY", "no-such-library.so")
    assert probe_driver() == Driver(problem="no NVIDIA driver")


def test_version_of_the_kernel_module(tmp_path):
    line = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (buildd)\nGCC version: 13\n"
    )
    (tmp_path / "version").write_text(line)
    assert ask(Library()).version == "580.65.06"


def test_the_calls_exist_in_a_driver_if_there_is_one():
    try:
        library = ctypes.CDLL(driver._LIBRARY)
    except OSError:
        pytest.skip("no NVIDIA driver here")
    assert all(hasattr(library, name) for name in FUNCTIONS)


def test_architectures():
    assert capability("sm_89") == 89 and capability("sm_120") == 120
    assert [is_architecture(text) for text in ("sm_89", "sm_120", "89", "sm_", "sm_8a", "SM89")] == [True, True] + 4 * [
        False
    ]
