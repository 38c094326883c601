"""Whole rollouts through the TensorRT backend: the CPU's frames bit by bit, in whatever order a GPU may work; what is
queued and what is waited for; what memory is taken.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from videossm.runtime import BackendError, Rollout, StateError
from videossm.runtime.cli.bench import CAPTURES
from videossm.runtime.program import buffer_bytes

RED, GREEN = "a red circle moves left", "a green square"
ORDERS = ("late", "early", "compute-first", "copies-first", "random")
CHUNKS = 9
KINDS = {
    "euler": {},
    "renoise": {"sampler": "renoise"},
    "batch-2-renoise": {"batch": 2, "sampler": "renoise"},
    "no-memory": {"memory": False},
    "chunks-of-2": {"chunk_frames": 2, "window_frames": 8, "sink_frames": 4},
    "aligned-slots": {"chunk_frames": 4, "window_frames": 12, "sink_frames": 4},
    "window-of-one": {"window_frames": 3, "sink_frames": 0},
}


def prompts(rollout_or_plan, text):
    plan = getattr(rollout_or_plan, "plan", rollout_or_plan)
    return [text] * plan.manifest.stream.batch


def story(plan, tmp_path):
    """Frames of a rollout with prompt switches, and of those that branch off it; read as late as may be."""
    chunks = []
    rollout = Rollout(plan, prompts(plan, RED), 5)
    for index in range(CHUNKS):
        if index in (2, 6):
            rollout.set_prompt(prompts(plan, GREEN if index == 2 else RED))
        chunks.append(next(rollout))
        if index == 3:
            fork = rollout.fork()
            fork.set_prompt(prompts(plan, RED))
        if index == 4:
            rollout.save(tmp_path / "state.safetensors")
        if index == 5:
            snapshot = rollout.snapshot()
        if index >= 4:
            chunks.append(next(fork))
    resumed = Rollout.resume(plan, tmp_path / "state.safetensors")
    chunks += itertools.islice(resumed, 3)
    rollout.cancel()
    assert next(rollout, None) is None
    chunks.append(next(rollout))
    rollout.restore(snapshot)
    chunks += itertools.islice(rollout, 2)
    sample = rollout.sample
    chunks.append(rollout.append(sample))
    frames = [chunk.frames for chunk in chunks]
    return [*frames, sample, *rollout.snapshot().tensors.values()]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_frames_and_state_are_the_cpus(build_plan, engine_plan, tensorrt, tmp_path, kind, order):
    plan = build_plan(**kind)
    expected = story(plan, tmp_path)
    trt = tensorrt(order)
    got = story(engine_plan(plan), tmp_path)
    assert len(got) == len(expected) and all(map(np.array_equal, got, expected))
    assert trt.cuda.graphs or order, "passes were captured"


def test_no_wait_between_steps_or_engines(tiny_plan, engine_plan, tensorrt):
    """Making a chunk waits for nothing but, from the third one on, for the frames of the chunk before the last."""
    trt = tensorrt()
    rollout = Rollout(engine_plan(tiny_plan), RED)
    waits = []
    for _ in range(8):
        before = len(trt.cuda.waits)
        next(rollout)
        waits.append(trt.cuda.waits[before:])
    assert waits == [[], [], *[["cudaEventSynchronize"]] * 6]


def test_a_prompt_switch_waits_for_nothing_either(tiny_plan, engine_plan, tensorrt):
    trt = tensorrt()
    rollout = Rollout(engine_plan(tiny_plan), RED)
    chunk = next(rollout)
    rollout.set_prompt(GREEN)
    following = next(rollout)
    assert trt.cuda.waits == [] and not chunk.ready and not following.ready


def test_frames_are_copied_while_the_next_chunk_is_made(tiny_plan, engine_plan, tensorrt):
    """The copy needs the decoder's work only, and the next chunk up to its decoder does not need the copy."""
    trt = tensorrt("compute-first")
    rollout = Rollout(engine_plan(tiny_plan), RED)
    next(rollout)
    next(rollout)
    done = trt.cuda.done
    passes = len(tiny_plan.manifest.passes)
    assert "copy DeviceToHost" not in done, "nobody waits: the copy stream has not begun"
    chunk = 1 + passes + 1  # prompt, passes, decoder
    assert done.count("engine") == chunk + passes, "the second decoder waits for the first one's reader"

    trt = tensorrt("late")
    rollout = Rollout(engine_plan(tiny_plan), RED)
    first, _ = next(rollout), next(rollout)
    first.frames  # noqa: B018
    assert trt.cuda.done.count("engine") == chunk, "the frames came before the next chunk was begun"
    assert first.ready


