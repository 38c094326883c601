"""Programs of every kind against the interpreter of docs/plan-format.md; and what must not change a frame of theirs."""

from __future__ import annotations

import shutil

import mixed
import numpy as np
import pytest
from interpreter import Interpreter
from small_plan import rebuilt

from videossm.runtime import Rollout, StateError, UserError
from videossm.runtime.backends.onnxruntime import OnnxRuntimeBackend
from videossm.runtime.preflight import device_bytes
from videossm.runtime.program import Program, buffer_bytes
from videossm.runtime.state import load_state

RED, GREEN = ["a red circle", "blue"], ["green", "a square moves left"]
SEEDS = [3, 2**63 + 1]
CHUNKS = 9  # the window of three rolls several times
SWITCHES = {2: GREEN, 6: RED}
KINDS = pytest.mark.parametrize("kind", mixed.KINDS)
WITHOUT_TEXT = ("per_pass", "clip", "no_state", "no_text")
LENGTHS = {"clip": 4, "no_state": 1}  # of clips
STOPS = [(kind, stop) for kind in mixed.KINDS for stop in range(min(CHUNKS, LENGTHS.get(kind, CHUNKS) + 1))]


@pytest.fixture(scope="session")
def plan_of(tmp_path_factory):
    """`plan_of(kind)`: one of mixed.KINDS; only to be read."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = mixed.KINDS[kind](tmp_path_factory.mktemp("mixed"))
        return made[kind]

    return get


def rollout_of(plan):
    return Rollout(plan, RED if plan.manifest.text else None, SEEDS, threads=1)


def switched(rollout, index):
    if index in SWITCHES and rollout.plan.manifest.text:
        rollout.set_prompt(SWITCHES[index])


def rolled(rollout, end=CHUNKS):
    """Frames up to chunk `end`, or to the end of a clip."""
    frames = []
    for index in range(rollout.next_index, end):
        switched(rollout, index)
        chunk = next(rollout, None)
        if chunk is None:
            break
        frames.append(chunk.frames)
    return frames


def same(got, expected):
    return len(got) == len(expected) and all(map(np.array_equal, got, expected))


@KINDS
def test_a_program_is_what_the_document_says(plan_of, kind):
    """Over two prompt switches: one before the window rolls, one after."""
    plan = plan_of(kind)
    rollout = rollout_of(plan)
    plain = Interpreter(plan, RED if plan.manifest.text else [], SEEDS)
    chunks = min(plan.manifest.stream.chunks or CHUNKS, CHUNKS)
    for index in range(chunks):
        switched(rollout, index)
        if index in SWITCHES and plan.manifest.text:
            plain.set_prompts(SWITCHES[index])
        assert np.array_equal(next(rollout).frames, plain.next()), f"chunk {index}"
        expected, got = plain.state(), rollout.snapshot().tensors
        assert got.keys() == expected.keys()
        for name, values in got.items():
            assert np.array_equal(values, expected[name]), f"chunk {index}: {name}"
    assert next(rollout, None) is None if plan.manifest.stream.chunks else rollout.next_index == CHUNKS


@KINDS
def test_every_engine_counts_and_every_chunk_differs(plan_of, kind):
    """The comparison proves nothing where engines do not run, or frames are the same whatever happens."""
    rollout = rollout_of(plan_of(kind))
    frames = rolled(rollout)
    assert all(seconds > 0 for seconds in rollout.timings.values())
    assert len({chunk.tobytes() for chunk in frames}) == len(frames)


@pytest.mark.parametrize(("kind", "stop"), STOPS)
def test_resume_restore_and_fork_are_bit_identical(plan_of, tmp_path, kind, stop):
    plan = plan_of(kind)
    expected = rolled(rollout_of(plan))
    rollout = rollout_of(plan)
    assert same(rolled(rollout, stop), expected[:stop])
    rollout.save(tmp_path / "state.safetensors")
    snapshot, fork = rollout.snapshot(), rollout.fork()
    other = rollout_of(plan)
    rolled(other, 3)
    other.restore(snapshot)
    resumed = Rollout.resume(plan, tmp_path / "state.safetensors", threads=1)
    for name, going_on in (("resumed", resumed), ("fork", fork), ("restored", other), ("the same", rollout)):
        assert same(rolled(going_on), expected[stop:]), name


@KINDS
@pytest.mark.parametrize("place", [0, -1], ids=["after-the-first-pass", "after-the-last"])
def test_a_chunk_that_is_given_up_changes_nothing(plan_of, monkeypatch, kind, place):
    plan = plan_of(kind)
    expected = rolled(rollout_of(plan))
    stop = min(4, len(expected) - 1)
    rollout = rollout_of(plan)
    rolled(rollout, stop)
    before = rollout.snapshot()
    run_pass, last = Program.run_pass, len(plan.manifest.passes) - 1

    def cancelling(program, index):
        run_pass(program, index)
        if index == (last if place else 0):
            rollout.cancel()

    with monkeypatch.context() as patch:
        patch.setattr(Program, "run_pass", cancelling)
        switched(rollout, stop)
        assert next(rollout, None) is None and rollout.next_index == stop
    after = rollout.snapshot()
    assert all(np.array_equal(after.tensors[name], values) for name, values in before.tensors.items())
    assert same(rolled(rollout), expected[stop:])


@KINDS
def test_samples_from_outside(plan_of, kind):
    plan = plan_of(kind)
    made, fed = rollout_of(plan), Rollout(plan, RED if plan.manifest.text else None, [8, 9], threads=1)
    for index in range(min(5, plan.manifest.stream.chunks or 5)):
        switched(made, index), switched(fed, index)
        chunk = next(made)
        if kind == "per_pass":
            with pytest.raises(UserError, match=r"^sample: got one for a plan whose passes keep states, expected none"):
                fed.append(made.sample)
            return
        taken = fed.append(made.sample)
        if kind in ("no_state", "clip"):  # the pass that commits changes no sample
            assert np.array_equal(taken.frames, chunk.frames), f"chunk {index}"
    if plan.manifest.stream.chunks:
        with pytest.raises(UserError, match=r"^sample: got one after the \d chunks of the clip, expected none; start"):
            fed.append(made.sample)


@KINDS
def test_what_a_rollout_takes_is_what_was_foretold(plan_of, kind, monkeypatch):
    taken = []
    take = OnnxRuntimeBackend.buffer

    def counted(backend, shape, dtype):
        taken.append(take(backend, shape, dtype))
        return taken[-1]

    monkeypatch.setattr(OnnxRuntimeBackend, "buffer", counted)
    plan = plan_of(kind)
    rollout_of(plan)
    evicted = {
        t.source: t.size_bytes for e in plan.manifest.engines.values() for t in e.inputs if "evicted" in t.source
    }
    assert sum(buffer.array.nbytes for buffer in taken) == buffer_bytes(plan.manifest) + sum(evicted.values())
    files = sum((plan.path / engine.file).stat().st_size for engine in plan.manifest.engines.values())
    assert device_bytes(plan.manifest) == files + buffer_bytes(plan.manifest)


def test_a_clip_ends_and_begins_nowhere_else(plan_of, tmp_path):
    rollout = rollout_of(plan_of("clip"))
    chunks = list(rollout)
    assert [chunk.frames.shape[1] for chunk in chunks] == [2, 1, 1, 1]
    assert [chunk.start_s for chunk in chunks] == [0, 2 / 8, 3 / 8, 4 / 8]
    assert list(rollout) == [] and list(rollout.play()) == []
    rollout.save(tmp_path / "end.safetensors")
    assert list(Rollout.resume(rollout.plan, tmp_path / "end.safetensors")) == []


@pytest.mark.parametrize("chunks", [None, 2, 9])
def test_play_stops_at_the_end_of_a_clip(plan_of, chunks):
    played = list(rollout_of(plan_of("clip")).play(chunks))
    assert [chunk.index for chunk in played] == list(range(min(chunks or 4, 4)))


@pytest.mark.parametrize("kind", WITHOUT_TEXT)
def test_a_prompt_where_there_is_no_text(plan_of, kind):
    plan = plan_of(kind)
    with pytest.raises(UserError, match=r"^prompt: got one for a plan without text, expected none; leave it out$"):
        Rollout(plan, RED, SEEDS)
    rollout = rollout_of(plan)
    assert rollout.prompts == []
    with pytest.raises(UserError, match=r"^prompt: got one for a plan without text"):
        rollout.set_prompt(GREEN)


def test_noise_that_is_not_drawn_is_zeros(plan_of):
    """Whatever an earlier pass drew: a chunk depends on its state alone."""
    plan = plan_of("clip")
    rollout = rollout_of(plan)
    rolled(rollout, 2)
    fork = rollout.fork()
    assert same(rolled(fork), rolled(rollout))


def test_snapshots_of_another_batch_are_refused_even_without_tensors(plan_of, tmp_path):
    rollout = rollout_of(plan_of("no_state"))
    taken = rollout.snapshot()
    wrong = type(taken)(taken.header.model_copy(update={"seeds": [1]}), taken.tensors)
    with pytest.raises(StateError, match=r"^snapshot: rollout\.seeds: got 1, expected 2, for the plan's batch of 2; "):
        rollout.restore(wrong)


class Unrun(OnnxRuntimeBackend):
    """A backend whose engines write nothing: states alone count."""

    def __init__(self):
        super().__init__("cpu", 1)

    def load(self, name, spec, file):
        return self

    def bind(self, inputs, outputs):
        return type("Pass", (), {"run": lambda self: None})()


def halved(plan, folder, dtype):
    """The same stream, whose states of `half` are kept in `dtype`."""
    shutil.copytree(plan.path, folder)
    values = plan.values()
    names = {state["name"] for state in values["states"] if state["half"]}
    for part in [*values["states"], *(t for e in values["engines"].values() for t in (*e["inputs"], *e["outputs"]))]:
        place = part.get("source", part.get("target", f"state.{part['name']}"))
        if place.partition(".")[2] in names:
            part["dtype"] = dtype
    return rebuilt(folder, **values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["per_pass", "before"])
def test_a_state_goes_on_in_half_precision_and_back(plan_of, tmp_path, kind, dtype):
    """From fp32 by rounding to nearest even, from half exactly; bf16 lies in the file as it is in the plan."""
    plan = plan_of(kind)
    half = halved(plan, tmp_path / "half.plan", dtype)
    rollout = rollout_of(plan)
    rolled(rollout, 5)
    rollout.save(tmp_path / "fp32.safetensors")
    exact = rollout.snapshot().tensors
    narrow = Rollout(half, RED if plan.manifest.text else None, SEEDS, backend=Unrun())
    header, tensors = load_state(tmp_path / "fp32.safetensors", half.manifest)
    narrow.restore(type(rollout.snapshot())(header, tensors))
    narrow.save(tmp_path / "half.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < (tmp_path / "fp32.safetensors").stat().st_size
    back = Rollout.resume(plan, tmp_path / "half.safetensors", threads=1)
    got, changed = back.snapshot().tensors, 0
    for name, values in exact.items():
        if half.manifest.kept()[name].dtype == "float32" or values.dtype != np.float32:
            assert np.array_equal(got[name], values), name
            continue
        expected = values.astype(np.float16).astype(np.float32) if dtype == "float16" else nearest_bfloat16(values)
        assert np.array_equal(got[name], expected), name
        changed += 1
    assert changed and back.next_index == 5
    assert len(rolled(back)) == CHUNKS - 5
    back.save(tmp_path / "again.safetensors")


def nearest_bfloat16(values):
    """By the distance to both neighbours, in float64."""
    below = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    above = ((values.view(np.uint32) & 0xFFFF0000) + np.uint32(0x10000)).view(np.float32)
    under, over = (np.abs(side.astype(np.float64) - values) for side in (below, above))
    even = (below.view(np.uint32) >> 16) & 1 == 0
    return np.where((under < over) | ((under == over) & even), below, above)


def test_the_seconds_of_other_first_chunks(plan_of):
    """5 frames and then 6, at 8 a second."""
    stream = plan_of("clip").manifest.stream.model_copy(update={"first_frames": 5, "later_frames": 6})
    assert [stream.start_s(chunk) for chunk in range(3)] == [0, 5 / 8, 11 / 8]
    cases = {0: 0, 0.1: 1, 5 / 8: 1, 0.63: 2, 11 / 8: 2, 11.1 / 8: 3, 1e300: stream.chunk_at(2.0**48)}
    assert {seconds: stream.chunk_at(seconds) for seconds in cases} == cases
