"""The rollout against its NumPy twin, and what must not change a frame: save, resume, fork, cancel."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from videossm.runtime import BackendError, PromptError, Rollout, StateError, UserError
from videossm.runtime.cli.measure import resident_bytes
from videossm.runtime.program import Program

RED, GREEN = "a red circle moves left", "a green square"
CHUNKS = 9  # the window of three rolls several times

KINDS = {
    "euler": {},
    "renoise": {"sampler": "renoise"},
    "one-step": {"sigmas": (1.0,)},
    "batch-2": {"batch": 2},
    "batch-2-renoise": {"batch": 2, "sampler": "renoise"},
    "absolute": {"rope_frame": "absolute"},
    "no-memory": {"memory": False},
    "no-sink": {"sink_frames": 0},
    "chunks-of-2": {"chunk_frames": 2, "window_frames": 8, "sink_frames": 4},
    "window-of-one": {"window_frames": 3, "sink_frames": 0},
}


def frames_of(rollout, count):
    return [chunk.frames for chunk in itertools.islice(rollout, count)]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_rollout_equals_its_numpy_twin(build_plan, build_twin, kind):
    """Past the window, over two prompt switches: one before the ring rolls, one after."""
    batch = kind.get("batch", 1)
    seeds = [11, 2**63 + 5][:batch]
    prompts = {0: [RED, GREEN][:batch], 2: [GREEN, RED][:batch], 6: [RED, RED][:batch]}
    rollout = Rollout(build_plan(**kind), prompts[0], seeds)
    twin = build_twin(prompts[0], seeds, **kind)
    for index in range(CHUNKS):
        if index in prompts and index:
            rollout.set_prompt(prompts[index])
            twin.set_prompts(prompts[index])
        chunk = next(rollout)
        expected = twin.next()
        assert chunk.index == index, "chunks are numbered from 0"
        difference = np.abs(chunk.frames.astype(int) - expected).max()
        assert difference <= 1, f"chunk {index} differs by {difference} of 255"
    state = rollout.snapshot().tensors
    for layer in range(2 if kind.get("memory", True) else 0):
        np.testing.assert_allclose(state[f"{layer}.memory"], twin.memory[layer], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(state["cache"], twin.cache, rtol=1e-4, atol=1e-4)


@pytest.fixture
def cancelled_chunk(monkeypatch):
    """`cancelled_chunk(rollout, index)`: a chunk that is cancelled after its pass `index`."""

    def make(rollout, index):
        run_pass = Program.run_pass

        def cancelling(program, number):
            run_pass(program, number)
            if number == index:
                rollout.cancel()

        with monkeypatch.context() as patch:
            patch.setattr(Program, "run_pass", cancelling)
            assert list(rollout) == [], "the iteration ends"

    return make


def test_every_input_matters(build_plan):
    """The twin test proves nothing if the tiny engines ignore what they are fed."""
    first = frames_of(Rollout(build_plan(), RED, 1), CHUNKS)
    for other in (Rollout(build_plan(), GREEN, 1), Rollout(build_plan(), RED, 2)):
        assert not np.array_equal(first[0], next(other).frames), "prompt and seed change the first chunk"
    for changes in ({"memory": False}, {"sink_frames": 0}, {"rope_frame": "absolute"}):
        other = frames_of(Rollout(build_plan(**changes), RED, 1), CHUNKS)
        assert np.array_equal(first[2], other[2]), f"{changes} changes nothing before the window rolls"
        assert not np.array_equal(first[-1], other[-1]), f"{changes} changes later chunks"


def test_frames_are_the_callers_to_keep(tiny_plan):
    rollout = Rollout(tiny_plan, RED)
    first = next(rollout)
    kept = first.frames.copy()
    next(rollout)
    assert np.array_equal(first.frames, kept)


def test_same_seed_and_prompts_same_frames(tiny_plan):
    one, other = (frames_of(Rollout(tiny_plan, RED, seed=5), CHUNKS) for _ in range(2))
    assert all(map(np.array_equal, one, other))


def test_a_stream_of_a_batch_equals_a_rollout_of_its_own(build_plan):
    """The noise of a stream is that of its seed, wherever it lies in the batch; sums may round otherwise."""
    both = Rollout(build_plan(batch=2), [RED, GREEN], [3, 4])
    alone = [Rollout(build_plan(), RED, 3), Rollout(build_plan(), GREEN, 4)]
    for _ in range(CHUNKS):
        frames = next(both).frames
        for stream, rollout in enumerate(alone):
            difference = np.abs(frames[stream].astype(int) - next(rollout).frames[0]).max()
            assert difference <= 1, f"stream {stream} differs by {difference} of 255"


@pytest.mark.parametrize("seed", [7, np.int64(7), [7, 8], np.array([7, 8])], ids=repr)
def test_a_single_seed_counts_up_over_the_batch(build_plan, seed):
    assert Rollout(build_plan(batch=2), [RED, RED], seed).seeds == [7, 8]


SWITCHES = {3: GREEN, 6: RED}
EXPECTED = {}  # frames of a whole rollout over SWITCHES, by the plan's identity
SAMPLERS = pytest.mark.parametrize("kind", [{}, {"batch": 2, "sampler": "renoise"}], ids=["euler", "batch-2-renoise"])


def rolled(rollout, start, end, switches=SWITCHES):
    """The chunks `start` to `end`, with a prompt switch before those of `switches`."""
    chunks = []
    for index in range(start, end):
        if index in switches:
            rollout.set_prompt([switches[index]] * rollout.plan.manifest.stream.batch)
        chunks.append(next(rollout))
    return [chunk.frames for chunk in chunks]


def stopped_at(plan, stop):
    """(rollout before chunk `stop`, its prompt switch set but not yet in force; frames it would go on with)."""
    prompts = [RED] * plan.manifest.stream.batch
    if plan.identity not in EXPECTED:
        EXPECTED[plan.identity] = rolled(Rollout(plan, prompts, 1, threads=1), 0, CHUNKS + 2)
    rollout = Rollout(plan, prompts, 1, threads=1)
    rolled(rollout, 0, stop)
    if stop in SWITCHES:
        rollout.set_prompt([SWITCHES[stop]] * len(prompts))
    return rollout, EXPECTED[plan.identity][stop:]


def rest(rollout, stop):
    return rolled(rollout, stop, CHUNKS + 2, {at: text for at, text in SWITCHES.items() if at > stop})


@SAMPLERS
@pytest.mark.parametrize("stop", range(CHUNKS))
def test_resume_is_bit_identical_after_any_chunk(build_plan, tmp_path, kind, stop):
    stopped, expected = stopped_at(build_plan(**kind), stop)
    stopped.save(tmp_path / "state.safetensors")
    resumed = Rollout.resume(stopped.plan, tmp_path / "state.safetensors", threads=1)
    assert resumed.next_index == stop and resumed.prompts == stopped.prompts
    assert all(map(np.array_equal, rest(resumed, stop), expected))


@SAMPLERS
@pytest.mark.parametrize("stop", range(CHUNKS))
def test_fork_is_bit_identical_after_any_chunk(build_plan, kind, stop):
    stopped, expected = stopped_at(build_plan(**kind), stop)
    fork = stopped.fork()
    assert fork.next_index == stop and fork.prompts == stopped.prompts
    assert all(map(np.array_equal, rest(fork, stop), expected)), "the fork"
    assert all(map(np.array_equal, rest(stopped, stop), expected)), "the forked"


@SAMPLERS
@pytest.mark.parametrize("stop", [0, 2, 3, 6, 7])
@pytest.mark.parametrize("place", [None, 0, 2], ids=["before", "after-pass-0", "after-pass-2"])
def test_cancel_and_save_is_bit_identical(build_plan, tmp_path, cancelled_chunk, kind, stop, place):
    """Cancelled before the chunk or within it, with a prompt pending or just in force."""
    stopped, expected = stopped_at(build_plan(**kind), stop)
    if place is None:
        stopped.cancel()
        assert next(stopped, None) is None
    else:
        cancelled_chunk(stopped, place)
    assert stopped.next_index == stop
    stopped.save(tmp_path / "state.safetensors")
    resumed = Rollout.resume(stopped.plan, tmp_path / "state.safetensors", threads=1)
    assert all(map(np.array_equal, rest(resumed, stop), expected)), "resumed"
    assert all(map(np.array_equal, rest(stopped, stop), expected)), "gone on"


def test_cancel_comes_before_the_window_is_recomputed(tiny_plan):
    rollout = Rollout(tiny_plan, RED)
    frames_of(rollout, 5)
    rollout.set_prompt(GREEN)
    rollout.cancel()
    before = rollout.timings["step"]
    assert next(rollout, None) is None and rollout.timings["step"] == before, "no step was run"


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_sample_is_that_of_the_last_chunk(tiny_plan, tmp_path, cancelled_chunk, count):
    """It lies in the state, too, as the window keeps it; nowhere else after a cancelled chunk or a resume."""
    rollout = Rollout(tiny_plan, RED)
    with pytest.raises(StateError, match=r"^rollout: got no chunk yet"):
        rollout.sample  # noqa: B018
    frames_of(rollout, count)
    sample, slot = rollout.sample, {1: 0, 3: 2, 5: 2}[count]
    assert np.array_equal(sample, rollout.snapshot().tensors[":sample"][:, 3 * slot : 3 * slot + 3])
    assert np.array_equal(rollout.fork().sample, sample)
    rollout.save(tmp_path / "state.safetensors")
    cancelled_chunk(rollout, 1)
    for other in (rollout, rollout.fork(), Rollout.resume(tiny_plan, tmp_path / "state.safetensors")):
        with pytest.raises(StateError, match=r"^rollout: got no chunk yet"):
            other.sample  # noqa: B018


@pytest.mark.parametrize("method", ["encode_prompt", "recommit", "commit", "evict", "store", "finish"])
def test_an_exception_within_a_chunk_is_not_forgotten(tiny_plan, tmp_path, monkeypatch, method):
    """KeyboardInterrupt in a notebook while the state changes: nothing goes on from half of it."""
    rollout = Rollout(tiny_plan, RED)
    frames_of(rollout, 5)
    if method in ("encode_prompt", "recommit"):
        rollout.set_prompt(GREEN)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Program, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(rollout)
    for use in (lambda: next(rollout), rollout.fork, lambda: rollout.save(tmp_path / "s"), lambda: rollout.sample):
        with pytest.raises(StateError, match=r"^rollout: interrupted within a chunk.*resume from a saved state$"):
            use()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("method", ["start", "run_pass"])
def test_an_exception_before_the_state_changes_costs_the_chunk_only(tiny_plan, monkeypatch, method):
    expected = frames_of(Rollout(tiny_plan, RED), CHUNKS)
    rollout = Rollout(tiny_plan, RED)
    frames = frames_of(rollout, 5)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Program, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(rollout)
    assert all(map(np.array_equal, frames + frames_of(rollout, CHUNKS - 5), expected))


def test_a_resumed_rollout_saves_the_same_tensors(tiny_plan, tmp_path):
    rollout = Rollout(tiny_plan, RED)
    frames_of(rollout, 5)
    rollout.save(tmp_path / "one.safetensors")
    Rollout.resume(tiny_plan, tmp_path / "one.safetensors").save(tmp_path / "other.safetensors")
    one, other = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "other.safetensors")
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_fork_goes_on_alike_and_apart(tiny_plan):
    expected = frames_of(Rollout(tiny_plan, RED), CHUNKS)
    rollout = Rollout(tiny_plan, RED)
    frames_of(rollout, 5)
    fork = rollout.fork()
    other = rollout.fork()
    other.set_prompt(GREEN)
    assert not np.array_equal(next(other).frames, expected[5]), "a fork takes its own prompt"
    other.cancel()
    for index in range(5, CHUNKS):
        assert np.array_equal(next(fork).frames, expected[index]), f"chunk {index} of the fork"
        assert np.array_equal(next(rollout).frames, expected[index]), f"chunk {index} of the forked"


def test_a_restored_snapshot_is_where_it_was_taken(tiny_plan):
    """Into the same rollout, which has gone on with another prompt, and into another one of another seed."""
    rollout = Rollout(tiny_plan, RED, 3)
    frames_of(rollout, 4)
    rollout.set_prompt(GREEN)
    taken = rollout.snapshot()
    expected = frames_of(rollout, 3)
    rollout.set_prompt(RED)
    frames_of(rollout, 2)
    for other in (rollout, Rollout(tiny_plan, RED, 8)):
        other.restore(taken)
        assert other.next_index == 4 and other.prompts == [GREEN] and other.seeds == [3], "where it stood"
        assert all(map(np.array_equal, frames_of(other, 3), expected)), "the chunks after the snapshot"


def test_a_snapshot_of_another_plan_is_refused(build_plan, tiny_plan):
    rollout = Rollout(tiny_plan, RED)
    before = next(rollout).index
    with pytest.raises(StateError, match=r"snapshot: tensor \S+: got"):
        rollout.restore(Rollout(build_plan(memory=False), RED).snapshot())
    assert rollout.next_index == before + 1, "nothing changed"


def test_appended_samples_leave_the_state_that_made_chunks_leave(tiny_plan):
    made, fed = Rollout(tiny_plan, RED, 3), Rollout(tiny_plan, RED, 9)
    for _ in range(CHUNKS):
        chunk = next(made)
        assert np.array_equal(fed.append(made.sample).frames, chunk.frames), f"chunk {chunk.index}"
    tensors = fed.snapshot().tensors
    assert all(np.array_equal(tensors[name], values) for name, values in made.snapshot().tensors.items()), "the state"
    with pytest.raises(UserError, match="sample: got shape"):
        fed.append(made.sample[:, :1])


@pytest.mark.parametrize("again", [RED, "A red  circle moves LEFT"])
def test_the_same_prompt_again_changes_nothing(tiny_plan, again):
    """However it is spelt."""
    expected = frames_of(Rollout(tiny_plan, RED), CHUNKS)
    rollout = Rollout(tiny_plan, RED)
    first = frames_of(rollout, 5)
    rollout.set_prompt(again)
    assert all(map(np.array_equal, first + frames_of(rollout, CHUNKS - 5), expected))


@pytest.mark.parametrize("place", range(4))
def test_cancel_between_passes_corrupts_nothing(tiny_plan, cancelled_chunk, place):
    expected = frames_of(Rollout(tiny_plan, RED), CHUNKS)
    rollout = Rollout(tiny_plan, RED)
    frames = frames_of(rollout, 5)
    cancelled_chunk(rollout, place)
    assert rollout.next_index == 5, "the chunk does not count"
    assert all(map(np.array_equal, frames + frames_of(rollout, CHUNKS - 5), expected))


def test_cancel_from_another_thread(tiny_plan):
    rollout, started = Rollout(tiny_plan, RED), threading.Event()

    def cancel():
        started.wait()
        rollout.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    made = 0
    for _ in rollout:  # until it is cancelled
        made += 1
        started.set()
    thread.join()
    assert made == rollout.next_index > 0


def test_a_prompt_is_told_while_it_is_encoded(tiny_plan, monkeypatch):
    """To other threads, which show a stream that is served."""
    rollout, told = Rollout(tiny_plan, "red"), []
    encode = rollout._program.encode_prompt

    def slowly(*tokens):
        told.append(rollout.prompts)
        encode(*tokens)
        told.append(rollout.prompts)

    monkeypatch.setattr(rollout._program, "encode_prompt", slowly)
    next(rollout)
    rollout.set_prompt("blue")
    next(rollout)
    assert told == [["red"], ["red"], ["blue"], ["blue"]]


def test_a_prompt_set_from_another_thread_is_not_lost(tiny_plan):
    rollout, done = Rollout(tiny_plan, RED), threading.Event()

    def change():
        for index in range(200):
            rollout.set_prompt((RED, GREEN)[index % 2])
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    while not done.is_set():
        next(rollout)
    thread.join()
    next(rollout)
    assert rollout.prompts == [GREEN], "the last one is in force"


def test_cancel_before_the_first_chunk(tiny_plan):
    rollout = Rollout(tiny_plan, RED)
    rollout.cancel()
    assert next(rollout, None) is None
    assert next(rollout).index == 0, "a cancel ends one iteration"


def test_timings_are_of_every_engine(tiny_plan):
    rollout = Rollout(tiny_plan, RED)
    frames_of(rollout, 5)
    assert rollout.timings.keys() == {"text_encoder", "step", "memory", "decoder"}
    assert all(seconds > 0 for seconds in rollout.timings.values())


def test_chunks_say_when_they_start(tiny_plan):
    assert [chunk.start_s for chunk in itertools.islice(Rollout(tiny_plan, RED), 3)] == [0, 0.375, 0.75]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to read resident memory")
def test_resident_memory_does_not_grow(tiny_plan):
    rollout = Rollout(tiny_plan, RED, threads=1)
    sizes = []
    for chunk in itertools.islice(rollout, 601):
        if chunk.index % 200 == 0:
            sizes.append(resident_bytes())
    growth = np.diff(sizes)[1:]  # of the first chunks it may grow
    assert min(growth) < 4e5, f"{growth} bytes; pages of files come and go, a leak grows in each span"


BAD = {
    "empty-prompt": ({"prompt": " "}, PromptError, "prompt: got an empty text"),
    "unknown-word": ({"prompt": "a pink circle"}, PromptError, "prompt: got the unknown word 'pink'"),
    "two-prompts": ({"prompt": [RED, RED]}, PromptError, "prompt: got 2, expected 1"),
    "no-prompt": ({"prompt": []}, PromptError, "prompt: got 0, expected 1"),
    "two-seeds": ({"seed": [1, 2]}, UserError, "seed: got 2, expected 1"),
    "negative-seed": ({"seed": -1}, UserError, "seed: got -1, expected 0 or more"),
    "large-seed": ({"seed": 2**64}, UserError, "seed: got 18446744073709551616, expected 0 or more and less"),
    "fractional-seed": ({"seed": 1.5}, UserError, "seed: got 1.5, expected whole numbers"),
    "text-seed": ({"seed": "7"}, UserError, "seed: got '7', expected whole numbers"),
    "device": ({"device": "tpu"}, BackendError, "device: got tpu, expected cpu or cuda:N"),
    "threads": ({"threads": 0}, BackendError, "threads: got 0, expected 1 to "),
}


@pytest.mark.parametrize(("arguments", "kind", "start"), BAD.values(), ids=BAD.keys())
def test_bad_input(tiny_plan, arguments, kind, start):
    with pytest.raises(kind) as caught:
        Rollout(tiny_plan, **{"prompt": RED, **arguments})
    assert str(caught.value).startswith(start)


def test_a_wrong_prompt_on_the_way_changes_nothing(tiny_plan):
    expected = frames_of(Rollout(tiny_plan, RED), 5)
    rollout = Rollout(tiny_plan, RED)
    first = frames_of(rollout, 2)
    with pytest.raises(PromptError, match="unknown word 'pink'"):
        rollout.set_prompt("a pink circle")
    assert all(map(np.array_equal, first + frames_of(rollout, 3), expected))
