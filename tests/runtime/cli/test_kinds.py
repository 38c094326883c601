"""The command lines over programs of every kind: clips, no text, no window, first chunks of another length."""

from __future__ import annotations

import json
import shutil

import av
import mixed
import pytest
from small_plan import rebuilt

from videossm.cost.cli import inspect
from videossm.runtime.cli.bench import bench
from videossm.runtime.cli.doctor import doctor
from videossm.runtime.cli.run import run
from videossm.runtime.plan import Plan

RED, GREEN = "a red circle", "green"
LENGTHS = {"per_pass": (2, 2), "several": (1, 3), "clip": (2, 1), "no_state": (5, 5), "committed": (3, 3)}


@pytest.fixture(scope="module", params=mixed.KINDS)
def plan(request, tmp_path_factory):
    return mixed.KINDS[request.param](tmp_path_factory.mktemp("mixed"), name=request.param)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """8 frames a second, a first chunk of one frame, later ones of three."""
    return mixed.several(tmp_path_factory.mktemp("several"))


def frames_in(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def prompted(plan):
    return ["--prompt", RED] if plan.manifest.text else []


def frames_of(plan, chunks):
    first, later = LENGTHS.get(plan.name, (2, 2))
    return first + (chunks - 1) * later


def test_run(called, plan, tmp_path):
    state, more = tmp_path / "state.safetensors", tmp_path / "more.y4m"
    out = ["--chunks", 3, "-o", tmp_path / "out.y4m", "--save-state", state, "--json"]
    code, text, err = called(run, plan.path, *prompted(plan), *out)
    report = json.loads(text)
    chunks = min(3, plan.manifest.stream.chunks or 3)
    assert (code, err, report["chunks"]) == (0, "", chunks)
    assert report["frames"] == frames_in(tmp_path / "out.y4m") == frames_of(plan, chunks)
    assert report["seconds"] == report["frames"] / 8
    assert report["prompts"] == ([{"start_s": 0.0, "prompt": RED}] if plan.manifest.text else [])
    code, text, err = called(run, plan.path, "--resume", state, "--chunks", 2, "-o", more, "--json")
    left = min(2, (plan.manifest.stream.chunks or 9) - chunks)
    assert (code, json.loads(text)["chunks"], json.loads(text)["first_chunk"]) == (0, left, chunks)
    assert left == 0 or frames_in(more) == left * plan.manifest.stream.later_frames


def test_a_clip_is_made_whole_if_no_length_is_given(called, plan, tmp_path):
    arguments = ["-o", tmp_path / "out.y4m", "--json"]
    report = json.loads(called(run, plan.path, *prompted(plan), *arguments)[1])
    stream = plan.manifest.stream
    assert report["chunks"] == (stream.chunks or 1 + -(-(40 - stream.first_frames) // stream.later_frames))


def test_bench(called, plan):
    code, text, err = called(bench, plan.path, "--chunks", 6, "--threads", 1, "--json")
    result = json.loads(text)
    assert (code, err, result["chunks"]) == (0, "", 6)
    assert result["engine_ms_per_chunk"].keys() == plan.manifest.engines.keys()
    assert result["realtime_factor"] > 0 and 0 < result["outside_engines_share"] < 1


def test_inspect(called, plan):
    code, out, err = called(inspect, plan.path)
    assert (code, err) == (0, "")
    assert ("a clip of" in out) == (plan.manifest.stream.chunks is not None)
    assert ("\nwindow " in out) == (plan.manifest.window is not None)
    assert f"text       {'4 tokens' if plan.manifest.text else 'none'}" in out
    assert json.loads(called(inspect, plan.path, "--json")[1])["device_bytes"] > 0


def test_doctor(called, plan):
    assert called(doctor, plan.path)[0] == 0


def test_a_prompt_for_a_plan_without_text(refused, plan, tmp_path):
    if plan.manifest.text:
        message = refused(run, plan.path, "-o", tmp_path / "out.y4m")
        assert message.startswith("--prompt: got none, expected a text, or --resume FILE")
        return
    for words in (["--prompt", RED], ["--prompt-at", f"0:{RED}"]):
        message = refused(run, plan.path, *words, "-o", tmp_path / "out.y4m")
        assert message.startswith(f"--prompt: got one for {plan.name}, which takes no text, expected none")


@pytest.mark.parametrize(
    ("seconds", "chunks"), [(0.01, 1), (1 / 8, 1), (0.13, 2), (4 / 8, 2), (0.51, 3), (1, 4), (1.01, 4), (10 / 8, 4)]
)
def test_seconds_from_the_start(called, several, tmp_path, seconds, chunks):
    arguments = ["--seconds", seconds, "-o", tmp_path / "out.y4m", "--json"]
    report = json.loads(called(run, several.path, "--prompt", RED, *arguments)[1])
    assert (report["chunks"], report["frames"]) == (chunks, 1 + 3 * (chunks - 1))


@pytest.mark.parametrize(("seconds", "chunks"), [(0.01, 1), (3 / 8, 1), (0.38, 2), (6 / 8, 2), (9 / 8, 3)])
def test_seconds_of_a_resumed_stream_are_added(called, several, tmp_path, seconds, chunks):
    state = tmp_path / "state.safetensors"
    first = ["--chunks", 2, "-o", tmp_path / "out.y4m", "--save-state", state]
    called(run, several.path, "--prompt", RED, *first)
    arguments = ["--resume", state, "--seconds", seconds, "-o", tmp_path / "more.y4m", "--json"]
    report = json.loads(called(run, several.path, *arguments)[1])
    assert (report["chunks"], report["frames"]) == (chunks, 3 * chunks)


def test_prompts_at_times_behind_a_short_first_chunk(called, several, tmp_path):
    at = ["--prompt-at", f"0.125:{GREEN}", "--prompt-at", f"0.126:{RED}", "--prompt-at", f"0.6:{GREEN}"]
    arguments = [*at, "--chunks", 5, "-o", tmp_path / "out.y4m", "--json"]
    report = json.loads(called(run, several.path, "--prompt", RED, *arguments)[1])
    assert [(prompt["start_s"], prompt["prompt"]) for prompt in report["prompts"]] == [
        (0, RED),
        (1 / 8, GREEN),
        (4 / 8, RED),
        (7 / 8, GREEN),
    ]


def test_a_prompt_behind_the_end_of_a_clip(refused, tmp_path):
    (tmp_path / "clip.plan").mkdir()
    plan = mixed.committed(tmp_path / "clip.plan", chunks=3)
    arguments = ["--prompt", RED, "--prompt-at", f"2:{GREEN}", "-o", tmp_path / "out.y4m"]
    for length in ([], ["--chunks", 9], ["--seconds", 30]):
        message = refused(run, plan.path, *arguments, *length)
        assert message.startswith(
            "--prompt-at 2: the next chunk starts at 2.25 s, but the video ends at 1.125 s; use at most"
        )


@pytest.mark.parametrize("seconds", ["1e308", "1e20"])
def test_seconds_beyond_all_counts_are_only_long(called, several, tmp_path, monkeypatch, seconds):
    """No number is too large for the arithmetic; the run is ended here at once."""

    def ended(rollout, length, *_):
        raise KeyboardInterrupt(length)

    monkeypatch.setattr("videossm.runtime.cli.run._roll", ended)
    assert called(run, several.path, "--prompt", RED, "--seconds", seconds, "-o", tmp_path / "out.y4m")[0] == 130


def test_a_plan_that_asks_for_more_memory_than_there_is(refused, several, tmp_path):
    """Told in one line, before a byte of it is taken."""
    folder = shutil.copytree(several.path, tmp_path / "huge.plan")
    values = Plan.open(folder).values()
    shape = [2, 2**30, 2**12]
    for part in [*values["states"], *(t for e in values["engines"].values() for t in (*e["inputs"], *e["outputs"]))]:
        if part.get("source", part.get("target", part["name"])) in ("state.light", "light"):
            part["shape"] = shape[:2]
    values["stream"] |= {"height": 65536, "width": 65536}
    for engine in values["engines"].values():
        for tensor in engine["outputs"]:
            if tensor["target"] == "frames":
                tensor["shape"][2:4] = [65536, 65536]
    rebuilt(folder, **values)
    message = refused(run, folder, "--prompt", RED, "-o", tmp_path / "out.y4m")
    assert message.startswith("memory: got ") and "expected at least " in message
