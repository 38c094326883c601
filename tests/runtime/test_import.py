"""The runtime stands alone: no torch, no onnx, none of the other packages, and nothing heavy before it is needed."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys

import pytest

import videossm.runtime

FORBIDDEN = {"torch", "onnx", "onnxscript", "videossm.models", "videossm.export", "videossm.calib"}
LAZY = {"onnxruntime", "av", "tokenizers", "safetensors", "tqdm"}


def modules_after(code):
    """Names of all modules that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    return set(json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout))


def test_import_is_light():
    loaded = modules_after("import videossm.runtime, videossm.runtime.cli.run")
    assert not loaded & (FORBIDDEN | LAZY)


def test_every_module_does_without_the_exporter():
    names = [module.name for module in pkgutil.walk_packages(videossm.runtime.__path__, "videossm.runtime.")]
    assert {"videossm.runtime.rollout", "videossm.runtime.sinks.video", "videossm.runtime.cli.bench"} <= set(names)
    loaded = modules_after("\n".join(f"import {name}" for name in names))
    assert not loaded & FORBIDDEN


def test_a_whole_rollout_does_without_the_exporter(tiny_plan, tmp_path):
    arguments = [str(tiny_plan.path), "--prompt", "red", "--chunks", "5", "-o", str(tmp_path / "out.mp4")]
    loaded = modules_after(
        "from videossm.runtime.cli.run import run\n"
        f"try: run.main({arguments!r})\nexcept SystemExit as ended: assert not ended.code, ended.code"
    )
    assert "onnxruntime" in loaded and not loaded & FORBIDDEN


@pytest.mark.parametrize(
    "code",
    [
        "import videossm.runtime.backends.onnxruntime",
        "from videossm.runtime.machine import probe_machine; assert probe_machine().packages['onnxruntime'].version",
        "import videossm.export.cli, videossm.export.build",
        "import videossm.calib.cli.compare, videossm.calib.backend",
    ],
)
def test_onnxruntime_keeps_nothing_in_the_users_folders(code, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    subprocess.run([sys.executable, "-B", "-c", code], env={**environment, "HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("before", "calls"),
    [("ort.disable_telemetry_events = lambda: calls.append(1)", 1), ("del ort.disable_telemetry_events", 0)],
    ids=["now", "old"],
)
def test_telemetry_of_an_onnxruntime_that_was_there_before(before, calls):
    code = f"""
import onnxruntime as ort
calls = []
{before}
import videossm.runtime.backends.onnxruntime
assert len(calls) == {calls}
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"}, check=True)
