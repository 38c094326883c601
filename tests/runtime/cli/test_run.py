"""`videossm-run`: what it writes and prints, and that nothing is lost when it is stopped."""

from __future__ import annotations

import itertools
import json
import signal
import time
from pathlib import Path

import av
import numpy as np
import pytest

from videossm.runtime import Rollout
from videossm.runtime.cli.run import run

RED, GREEN = "a red circle moves left", "a green square"
MODULE = "videossm.runtime.cli.run"
FRAME_BYTES = 32 * 32 * 3


def frames_in(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def expected_frames(plan, chunks, switches=None):
    rollout = Rollout(plan, RED)
    frames = []
    for index in range(chunks):
        if switches and index in switches:
            rollout.set_prompt(switches[index])
        frames.extend(next(rollout).frames)
    return frames


def wait_for(happened, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_frames_are_those_of_the_rollout(called, tiny_plan, tmp_path):
    code, out, err = called(run, tiny_plan.path, "--prompt", RED, "--chunks", 4, "-o", tmp_path / "out.png")
    assert (code, out) == (0, "") and "12 frames, 1.5 s of video" in err
    got = [frames_in(tmp_path / f"out-{index:05d}.png")[0] for index in range(12)]
    assert all(map(np.array_equal, got, expected_frames(tiny_plan, 4)))


def test_seconds_are_rounded_up_to_chunks(called, tiny_plan, tmp_path):
    called(run, tiny_plan.path / "step.onnx", "--prompt", RED, "--seconds", 1.5, "-o", tmp_path / "exact.mp4")
    called(run, tiny_plan.path, "--prompt", RED, "--seconds", 1.51, "-o", tmp_path / "more.mp4")
    assert len(frames_in(tmp_path / "exact.mp4")) == 12 and len(frames_in(tmp_path / "more.mp4")) == 15


def test_five_seconds_if_no_length_is_given(called, tiny_plan, tmp_path):
    called(run, tiny_plan.path, "--prompt", RED, "-o", tmp_path / "out.mp4")
    assert len(frames_in(tmp_path / "out.mp4")) == 42


def test_json_is_one_object_and_nothing_else(called, tiny_plan, tmp_path):
    arguments = ["--prompt", RED, "--prompt-at", f"0.7:{GREEN}", "--seed", 3, "--chunks", 5, "--json"]
    state, video = tmp_path / "state.safetensors", tmp_path / "out.mp4"
    code, out, err = called(run, tiny_plan.path, *arguments, "-o", video, "--save-state", state)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["chunks"], report["frames"], report["seconds"]) == (5, 15, 1.875)
    assert report["prompts"] == [{"start_s": 0.0, "prompt": RED}, {"start_s": 0.75, "prompt": GREEN}]
    assert (report["output_files"], report["state_file"]) == ([str(video)], str(state))
    assert report["seeds"] == [3] and report["first_chunk"] == 0 and report["interrupted"] is False
    for measured in ("ms_per_chunk", "realtime_factor", "time_to_first_frame_s", "wall_s"):
        assert report[measured] > 0, measured


def test_prompt_at_starts_with_the_first_chunk_from_then_on(called, tiny_plan, tmp_path):
    switch = ["--prompt-at", f"0.75:{GREEN}", "--prompt-at", f"1.2:{RED}"]
    called(run, tiny_plan.path, "--prompt", RED, *switch, "--chunks", 6, "-o", tmp_path / "out.png")
    expected = expected_frames(tiny_plan, 6, {2: GREEN, 4: RED})
    got = [frames_in(tmp_path / f"out-{index:05d}.png")[0] for index in range(18)]
    assert all(map(np.array_equal, got, expected))


@pytest.mark.parametrize("kind", ["mp4", "gif", "y4m"])
def test_same_command_same_file(called, tiny_plan, tmp_path, kind):
    for name in ("one", "other"):
        called(run, tiny_plan.path, "--prompt", RED, "--chunks", 6, "-o", tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"other.{kind}").read_bytes()


def test_batch_slots_lie_side_by_side(called, build_plan, tmp_path):
    plan = build_plan(batch=2)
    called(run, plan.path, "--prompt", RED, "--seed", 4, "--chunks", 1, "-o", tmp_path / "out.png")
    slots = next(Rollout(plan, [RED, RED], [4, 5])).frames
    assert np.array_equal(frames_in(tmp_path / "out-00000.png")[0], np.concatenate(list(slots[:, 0]), axis=1))


def test_resume_goes_on_bit_identically(called, tiny_plan, tmp_path):
    state = tmp_path / "state.safetensors"
    called(run, tiny_plan.path, "--prompt", RED, "--chunks", 5, "-o", tmp_path / "out.png", "--save-state", state)
    code, out, _ = called(
        run,
        tiny_plan.path,
        "--resume",
        state,
        "--chunks",
        3,
        "-o",
        tmp_path / "out.png",
        "--save-state",
        state,
        "--json",
    )
    report = json.loads(out)
    assert code == 0 and (report["first_chunk"], report["chunks"]) == (5, 3)
    assert report["prompts"] == [{"start_s": 1.875, "prompt": RED}]
    called(run, tiny_plan.path, "--resume", state, "--chunks", 1, "-o", tmp_path / "out.png")
    got = [frames_in(tmp_path / f"out-{index:05d}.png")[0] for index in range(27)]
    assert all(map(np.array_equal, got, expected_frames(tiny_plan, 9)))


def test_resume_with_another_prompt(called, tiny_plan, tmp_path):
    state = tmp_path / "state.safetensors"
    called(run, tiny_plan.path, "--prompt", RED, "--chunks", 4, "-o", tmp_path / "a.mp4", "--save-state", state)
    called(run, tiny_plan.path, "--resume", state, "--prompt", GREEN, "--chunks", 2, "-o", tmp_path / "out.png")
    got = [frames_in(tmp_path / f"out-{index:05d}.png")[0] for index in range(12, 18)]
    assert all(map(np.array_equal, got, expected_frames(tiny_plan, 6, {4: GREEN})[12:]))


def test_killed_between_chunks_and_resumed(started, tiny_plan, tmp_path):
    """SIGKILL at any moment: the state is whole, and what follows it is bit-identical."""
    state = tmp_path / "state.safetensors"
    process = started(MODULE, tiny_plan.path, "--prompt", RED, "-o", "-", "--save-state", state)
    pictures = np.frombuffer(process.stdout.read(7 * 3 * FRAME_BYTES), np.uint8).reshape(-1, 32, 32, 3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = Rollout.resume(tiny_plan, state)
    start = resumed.next_index
    assert start >= 6, "a state was written after every chunk"
    expected = expected_frames(tiny_plan, start + 5)
    assert all(map(np.array_equal, pictures, expected[:21])), "raw frames on stdout"
    got = [frame for chunk in itertools.islice(resumed, 5) for frame in chunk.frames]
    assert all(map(np.array_equal, got, expected[3 * start :]))


def test_killed_while_it_writes_a_video(started, tiny_plan, tmp_path):
    video = tmp_path / "out.mp4"
    process = started(MODULE, tiny_plan.path, "--prompt", RED, "--seconds", 3600, "-o", video)
    wait_for(lambda: video.exists() and video.stat().st_size > 5000)
    process.kill()
    process.wait()
    assert len(frames_in(video)) >= 8


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_interrupted(started, tiny_plan, tmp_path, as_json):
    """Ctrl-C: the file is closed, the state fits it, the exit code is 130."""
    video, state = tmp_path / "out.mp4", tmp_path / "state.safetensors"
    arguments = ["--prompt", RED, "--seconds", 3600, "-o", video, "--save-state", state]
    process = started(MODULE, tiny_plan.path, *arguments, *["--json"] * as_json)
    wait_for(lambda: video.exists() and video.stat().st_size > 5000)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    frames = len(frames_in(video))
    assert frames == 3 * Rollout.resume(tiny_plan, state).next_index > 0
    if as_json:
        report = json.loads(out)
        assert report["interrupted"] is True and report["frames"] == frames and not err
    else:
        assert not out and err.startswith(b"interrupted: ") and err.count(b"\n") == 1


def test_a_reader_that_leaves_is_no_error(started, tiny_plan):
    process = started(MODULE, tiny_plan.path, "--prompt", RED, "-o", "-")
    process.stdout.read(FRAME_BYTES)
    process.stdout.close()
    assert process.wait(20) == 0
    assert process.stderr.read().startswith(b"-: ")


def test_full_disk_keeps_video_and_state(refused, tiny_plan, tmp_path, full_disk):
    video, state = tmp_path / "out.mp4", tmp_path / "state.safetensors"
    arguments = ["--prompt", RED, "--seconds", 3600, "-o", video, "--save-state", state]
    with full_disk(20_000):
        message = refused(run, tiny_plan.path, *arguments)
    assert message.startswith(f"output: cannot write {video} (File too large); choose")
    assert len(frames_in(video)) >= 8
    assert Rollout.resume(tiny_plan, state).next_index > 0


def bad_inputs(plan, tmp):
    """Arguments, and how the line begins."""
    prompt, video = ["--prompt", RED], ["-o", tmp / "out.mp4"]
    return {
        "no-plan": ([tmp / "none.plan", *prompt, *video], "plan: got "),
        "no-prompt": ([plan, *video], "--prompt: got none, expected a text, or --resume"),
        "empty-prompt": ([plan, "--prompt", "", *video], "prompt: got an empty text"),
        "unknown-word": ([plan, "--prompt", "a pink circle", *video], "prompt: got the unknown word 'pink'"),
        "long-prompt": ([plan, "--prompt", "a a a a a a", *video], "prompt: got 6 tokens, expected at most 5"),
        "negative-seconds": ([plan, *prompt, "--seconds", "-1", *video], "--seconds: got -1, expected more than 0"),
        "zero-seconds": ([plan, *prompt, "--seconds", "0", *video], "--seconds: got 0, expected more than 0"),
        "nan-seconds": ([plan, *prompt, "--seconds", "nan", *video], "--seconds: got nan, expected more than 0"),
        "endless-seconds": ([plan, *prompt, "--seconds", "inf", *video], "--seconds: got inf, expected more than 0"),
        "zero-chunks": ([plan, *prompt, "--chunks", "0", *video], "--chunks: got 0, expected 1 or more"),
        "both-lengths": ([plan, *prompt, "--chunks", "1", "--seconds", "1", *video], "--seconds: got --chunks"),
        "no-number": ([plan, *prompt, "--seconds", "long", *video], "Invalid value for '--seconds'"),
        "unknown-option": ([plan, *prompt, "--sedonds", "1"], "No such option '--sedonds'"),
        "negative-seed": ([plan, *prompt, "--seed", "-1", *video], "seed: got -1, expected 0 or more"),
        "switch-beyond-the-end": (
            [plan, *prompt, "--seconds", "3", "--prompt-at", "3:red", *video],
            "--prompt-at: got 3 s, expected from 0 to 2.625 s",
        ),
        "switch-to-unknown-word": ([plan, *prompt, "--prompt-at", "1:pink", *video], "prompt: got the unknown word"),
        "switch-to-nothing": ([plan, *prompt, "--prompt-at", "1:", *video], "prompt: got an empty text"),
        "switch-without-time": ([plan, *prompt, "--prompt-at", "red", *video], "--prompt-at: got 'red', expected SEC"),
        "switch-before-the-start": ([plan, *prompt, "--prompt-at=-1:red", *video], "--prompt-at: got '-1:red'"),
        "two-switches-at-once": (
            [plan, *prompt, "--prompt-at", "1:red", "--prompt-at", "1.1:blue", *video],
            "--prompt-at: got two prompts for the chunk at 1.125 s",
        ),
        "no-output-folder": ([plan, *prompt, "-o", tmp / "none" / "out.mp4"], "output: got "),
        "unwritable-output": ([plan, *prompt, "-o", "/proc/out.mp4"], "output: cannot write /proc/out.mp4"),
        "unknown-format": ([plan, *prompt, "-o", tmp / "out.avi"], "output: got "),
        "no-state-folder": ([plan, *prompt, *video, "--save-state", tmp / "none" / "s"], "state: got "),
        "no-state": ([plan, "--resume", tmp / "none.safetensors", *video], "state: got "),
        "seed-of-a-state": ([plan, "--resume", tmp / "none", "--seed", "1", *video], "--seed: got one with --resume"),
        "json-on-stdout": ([plan, *prompt, "--json", "-o", "-"], "--json: got -o - as well"),
        "unknown-device": ([plan, *prompt, "--device", "tpu", *video], "device: got tpu, expected cpu or cuda:N"),
        "no-cuda": ([plan, *prompt, "--device", "cuda:0", *video], "device: got cuda:0, expected one of"),
        "no-threads": ([plan, *prompt, "--threads", "0", *video], "threads: got 0, expected 1 or more"),
    }


@pytest.mark.parametrize("case", bad_inputs(Path(), Path()))  # the names only
def test_bad_input(refused, tiny_plan, tmp_path, case):
    arguments, start = bad_inputs(tiny_plan.path, tmp_path)[case]
    assert refused(run, *arguments).startswith(start)
    assert not (tmp_path / "out.mp4").exists() and not (tmp_path / "out.avi").exists(), "nothing was written"
