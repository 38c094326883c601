"""What all tests share: how they run side by side, another processor, and a reason for what an old ONNX Runtime skips.

`make test` runs them in several processes, each tied to a processor: two processes with two threads each would fight
for the same two. A later ONNX Runtime than Python 3.10's last one skips nothing.
"""

from __future__ import annotations

import fcntl
import gc
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import onnxruntime
import pytest
from packaging.version import Version
from running import BUILDS, locked, run

from videossm.runtime import Plan

ROOT = Path(__file__).parents[1]
COMPILERS = ("c++", "g++", "clang++")
OLD = Version(onnxruntime.__version__) < Version("1.24")
BEYOND_OLD = {
    "LinearAttention(-1) is not a registered": "has no LinearAttention",
    "1.24 or later for a plan of lowering contrib": "has no LinearAttention",
    "ValidateOpsetForDomain": "stops at opset 23",
}
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1, ..; empty in a run of one process
MOST_WORKERS = 4  # of 3 GB each, at worst
PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
# The files that take longest, in this order: what is left for the end is short, and no process waits for another.
SLOW_FIRST = (
    "export/tensorrt/test_full_width.py",
    "export/test_full_width.py",
    "export/test_verify.py",
    "export/test_lowering.py",
    "plugins_trt/test_emulated_scans.py",
    "export/tensorrt/test_build.py",
    "plugins_trt/test_cuda_build.py",
    "export/test_cli.py",
    "export/test_polygraphy.py",
    "models/test_shapes.py",
    "export/test_shapes_plan.py",
    "export/test_precision.py",
    "plugins_trt/test_cpu_calls.py",
    "export/tensorrt/test_cli.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    return min(len(PROCESSORS) or os.cpu_count() or 1, MOST_WORKERS)


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, for what tests start too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("numprocesses", None):  # the workers' libraries read it as they are loaded
        os.environ["OMP_NUM_THREADS"] = "1"
    if WORKER and PROCESSORS:
        os.sched_setaffinity(0, {PROCESSORS[int(WORKER.removeprefix("gw")) % len(PROCESSORS)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {Path(__file__).parent / name: place for place, name in enumerate(SLOW_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """What the imports have made stays to the end: without walks over it an export takes 2.5 s instead of 3."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for message, why in BEYOND_OLD.items() if OLD and report.failed else ():
        if message in str(report.longrepr):
            path, line, _ = item.location
            report.outcome, report.longrepr = "skipped", (path, line, f"ONNX Runtime {onnxruntime.__version__} {why}")
    return report


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`shared(name, make)`: the folder that `make(folder)` fills, once for all processes of a run. Only to be read."""
    own = tmp_path_factory.getbasetemp()
    base = (own.parent if WORKER else own) / "shared"

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = base / name, base / f"{name}.made"
        base.mkdir(exist_ok=True)
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def small_plan_in(shared: Callable[[str, Callable[[Path], object]], Path]) -> Callable[..., Plan]:
    """`small_plan_in("contrib", positions="window")`: the small preset in fp32 with random weights."""

    def export(lowering: str, positions: str = "window") -> Plan:
        from videossm.export.build import BuildOptions, build_plan
        from videossm.models.shapes.tokenizer import build_tokenizer
        from videossm.models.videossm.deployment import deployment
        from videossm.models.videossm.model import random_model
        from videossm.models.videossm.presets import test as small_preset

        def make(folder: Path) -> None:
            config = small_preset().replace(window={"rope_frame": positions})
            small = deployment(random_model(config, seed=2), build_tokenizer().to_str())
            plan, canonical = folder / "engine.plan", folder / "canonical"
            plan.mkdir()
            canonical.mkdir()
            build_plan(small, BuildOptions("videossm", lowering), plan, canonical)

        return Plan.open(shared(f"small-{lowering}-{positions}", make) / "engine.plan")

    return export


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skips where C++ cannot be built."""
    if shutil.which("cmake") is None or not (os.environ.get("CXX") or any(shutil.which(name) for name in COMPILERS)):
        pytest.skip("nothing is built: got no C++ compiler or no cmake")


@pytest.fixture(scope="session")
def onnxruntime_root(compiler: None) -> Path:
    """With include/ and lib/, as `make cpp` sets it up; skips where it cannot."""
    folder = ROOT / "build" / "onnxruntime"
    with locked("onnxruntime"):
        command = ["sh", ROOT / "runtime" / "cpp" / "onnxruntime.sh", folder, sys.executable]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no ONNX Runtime to build with: {done.stderr.strip()}")
    return folder


@pytest.fixture(scope="session")
def build_target(compiler: None) -> Callable[[str], Path]:
    """Builds one target of plugins_trt and returns the folder that it lies in."""

    def build(target: str) -> Path:
        folder = BUILDS / "plugins_trt"
        with locked("plugins_trt"):
            root = f"-DONNXRUNTIME_ROOT={ROOT / 'build' / 'onnxruntime'}"
            run("cmake", "-S", ROOT / "plugins_trt", "-B", folder, "-DCMAKE_BUILD_TYPE=Release", root)
            run("cmake", "--build", folder, "--target", target)
        return folder

    return build


@pytest.fixture(scope="session")
def scans_library(onnxruntime_root: Path, build_target: Callable[[str], Path]) -> Path:
    """The scans as ONNX Runtime's operators; for who puts it into VIDEOSSM_SCANS."""
    return build_target("videossm_onnxruntime") / "libvideossm_onnxruntime.so"


@pytest.fixture
def native_scans(scans_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of the lowering `native` run in this test."""
    monkeypatch.setenv("VIDEOSSM_SCANS", str(scans_library))


@pytest.fixture
def all_processors() -> Iterator[None]:
    """For tests of threads: lets this process run on every processor, as outside of a parallel run."""
    if not PROCESSORS:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, PROCESSORS)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="session")
def emulated_python() -> list[str]:
    """The start of a command that runs this Python on an emulated Haswell: it has AVX2, no AVX-512 and no VNNI.

    Haswell, because no version of the emulator can give it VNNI. EPYC-Rome, AMD's kind of it, computes the same.
    """
    if platform.machine() != "x86_64":
        pytest.skip(f"{platform.machine()}: an emulated x86-64 processor needs the packages of an x86-64 machine")
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("no emulator of another processor: apt-get install qemu-user")
    command = [emulator, "-cpu", "Haswell", sys.executable]
    started = subprocess.run([*command, "-c", "import onnxruntime"], capture_output=True, text=True)
    if started.returncode:  # the emulator knows AVX2 from version 7.2 on
        pytest.skip(f"qemu-x86_64 cannot start ONNX Runtime: {started.stderr.strip().rpartition(chr(10))[2]}")
    return command
