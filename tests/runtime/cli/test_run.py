"""`videossm-run`: what it writes and prints, and that nothing is lost when it is stopped."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import av
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from videossm.runtime import Plan, Rollout
from videossm.runtime.cli.run import run
from videossm.runtime.plan import write_manifest
from videossm.runtime.program import Program
from videossm.runtime.prompt import PromptTokenizer

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
        frames.extend(next(rollout).frames[0])
    return frames


PATIENCE_S = 120  # a machine may have other work


def wait_for(happened):
    end = time.monotonic() + PATIENCE_S
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


@pytest.mark.parametrize("seconds", ["1e-10", "1e-300"])
def test_any_length_is_a_chunk_at_least(called, tiny_plan, tmp_path, seconds):
    called(run, tiny_plan.path, "--prompt", RED, "--seconds", seconds, "-o", tmp_path / "out.mp4")
    assert len(frames_in(tmp_path / "out.mp4")) == 3


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


def test_streams_of_a_batch_lie_side_by_side(called, build_plan, tmp_path):
    plan = build_plan(batch=2)
    called(run, plan.path, "--prompt", RED, "--seed", 4, "--chunks", 1, "-o", tmp_path / "out.png")
    streams = next(Rollout(plan, [RED, RED], [4, 5])).frames
    assert np.array_equal(frames_in(tmp_path / "out-00000.png")[0], np.concatenate(list(streams[:, 0]), axis=1))


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
    got = [frame for chunk in itertools.islice(resumed, 5) for frame in chunk.frames[0]]
    assert all(map(np.array_equal, got, expected[3 * start :]))


def test_killed_while_it_writes_a_video(started, tiny_plan, tmp_path):
    """All but about a frame of what was made is there: the state counts the chunks."""
    video, state = tmp_path / "out.mp4", tmp_path / "state.safetensors"
    arguments = ["--prompt", RED, "--seconds", 3600, "-o", video, "--save-state", state]
    process = started(MODULE, tiny_plan.path, *arguments)
    wait_for(lambda: video.exists() and video.stat().st_size > 5000 and state.exists())
    process.kill()
    process.wait()
    assert len(frames_in(video)) >= 3 * Rollout.resume(tiny_plan, state).next_index - 1 >= 2


def interrupt_at(monkeypatch, where):
    """Ctrl-C at the first call of `where`."""
    owner, name = where
    inner = getattr(owner, name)

    def interrupted(*arguments):
        monkeypatch.setattr(owner, name, inner)
        signal.raise_signal(signal.SIGINT)
        return inner(*arguments)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    "where",
    [(PromptTokenizer, "encode"), (Program, "encode_prompt"), (Program, "run_pass")],
    ids=lambda where: where[1],
)
def test_interrupted_before_the_first_chunk(called, tiny_plan, tmp_path, monkeypatch, where):
    """While it loads, too: no file where none was, and an old one stays as it is."""
    video = tmp_path / "out.mp4"
    for old in (None, b"an old video"):
        if old:
            video.write_bytes(old)
        interrupt_at(monkeypatch, where)
        code, out, err = called(run, tiny_plan.path, "--prompt", RED, "-o", video, "--json")
        assert (code, err) == (130, "") and json.loads(out)["output_files"] == []
        assert (video.read_bytes() if old else list(tmp_path.iterdir())) == (old or [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "the handler is put back"


def test_interrupted_before_a_prompt_switch(called, tiny_plan, tmp_path, monkeypatch):
    """The chunk that would follow another prompt is not begun, and the state does not know of it."""
    state = tmp_path / "state.safetensors"
    save = Rollout.save

    def interrupt_after_two(rollout, path):
        save(rollout, path)
        if rollout.next_index == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Rollout, "save", interrupt_after_two)
    arguments = ["--prompt", RED, "--prompt-at", f"0.75:{GREEN}", "--save-state", state, "--json"]
    code, out, _ = called(run, tiny_plan.path, *arguments, "-o", tmp_path / "out.mp4")
    report = json.loads(out)
    assert (code, report["chunks"], len(report["prompts"])) == (130, 2, 1)
    assert Rollout.resume(tiny_plan, state).prompts == [RED]


def endless(graph):
    """Its first node waits for a loop that no one lives to see the end of."""
    one = numpy_helper.from_array(np.int64(1), "one")
    scalar = [helper.make_tensor_value_info(name, TensorProto.INT64, []) for name in ("i", "x", "y")]
    bools = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "on")]
    nodes = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["x", "one"], ["y"])]
    body = helper.make_graph(nodes, "body", [scalar[0], bools[0], scalar[1]], [bools[1], scalar[2]], [one])
    most = numpy_helper.from_array(np.int64(2**63 - 1), "most")
    start = numpy_helper.from_array(np.int64(0), "start")
    first = graph.node[0]
    first.input[0], waited = "waited", first.input[0]
    added = [
        helper.make_node("Loop", ["most", "", "start"], ["end"], body=body),
        helper.make_node("Add", [waited, "end"], ["waited"]),
    ]
    graph.initializer.extend([most, start])
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def cpu_s(process):
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


TOLD = """
from videossm.runtime.cli.run import run
from videossm.runtime.program import Program
encode_prompt = Program.encode_prompt
Program.encode_prompt = lambda *arguments: (print(flush=True), encode_prompt(*arguments))
run()
"""  # when the text encoder begins


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_signal_ends_native_code_at_once(started, signalled, plan_copy, tmp_path, number):
    """Python cannot run anything of its own meanwhile."""
    values = Plan.open(plan_copy).manifest.model_dump(mode="json", exclude={"files"})
    model = onnx.load(plan_copy / "text_encoder.onnx")
    endless(model.graph)
    onnx.save(model, plan_copy / "text_encoder.onnx")
    write_manifest(plan_copy, values)
    process = started("-c", TOLD, plan_copy, "--prompt", RED, "-o", tmp_path / "out.mp4")
    process.stdout.readline()
    before_s = cpu_s(process)
    wait_for(lambda: cpu_s(process) > before_s + 0.5)
    signalled(process, number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == -number
    assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("number", "as_json"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, True)], ids=str
)
def test_interrupted(started, tiny_plan, tmp_path, number, as_json):
    """Ctrl-C: the file is closed, the state fits it, the exit code is 130; 143 for the SIGTERM of a service manager."""
    video, state = tmp_path / "out.mp4", tmp_path / "state.safetensors"
    arguments = ["--prompt", RED, "--seconds", 3600, "-o", video, "--save-state", state]
    process = started(MODULE, tiny_plan.path, *arguments, *["--json"] * as_json)
    wait_for(lambda: video.exists() and video.stat().st_size > 5000)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number, err
    frames = len(frames_in(video))
    assert frames == 3 * Rollout.resume(tiny_plan, state).next_index > 0
    if as_json:
        report = json.loads(out)
        assert report["interrupted"] is True and report["frames"] == frames and not err
    else:
        assert not out and err.startswith(b"interrupted: ") and err.count(b"\n") == 1


def test_a_token_beyond_the_vocabulary(refused, plan_copy, tmp_path):
    """What the graph makes of it: here the text encoder has room for four."""
    values = Plan.open(plan_copy).manifest.model_dump(mode="json", exclude={"files"})
    model = onnx.load(plan_copy / "text_encoder.onnx")
    first = model.graph.node[0]
    table = numpy_helper.from_array(np.arange(4, dtype=np.int64), "table")
    model.graph.initializer.append(table)
    lookup = helper.make_node("Gather", ["table", first.input[0]], ["looked up"])
    first.input[0] = "looked up"
    nodes = [lookup, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, plan_copy / "text_encoder.onnx")
    write_manifest(plan_copy, values)
    message = refused(run, plan_copy, "--prompt", RED, "-o", tmp_path / "out.mp4")
    assert message.startswith("text_encoder: ONNX Runtime cannot run it (") and "out of data bounds" in message
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("tool", ["run", "inspect", "bench"])
def test_full_stdout_is_one_line(started, tiny_plan, tmp_path, tool):
    arguments = {"run": ["--prompt", RED, "-o", tmp_path / "out.mp4"], "inspect": [], "bench": []}[tool]
    length = [] if tool == "inspect" else ["--chunks", 1]
    with open("/dev/full", "wb") as full:
        module = "videossm.cost.cli" if tool == "inspect" else f"videossm.runtime.cli.{tool}"
        process = started(module, tiny_plan.path, *arguments, *length, "--json", stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == b"stdout: cannot write it (No space left on device); choose a place that has room\n"


def test_a_reader_that_leaves_is_no_error(started, tiny_plan):
    process = started(MODULE, tiny_plan.path, "--prompt", RED, "-o", "-")
    process.stdout.read(FRAME_BYTES)
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 0
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
            "--prompt-at 3: the next chunk starts at 3 s, but the video ends at 3 s; use at most 2.625, or --",
        ),
        "switch-between-chunks": (
            [plan, *prompt, "--prompt-at", "5:red", *video],
            "--prompt-at 5: the next chunk starts at 5.25 s, but the video ends at 5.25 s; "
            "use at most 4.875, or --seconds 6.",
        ),
        "switch-beyond-the-chunks": (
            [plan, *prompt, "--chunks", "2", "--prompt-at", "1:red", *video],
            "--prompt-at 1: the next chunk starts at 1.125 s, but the video ends at 0.75 s; "
            "use at most 0.375, or --chunks 4.",
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
        "state-in-a-folder-nobody-can-write": (
            [plan, *prompt, *video, "--save-state", "/proc/state"],
            "state: cannot write /proc/state (",
        ),
        "no-state-name": ([plan, *prompt, *video, "--save-state", ""], "state: got ., which is a folder"),
        "folder-as-state": ([plan, *prompt, *video, "--save-state", tmp], f"state: got {tmp}, which is a folder"),
        "pictures-in-a-folder-nobody-can-write": ([plan, *prompt, "-o", "/proc/o.png"], "output: cannot write /proc/o"),
        "seed-of-a-state": ([plan, "--resume", tmp / "none", "--seed", "1", *video], "--seed: got one with --resume"),
        "json-on-stdout": ([plan, *prompt, "--json", "-o", "-"], "--json: got -o - as well"),
        "unknown-device": ([plan, *prompt, "--device", "tpu", *video], "device: got tpu, expected cpu or cuda:N"),
        "no-cuda": ([plan, *prompt, "--device", "cuda:0", *video], "device: got cuda:0 on a machine without a GPU"),
        "provider-of-a-gpu": ([plan, *prompt, "--provider", "cuda", *video], "provider: got cuda on the CPU, expected"),
        "unknown-provider": ([plan, *prompt, "--provider", "rocm", *video], "Invalid value for '--provider'"),
        "endless-threads": ([plan, *prompt, "--threads", "100000", *video], "threads: got 100000, expected 1 to 256"),
        "no-utf-8": ([plan, "--prompt", "a \udcff", *video], "prompt: got 'a \\udcff', which is no UTF-8"),
        "endless-prompt": ([plan, "--prompt", "a " * 20_000, *video], "prompt: got 40000 characters, expected at most"),
        "endless-switch": ([plan, *prompt, "--prompt-at", "x" * 9999, *video], f"--prompt-at: got '{'x' * 56}.., exp"),
        "no-threads": ([plan, *prompt, "--threads", "0", *video], "threads: got 0, expected 1 to 256"),
    }


@pytest.mark.parametrize("case", bad_inputs(Path(), Path()))  # the names only
def test_bad_input(refused, tiny_plan, tmp_path, case):
    arguments, start = bad_inputs(tiny_plan.path, tmp_path)[case]
    assert refused(run, *arguments).startswith(start)
    assert not (tmp_path / "out.mp4").exists() and not (tmp_path / "out.avi").exists(), "nothing was written"


def same_file(path, other):
    """Another name of a file."""
    other.hardlink_to(path)
    return other


COLLISIONS = {
    "state as video": (lambda plan, tmp: ["-o", tmp / "x.gif", "--save-state", tmp / "x.gif"], "state: got "),
    "state as video, another way": (
        lambda plan, tmp: ["-o", tmp / "x.gif", "--save-state", tmp / "sub" / ".." / "x.gif"],
        "state: got ",
    ),
    "state over the manifest": (lambda plan, tmp: ["--save-state", plan / "manifest.json"], "state: got "),
    "state in the plan": (lambda plan, tmp: ["--save-state", plan / "new"], "state: got "),
    "state in another plan": (lambda plan, tmp: ["--save-state", tmp / "other.plan" / "new"], "state: got "),
    "video in the plan": (lambda plan, tmp: ["-o", plan / "out.mp4"], "output: got "),
    "pictures in the plan": (lambda plan, tmp: ["-o", plan / "out.png"], "output: got "),
    "state over an engine's other name": (
        lambda plan, tmp: ["--save-state", same_file(plan / "step.onnx", tmp / "step")],
        None,  # the rename leaves the engine as it was
    ),
    "state into a device": (lambda plan, tmp: ["--save-state", "/dev/null"], "state: got /dev/null, which is a device"),
    "state over a link": (lambda plan, tmp: ["--save-state", tmp / "link"], "state: got "),
    "video over a link": (lambda plan, tmp: ["-o", tmp / "link.mp4"], "output: got "),
    "video over a pipe": (lambda plan, tmp: ["-o", tmp / "pipe.y4m"], "output: got "),
    "long name": (lambda plan, tmp: ["-o", tmp / f"{300 * 'x'}.mp4"], "output: cannot write "),
    "long state": (lambda plan, tmp: ["--save-state", tmp / (300 * "x")], "state: cannot write "),
    "long pictures": (lambda plan, tmp: ["-o", tmp / f"{250 * 'x'}.png"], "output: cannot write "),
}


@pytest.mark.parametrize("case", COLLISIONS)
def test_an_output_replaces_nothing_that_is_needed(called, plan_copy, tmp_path, case):
    """Before any work is done, and all files are as they were."""
    (tmp_path / "sub").mkdir()
    shutil.copytree(plan_copy, tmp_path / "other.plan")
    (tmp_path / "link").symlink_to(plan_copy / "step.onnx")
    (tmp_path / "link.mp4").symlink_to(plan_copy / "step.onnx")
    os.mkfifo(tmp_path / "pipe.y4m")
    given, start = COLLISIONS[case]
    words = given(plan_copy, tmp_path)
    words = words if "-o" in words else [*words, "-o", tmp_path / "fine.mp4"]
    code, out, err = called(run, plan_copy, "--prompt", RED, "--chunks", 1, *words)
    if start is None:
        assert code == 0
    else:
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith(start), err
        assert not (tmp_path / "fine.mp4").exists() and not (tmp_path / "x.gif").exists()
    assert Plan.open(plan_copy) and Plan.open(tmp_path / "other.plan")
    assert sorted(path.name for path in plan_copy.iterdir()) == sorted(
        [*Plan.open(plan_copy).manifest.files, "manifest.json"]
    )


def test_the_state_that_is_read_is_no_video(refused, tiny_plan, saved, tmp_path):
    state = saved.rename(tmp_path / "state.png")
    assert refused(run, tiny_plan.path, "--resume", state, "-o", state).startswith(
        f"output: got {state}, which this command uses"
    )


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_of_a_state_are_the_umasks(called, tiny_plan, tmp_path, umask):
    state, before = tmp_path / "state", os.umask(umask)
    try:
        called(run, tiny_plan.path, "--prompt", RED, "--chunks", 1, "-o", tmp_path / "o.gif", "--save-state", state)
    finally:
        os.umask(before)
    assert state.stat().st_mode & 0o777 == 0o666 & ~umask


def test_two_runs_with_the_same_outputs(started, tiny_plan, tmp_path):
    """One video at a time; states take turns, each of them whole."""
    video, state = tmp_path / "out.mp4", tmp_path / "state"
    words = ["--prompt", RED, "--save-state", state, "-o"]
    first = started(MODULE, tiny_plan.path, *words, video, "--seconds", 3600)
    wait_for(lambda: state.exists())
    second = started(MODULE, tiny_plan.path, *words, video, "--chunks", 1)
    _, err = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 2 and b"which another run is writing" in err
    third = started(MODULE, tiny_plan.path, *words, tmp_path / "other.gif", "--chunks", 20)
    assert third.wait(PATIENCE_S) == 0, third.stderr.read()
    thirds = state.stat().st_ino
    wait_for(lambda: state.stat().st_ino != thirds)
    first.send_signal(signal.SIGINT)
    assert first.wait(PATIENCE_S) == 130
    assert len(frames_in(video)) == 3 * Rollout.resume(tiny_plan, state).next_index
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.gif", "out.mp4", "state"], "no temporary file"


@pytest.fixture
def saved(called, tiny_plan, tmp_path):
    """The state of two chunks; the video is first.mp4 beside it."""
    state = tmp_path / "state.safetensors"
    arguments = ["--prompt", RED, "--chunks", 2, "-o", tmp_path / "first.mp4", "--save-state", state]
    assert called(run, tiny_plan.path, *arguments)[0] == 0
    return state


def test_resume_does_not_replace_the_first_part(refused, tiny_plan, saved):
    video = saved.with_name("first.mp4")
    old = video.read_bytes()
    message = refused(run, tiny_plan.path, "--resume", saved, "-o", video)
    assert message.startswith(f"-o: got {video}, which exists, expected a new file with --resume")
    assert video.read_bytes() == old


def test_resume_on_another_plan(refused, build_plan, saved, tmp_path):
    message = refused(run, build_plan("other", fps=12.0).path, "--resume", saved, "-o", tmp_path / "more.mp4")
    assert message.startswith(f"state: {saved}: stream_identity: got one of 'tiny'")


def test_resume_from_a_truncated_state(refused, tiny_plan, saved, tmp_path):
    saved.write_bytes(saved.read_bytes()[:-1])
    message = refused(run, tiny_plan.path, "--resume", saved, "-o", tmp_path / "more.mp4")
    assert message.startswith(f"state: got {saved} truncated or damaged")


def test_resume_with_a_wrong_prompt_is_told_before_an_engine_loads(refused, tiny_plan, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(Rollout, "resume", None)
    for arguments in (["--prompt", "a pink circle"], ["--prompt-at", "1:pink"]):
        message = refused(run, tiny_plan.path, "--resume", saved, *arguments, "-o", tmp_path / "more.mp4")
        assert message.startswith("prompt: got the unknown word 'pink'")


def test_switch_before_a_resumed_stream(refused, tiny_plan, saved, tmp_path):
    arguments = ["--resume", saved, "--prompt-at", f"0:{GREEN}", "--chunks", 2]
    message = refused(run, tiny_plan.path, *arguments, "-o", tmp_path / "more.mp4")
    assert message == "--prompt-at 0: the video goes on at 0.75 s; use that at least."


def test_altered_plan(refused, plan_copy, tmp_path):
    content = bytearray((plan_copy / "step.onnx").read_bytes())
    content[-1] ^= 1
    (plan_copy / "step.onnx").write_bytes(content)
    message = refused(run, plan_copy, "--prompt", RED, "-o", tmp_path / "out.mp4")
    assert message.startswith("step.onnx: sha256: got ") and not (tmp_path / "out.mp4").exists()
