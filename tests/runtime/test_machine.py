"""What a machine has, found without raising."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import onnxruntime
import pytest

from videossm.runtime import machine
from videossm.runtime.machine import CUDA_BINDINGS, check_free, probe_machine
from videossm.runtime.processor import probe_processor


def test_this_machine():
    found = probe_machine(("onnxruntime",))
    assert found.packages["onnxruntime"].version == onnxruntime.__version__
    assert "CPUExecutionProvider" in found.providers and found.cpu_threads >= 1
    assert found.memory_bytes is None or 0 < found.memory_free_bytes <= found.memory_bytes
    assert found.gpus or found.driver.problem
    assert found.processor == probe_processor()
    assert json.loads(json.dumps(asdict(found)))["python"] == found.python


def test_a_cpu_needs_no_look_at_gpus(monkeypatch):
    monkeypatch.setattr(machine, "probe_driver", lambda measured: pytest.fail("looked for GPUs"))
    found = probe_machine(("onnxruntime",), ())
    assert CUDA_BINDINGS not in found.packages and found.driver.problem == "not looked for"


def test_only_what_is_asked_for_is_loaded():
    code = "from videossm.runtime.machine import probe_machine; probe_machine(('onnxruntime',), ())"
    script = f"{code}\nimport sys; print([name for name in sys.modules if name.startswith(('tensorrt', 'cuda'))])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = probe_machine(("onnxruntime", "tensorrt"), ())
    assert found.providers == ()
    assert str(found.packages["onnxruntime"].problem).startswith(
        "package onnxruntime: got none installed, expected it; "
    )
    assert str(found.packages["tensorrt"].problem).endswith("pip install 'videossm[trt]'")


def test_a_package_that_cannot_start(monkeypatch, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise OSError('libfoo.so.1: cannot open\\nshared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    problem = probe_machine(("onnxruntime",), ()).packages["onnxruntime"].problem
    assert "one that cannot start (libfoo.so.1: cannot open shared object file)" in str(problem)


def test_memory_of_a_container(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CONTAINER_LIMIT", tmp_path / "limit")
    assert machine.probe_memory() == (None, None)
    (tmp_path / "meminfo").write_text(
        "MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:  400 kB\nHugePages_Total: 0\n"
    )
    assert machine.probe_memory() == (1_024_000, 409_600)
    for limit, expected in (("max\n", (1_024_000, 409_600)), ("500000\n", (500_000, 409_600)), ("9\n", (9, 9))):
        (tmp_path / "limit").write_text(limit)
        assert machine.probe_memory() == expected


def test_free_memory():
    assert not check_free("memory", 10, 10, "wait") and not check_free("memory", 10, None, "wait")
    (problem,) = check_free("memory", 3_000_000_000, 2_000_000_000, "wait")
    assert str(problem) == "memory: got 2.00 GB free, expected at least 3.00 GB; wait"