def test_each_side_of_a_pair_is_a_graph_of_its_own(tiny_plan, engine_plan, tensorrt):
    """Passes by the side of the memory, the decoder by that of its caches; the memory by the chunk slot that
    it takes, as slots and sides both alternate. The prompt is encoded once.
    """
    trt = tensorrt()
    rollout = Rollout(engine_plan(tiny_plan), RED)
    for _ in itertools.islice(rollout, 30):
        pass
    passes, sides, evicting_slots = len(tiny_plan.manifest.passes), 2, 2
    assert rollout.device_usage.graphs == passes * sides + sides + evicting_slots
    runs = sum(context.runs for context in trt.contexts)
    for _ in itertools.islice(rollout, 10):
        pass
    assert sum(context.runs for context in trt.contexts) == runs, "from then on graphs are launched"
    assert not rollout.device_usage.notes


@pytest.mark.parametrize("rtx", [False, True])
def test_without_graphs_it_runs_all_the_same(tiny_plan, engine_plan, tensorrt, tmp_path, rtx):
    expected = story(tiny_plan, tmp_path)
    trt = tensorrt("random", rtx)
    trt.options.capturable = False
    plan = engine_plan(tiny_plan)
    assert all(map(np.array_equal, story(plan, tmp_path), expected))
    rollout = Rollout(plan, RED)
    for _ in itertools.islice(rollout, 12):
        pass
    usage = rollout.device_usage
    why = r"its execution context cannot be captured" if rtx else "it failed, as the test wanted"
    assert usage.graphs == 0 and len(usage.notes) == 3, "each engine that ran twice says so once"
    assert all("runs without CUDA graphs" in note and why in note for note in usage.notes)


def test_an_error_that_a_failed_capture_leaves_in_tensorrt_ends_nothing(tiny_plan, engine_plan, tensorrt, tmp_path):
    expected = story(tiny_plan, tmp_path)
    trt = tensorrt("random")
    trt.options.capturable, trt.options.keeps_errors = False, True
    assert all(map(np.array_equal, story(engine_plan(tiny_plan), tmp_path), expected))


@pytest.mark.parametrize("kind", KINDS)
def test_all_is_captured_once_a_benchmark_has_warmed_up(build_plan, engine_plan, tensorrt, kind):
    tensorrt()
    plan = build_plan(**KINDS[kind])
    rollout = Rollout(engine_plan(plan), [RED] * plan.manifest.stream.batch)
    window = plan.manifest.window.chunks
    for _ in itertools.islice(rollout, 1 + window + CAPTURES):
        pass
    graphs = rollout.device_usage.graphs
    for _ in itertools.islice(rollout, 12):
        pass
    assert rollout.device_usage.graphs == graphs


def test_activations_share_a_block_and_buffers_none(tiny_plan, engine_plan, tensorrt):
    trt = tensorrt()
    rollout = Rollout(engine_plan(tiny_plan), RED)
    for _ in itertools.islice(rollout, 6):
        pass
    assert len({context.memory for context in trt.contexts if context.runs}) == 1
    needed = max(context.engine.device_memory_size_v2 for context in trt.contexts)
    usage = rollout.device_usage
    assert usage.activations_bytes == needed
    assert usage.activations_bytes + usage.buffers_bytes == trt.cuda.bytes_of("device")
    assert usage.pinned_bytes == trt.cuda.bytes_of("pinned")
    assert usage.weights_bytes == sum(
        (tiny_plan.path / e.file).stat().st_size for e in tiny_plan.manifest.engines.values()
    )
    assert buffer_bytes(rollout.plan.manifest) <= usage.buffers_bytes, "and parts that leave the window, if copied"


