"""`videossm-run` and `videossm-bench` with a plan of TensorRT: on the emulation, and on a machine without a GPU."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest

from videossm.runtime import Chunk, Rollout
from videossm.runtime.backends.memory import HostTransfer
from videossm.runtime.driver import probe_driver
from videossm.runtime.sinks.frames import PngSink

run, bench = (importlib.import_module(f"videossm.runtime.cli.{tool}") for tool in ("run", "bench"))
RED, GREEN = "a red circle moves left", "a green square"


@pytest.fixture
def gpu(tensorrt, monkeypatch):
    """The emulation, behind the preflight."""
    for tool in (run, bench):
        monkeypatch.setattr(tool, "require_run", lambda plan, device: None)
    return tensorrt("late")


def called(command, *arguments):
    with pytest.raises(SystemExit) as ended:
        command.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def events(monkeypatch):
    """What happened to which chunk, in order: queued, written, saved."""
    seen = []
    make, save, write = Rollout.__next__, Rollout.save, PngSink.write
    written = iter(range(100))

    def noted_make(rollout):
        chunk = make(rollout)
        seen.append(f"queued {chunk.index}")
        return chunk

    def noted_save(rollout, path):
        seen.append(f"saved {rollout.next_index - 1}")
        save(rollout, path)

    def noted_write(sink, frames):
        seen.append(f"written {next(written)}")
        write(sink, frames)

    monkeypatch.setattr(Rollout, "__next__", noted_make)
    monkeypatch.setattr(Rollout, "save", noted_save)
    monkeypatch.setattr(PngSink, "write", noted_write)
    return seen


def test_a_gpu_has_the_next_chunk_while_frames_are_written(gpu, tiny_plan, engine_plan, tmp_path, events):
    assert called(run.run, engine_plan(tiny_plan).path, "--prompt", RED, "--chunks", 4, "-o", tmp_path / "out.png") == 0
    first = ["queued 0", "written 0"]
    assert events == [*first, "queued 1", "queued 2", "written 1", "queued 3", "written 2", "written 3"]


def test_with_a_state_each_chunk_is_written_and_saved_first(gpu, tiny_plan, engine_plan, tmp_path, events):
    state = tmp_path / "state.safetensors"
    arguments = ["--prompt", RED, "--chunks", 3, "-o", tmp_path / "out.png", "--save-state", state]
    assert called(run.run, engine_plan(tiny_plan).path, *arguments) == 0
    assert events == [f"{what} {index}" for index in range(3) for what in ("queued", "written", "saved")]


def test_on_a_cpu_no_chunk_is_kept_waiting(tiny_plan, tmp_path, events):
    assert called(run.run, tiny_plan.path, "--prompt", RED, "--chunks", 3, "-o", tmp_path / "out.png") == 0
    assert events == [f"{what} {index}" for index in range(3) for what in ("queued", "written")]


def test_frames_are_the_cpus(gpu, tiny_plan, engine_plan, tmp_path):
    arguments = ["--prompt", RED, "--prompt-at", f"0.75:{GREEN}", "--chunks", 6]
    for plan, name in ((engine_plan(tiny_plan).path, "gpu"), (tiny_plan.path, "cpu")):
        assert called(run.run, plan, *arguments, "-o", tmp_path / f"{name}.y4m") == 0
    assert (tmp_path / "gpu.y4m").read_bytes() == (tmp_path / "cpu.y4m").read_bytes()


def test_interrupted_the_chunk_that_is_made_is_written(gpu, tiny_plan, engine_plan, tmp_path, monkeypatch, capsys):
    make = Rollout.__next__

    def interrupted(rollout):
        if rollout.next_index == 3:
            rollout.cancel()
        return make(rollout)

    monkeypatch.setattr(Rollout, "__next__", interrupted)
    assert called(run.run, engine_plan(tiny_plan).path, "--prompt", RED, "-o", tmp_path / "out.png", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["chunks"] == 3 and len(list(tmp_path.glob("out-*.png"))) == 9


def test_bench_shows_what_the_gpu_holds(gpu, tiny_plan, engine_plan, capsys):
    assert called(bench.bench, engine_plan(tiny_plan).path, "--chunks", 6, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["device"] == "cuda:0"
    assert result["engine_ms_per_chunk"] == pytest.approx({"text_encoder": 0, "step": 4, "memory": 1, "decoder": 1})
    usage = result["device_usage"]
    assert usage["buffers_bytes"] + usage["activations_bytes"] == gpu.cuda.bytes_of("device") or usage["graphs"] > 0
    assert called(bench.bench, engine_plan(tiny_plan).path, "--chunks", 2) == 0
    table = capsys.readouterr().out
    for row in ("  weights", "  activations", "  buffers", "  pinned", "CUDA graphs"):
        assert f"\n{row}" in table


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("device", [[], ["--device", "cpu"]], ids=["own-device", "cpu"])
def test_without_a_gpu_one_line_names_the_way_to_a_cpu(tiny_plan, engine_plan, tmp_path, capsys, backend, device):
    if probe_driver().problem is None:
        pytest.skip("there is a GPU here")
    plan = engine_plan(tiny_plan, backend=backend).path
    assert called(run.run, plan, "--prompt", RED, "-o", tmp_path / "out.mp4", *device) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("device: got ") and "--backend onnxruntime" in err
    assert not (tmp_path / "out.mp4").exists()


def test_a_chunk_gives_the_same_frames_every_time():
    frames = np.zeros((1, 3, 8, 8, 3), np.uint8)
    chunk = Chunk(2, 0.75, HostTransfer(frames))
    assert chunk.ready and chunk.frames is frames and (chunk.index, chunk.start_s) == (2, 0.75)