@pytest.mark.parametrize("read", [False, True], ids=["nobody-reads", "read"])
def test_memory_does_not_grow(tiny_plan, engine_plan, tensorrt, read):
    trt = tensorrt()
    rollout = Rollout(engine_plan(tiny_plan), RED)
    sizes = []
    for index, chunk in enumerate(itertools.islice(rollout, 200)):
        if read:
            chunk.frames  # noqa: B018
        if index >= 20:
            handles = (
                len(trt.cuda.events),
                len(trt.cuda.graphs),
                len(trt.cuda.blocks),
                sum(map(len, trt.cuda.streams.values())),
            )
            sizes.append((trt.cuda.bytes_of("device"), trt.cuda.bytes_of("pinned"), *handles))
    assert max(sizes) == sizes[10] or len(set(sizes[20:])) <= 12, "a cycle of sides and slots, no more"
    assert max(map(sum, sizes[90:])) <= max(map(sum, sizes[:90]))


@pytest.mark.parametrize("rtx", [False, True])
def test_a_closed_rollout_leaves_nothing_though_it_is_referred_to(tiny_plan, engine_plan, tensorrt, rtx):
    trt = tensorrt(rtx=rtx)
    with Rollout(engine_plan(tiny_plan), RED) as rollout:
        kept = [next(rollout) for _ in range(6)]
        frames = kept[0].frames
        fork = rollout.fork()
        next(fork)
    rollout.close()
    assert not trt.cuda.blocks and not trt.cuda.events and not trt.cuda.graphs and not trt.cuda.streams
    assert kept[0].frames is frames
    for closed in (rollout, fork):
        for use in (
            lambda closed=closed: next(closed),
            closed.snapshot,
            closed.fork,
            lambda closed=closed: closed.sample,
        ):
            with pytest.raises(StateError, match=r"^rollout: got a closed one, expected an open one; make another"):
                use()


@pytest.mark.parametrize("nth", [1, 5, 20])
def test_a_rollout_that_fails_to_load_leaves_nothing(tiny_plan, engine_plan, tensorrt, nth):
    trt = tensorrt()
    trt.cuda.fail("cudaMalloc", 2, nth)
    with pytest.raises(BackendError) as caught:
        Rollout(engine_plan(tiny_plan), RED)
    assert caught.traceback and not trt.cuda.blocks and not trt.cuda.events and not trt.cuda.streams


@pytest.mark.parametrize("rtx", [False, True])
def test_a_rollout_that_is_gone_leaves_nothing(tiny_plan, engine_plan, tensorrt, rtx):
    trt = tensorrt(rtx=rtx)
    rollout = Rollout(engine_plan(tiny_plan), RED)
    kept = next(rollout)
    fork = rollout.fork()
    next(fork)
    del rollout, fork
    trt.contexts.clear()
    assert kept.frames.shape == (1, 3, 32, 32, 3)
    del kept
    assert not trt.cuda.blocks and not trt.cuda.events and not trt.cuda.graphs and not trt.cuda.streams


def test_timings_are_the_devices(tiny_plan, engine_plan, tensorrt):
    """In the emulation an engine takes a millisecond, and a copy no time."""
    tensorrt()
    rollout = Rollout(engine_plan(tiny_plan), RED)
    for _ in itertools.islice(rollout, 6):
        pass
    expected = {"text_encoder": 1, "step": 6 * len(tiny_plan.manifest.passes), "memory": 3, "decoder": 6}
    assert rollout.timings == pytest.approx({name: runs / 1000 for name, runs in expected.items()})
