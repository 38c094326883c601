"""The same frames, bit for bit, and the same states as Python's, whatever happens to the stream."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import run
from videossm_c import (
    ARGUMENT,
    BACKEND,
    CANCELLED,
    ENDED,
    PROMPT,
    STATE,
    CError,
    ChunkView,
    CPlan,
    CRollout,
    Library,
    Target,
    pixels,
)

from videossm.runtime import Plan, Rollout

CHUNKS = 40
SWITCH, SAVE, RESUME = 11, 17, 23
FIRST, SECOND = "a red circle moves left", "a blue square moves right"


def prompts(plan: Plan, text: str) -> list[str]:
    """`text`, in words that the plan knows, for each stream."""
    if plan.manifest.text is None:
        return []
    if plan.manifest.family != "tests":
        text = text.replace("moves", "bounces").replace(" left", "").replace(" right", "")
    return [text] * plan.manifest.stream.batch


def c_plan(library: Library, plan: Plan, threads: int = 1) -> CPlan:
    return CPlan(library, plan.path, threads)


def python(plan: Plan, seed: int = 5, threads: int = 1) -> Rollout:
    return Rollout(plan, prompts(plan, FIRST) or None, seed, threads=threads)


def test_40_chunks_with_a_switch_a_save_a_resume_and_a_fork(library: Library, plan: Plan, tmp_path: Path) -> None:
    mine, other = python(plan), CRollout.create(c_plan(library, plan), prompts(plan, FIRST), [5])
    kept = fork = python_fork = None
    for index in range(plan.manifest.stream.chunks or CHUNKS):
        if index == SWITCH and plan.manifest.text:
            mine.set_prompt(prompts(plan, SECOND))
            other.set_prompt(*prompts(plan, SECOND))
        if index == SAVE:
            mine.save(tmp_path / "python.state")
            other.save(tmp_path / "c.state")
            fork, python_fork = other.fork(), mine.fork()
        expected, got = next(mine).frames, other.frames()
        assert np.array_equal(got, expected), f"chunk {index}"
        if index == SAVE:
            kept = expected
        if index == RESUME:
            assert fork is not None and python_fork is not None
            mine = Rollout.resume(plan, tmp_path / "c.state", threads=1)
            other = CRollout.resume(c_plan(library, plan), tmp_path / "python.state")
            for again in (next(mine).frames, other.frames(), fork.frames(), next(python_fork).frames):
                assert np.array_equal(again, kept)
    assert np.array_equal(other.sample(), mine.sample.reshape(-1))


@pytest.mark.usefixtures("all_processors")
@pytest.mark.parametrize("threads", [0, 2])
def test_more_threads(library: Library, exported_plan: Callable[..., Plan], threads: int) -> None:
    plan = exported_plan("test", "fp32")
    mine = Rollout(plan, prompts(plan, FIRST), 1, threads=threads or None)
    other = CRollout.create(c_plan(library, plan, threads), prompts(plan, FIRST), [1])
    for _ in range(8):
        assert np.array_equal(other.frames(), next(mine).frames)


@pytest.mark.usefixtures("native_scans")
def test_the_lowering_native(library: Library, small_plan_in: Callable[..., Plan]) -> None:
    plan = small_plan_in("native")
    mine, other = python(plan), CRollout.create(c_plan(library, plan), prompts(plan, FIRST), [5])
    for _ in range(12):
        assert np.array_equal(other.frames(), next(mine).frames)


@pytest.mark.parametrize(
    ("scans", "why"),
    [
        ("", "; set VIDEOSSM_SCANS to the path of libvideossm_onnxruntime, which"),
        ("/nowhere.so", r"^VIDEOSSM_SCANS: got /nowhere"),
    ],
)
def test_the_lowering_native_without_its_library(
    library: Library, small_plan_in: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, scans: str, why: str
) -> None:
    monkeypatch.setenv("VIDEOSSM_SCANS", scans)
    with pytest.raises(CError, match=why):
        c_plan(library, small_plan_in("native"))


def test_the_scenario(built: Path, plan: Plan, tmp_path: Path) -> None:
    """Fork, saved state and snapshot side by side in three threads, a cancel from another: in scenario.cpp."""
    if plan.manifest.stream.chunks:
        pytest.skip("a clip has no middle")
    texts = [words[0] for words in (prompts(plan, FIRST), prompts(plan, SECOND)) if words]
    run(built / "scenario", plan.path, 1, 16, tmp_path / "frames", *texts)
    mine, expected = python(plan), []
    for index in range(16):
        if index == 8 and texts:
            mine.set_prompt(prompts(plan, SECOND))
        expected.append(next(mine).frames.tobytes())
    assert (tmp_path / "frames").read_bytes() == b"".join(expected)


def test_a_prompt_by_its_token_ids(library: Library, tiny_plan: Plan, tmp_path: Path) -> None:
    from videossm.runtime.prompt import PromptTokenizer

    assert tiny_plan.manifest.text is not None
    tokenizer = PromptTokenizer(tiny_plan.tokenizer_file, tiny_plan.manifest.text)
    mine, plan = python(tiny_plan), c_plan(library, tiny_plan)
    other = CRollout.create(plan, seeds=[5], tokens=tokenizer.encode([FIRST]))
    assert np.array_equal(other.frames(), next(mine).frames)
    with pytest.raises(CError, match="given as token ids"):
        other.save(tmp_path / "state")
    mine.set_prompt(SECOND)
    other.set_prompt_ids(*tokenizer.encode([SECOND]))
    assert np.array_equal(other.frames(), next(mine).frames)
    other.set_prompt(FIRST)
    other.frames()
    other.save(tmp_path / "state")


def test_a_tokenizer_of_another_kind_takes_token_ids_alone(library: Library, plan_copy: Path) -> None:
    """Such as umT5's, which is Unigram."""
    from small_plan import rebuilt
    from tokenizers import Tokenizer, models, pre_tokenizers

    from videossm.runtime.prompt import PromptTokenizer

    pieces = [("[PAD]", 0.0), ("[UNK]", 0.0), ("a", -1.0), ("re", -2.0), ("d", -2.0), ("red", -3.0)]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=1))
    unigram.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    unigram.save(str(plan_copy / "tokenizer.json"))
    plan = rebuilt(plan_copy)
    assert plan.manifest.text is not None
    shared = c_plan(library, plan)
    assert shared.info.takes_text == 0 and shared.info.text_length == plan.manifest.text.length
    message = r"^prompt: got a text for a tokenizer that is not word-level, expected token ids; make them with"
    with pytest.raises(CError, match=message) as caught:
        CRollout.create(shared, ["a red"])
    assert caught.value.status == PROMPT
    tokens = PromptTokenizer(plan.tokenizer_file, plan.manifest.text).encode(["a red"])
    other = CRollout.create(shared, seeds=[5], tokens=tokens)
    assert np.array_equal(other.frames(), next(Rollout(plan, "a red", 5, threads=1)).frames)


def test_a_clean_sample_from_outside(library: Library, tiny_plan: Plan) -> None:
    mine, other = python(tiny_plan), CRollout.create(c_plan(library, tiny_plan), [FIRST], [5])
    sample = np.random.default_rng(1).standard_normal(mine._program.sample_shape, np.float32)
    for _ in range(6):
        assert np.array_equal(other.append(sample), mine.append(sample).frames)
        assert np.array_equal(other.frames(), next(mine).frames)
    with pytest.raises(CError, match=r"^sample: got 3 numbers, expected ") as caught:
        other.append(np.zeros(3, np.float32))
    assert caught.value.status == ARGUMENT


def test_rollouts_side_by_side_over_one_plan(library: Library, exported_plan: Callable[..., Plan]) -> None:
    plan = exported_plan("test", "fp32")
    shared, found = c_plan(library, plan), {}

    def play(seed: int) -> None:
        rollout = CRollout.create(shared, prompts(plan, FIRST), [seed])
        found[seed] = [rollout.frames() for _ in range(6)]

    threads = [threading.Thread(target=play, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, frames in found.items():
        mine = python(plan, seed)
        assert all(np.array_equal(chunk, next(mine).frames) for chunk in frames), seed


def test_frames_go_where_the_caller_wants_them(library: Library, build_plan: Callable[..., Plan]) -> None:
    plan = build_plan(name="cpp", batch=2, sampler="renoise", rope_frame="absolute")
    rollout = CRollout.create(c_plan(library, plan), prompts(plan, FIRST), [5])
    fork, stream = rollout.fork(), plan.manifest.stream
    memory = np.full((2, 5, stream.height + 1, stream.width * 3 + 7), 201, np.uint8)
    target = Target(memory.ctypes.data_as(Target.pixels_type), memory.nbytes, *memory.strides[:3])
    assert fork.next_bytes == 2 * stream.first_frames * stream.height * stream.width * 3
    chunk = rollout.next(target)
    assert isinstance(chunk, ChunkView)
    expected = fork.frames()
    assert np.array_equal(pixels(chunk), expected)
    inside = memory[:, : expected.shape[1], : stream.height, : stream.width * 3]
    assert np.array_equal(inside.reshape(expected.shape), expected)
    inside[:] = 201
    assert (memory == 201).all(), "nothing else was written"


def test_a_target_that_is_too_small_changes_nothing(library: Library, tiny_plan: Plan) -> None:
    rollout = CRollout.create(c_plan(library, tiny_plan), [FIRST], [5])
    memory = np.zeros(rollout.next_bytes, np.uint8)
    pointer = memory.ctypes.data_as(Target.pixels_type)
    for wrong in (
        Target(pointer, memory.size - 1),
        Target(pointer, memory.size, 0, 0, 5),
        Target(None, memory.size),
        Target(pointer, memory.size, 0, 2**63, 0),
        Target(pointer, memory.size, 2**64 - 1, 0, 0),
    ):
        with pytest.raises(CError, match=r"^target") as caught:
            rollout.next(wrong)
        assert caught.value.status == ARGUMENT
    assert rollout.next_index == 0
    assert np.array_equal(rollout.frames(), next(python(tiny_plan)).frames)


def test_a_clip_ends(library: Library, plan_copy: Path) -> None:
    from small_plan import rebuilt

    stream = Plan.open(plan_copy).values()["stream"]
    plan = rebuilt(plan_copy, stream={**stream, "chunks": 2})
    shared = c_plan(library, plan)
    rollout = CRollout.create(shared, [FIRST])
    assert shared.info.chunks == 2
    rollout.frames()
    rollout.frames()
    assert rollout.next() == ENDED and rollout.next_bytes == 0 and rollout.next() == ENDED


def test_cancel_and_progress(library: Library, tiny_plan: Plan) -> None:
    calls: list[tuple[int, int, int]] = []
    passes = len(tiny_plan.manifest.passes)

    def progress(_: object, chunk: int, done: int, of: int) -> None:
        calls.append((chunk, done, of))
        if len(calls) == passes + 2:
            rollout.cancel()

    rollout = CRollout.create(c_plan(library, tiny_plan), [FIRST], [5], progress=progress)
    mine = python(tiny_plan)
    assert np.array_equal(rollout.frames(), next(mine).frames)
    assert calls == [(0, done + 1, passes) for done in range(passes)]
    assert rollout.next() == CANCELLED and calls[-1] == (1, 2, passes) and rollout.next_index == 1
    assert np.array_equal(rollout.frames(), next(mine).frames)


def test_what_a_plan_says_of_itself(library: Library, tiny_plan: Plan) -> None:
    lines: list[str] = []
    plan = CPlan(library, tiny_plan.path, 1, log=lambda _, line: lines.append(line.decode()))
    info, manifest = plan.info, tiny_plan.manifest
    stream = manifest.stream
    assert (info.name.decode(), info.identity.decode()) == (manifest.name, tiny_plan.identity)
    assert (info.batch, info.height, info.width, info.fps) == (stream.batch, stream.height, stream.width, stream.fps)
    assert (info.first_frames, info.later_frames, info.chunks) == (stream.first_frames, stream.later_frames, 0)
    assert info.text_length == manifest.text.length and info.takes_text == info.takes_samples == 1
    assert info.state_bytes == sum(tensor.size_bytes for tensor in manifest.kept().values())
    assert info.sample_count == np.prod(manifest.sample.shape)
    assert len(lines) == 1 + len(manifest.engines)
    rollout = CRollout.create(plan, [FIRST])
    rollout.frames()
    names, seconds = zip(*(rollout.timing(index) for index in range(info.engine_count)), strict=True)
    assert list(names) == list(manifest.engines) and sum(seconds) > 0
    with pytest.raises(CError, match=f"^index: got {info.engine_count}, "):
        rollout.timing(info.engine_count)


def test_a_snapshot_goes_into_another_rollout_of_the_plan_alone(
    library: Library, tiny_plan: Plan, build_plan: Callable[..., Plan]
) -> None:
    plan = c_plan(library, tiny_plan)
    rollout, other = CRollout.create(plan, [FIRST], [5]), CRollout.create(plan, [SECOND], [9])
    for _ in range(5):
        rollout.frames()
    snapshot = rollout.snapshot()
    expected = rollout.frames()
    other.restore(snapshot)
    assert np.array_equal(other.frames(), expected)
    foreign = CRollout.create(c_plan(library, build_plan(name="foreign", chunk_frames=1)), [FIRST])
    with pytest.raises(CError, match=r"^snapshot: got one of another plan") as caught:
        foreign.restore(snapshot)
    assert caught.value.status == STATE
    library.functions.videossm_snapshot_free(snapshot)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "prompt: got 0, expected 1, "),
        ([FIRST, FIRST], "prompt: got 2, expected 1, "),
        (["  "], "prompt: got an empty text"),
        (["a red zebra"], "prompt: got the unknown word 'zebra', expected words among: a red green"),
        (["a red\nzebra\tx"], "prompt: got the unknown word 'zebra', "),
        (["a [PAD] red"], "prompt: got the unknown word '[PAD]', "),
        (["a a a a a a"], "prompt: got 6 tokens, expected at most 5; "),
    ],
)
def test_wrong_prompts_are_refused_as_in_python(
    library: Library, tiny_plan: Plan, texts: list[str], message: str
) -> None:
    from videossm.runtime import PromptError

    with pytest.raises(CError) as caught:
        CRollout.create(c_plan(library, tiny_plan), texts)
    assert str(caught.value).startswith(message) and caught.value.status == PROMPT
    with pytest.raises(PromptError) as mine:
        Rollout(tiny_plan, texts)
    assert str(mine.value) == str(caught.value)


def test_seeds(library: Library, build_plan: Callable[..., Plan]) -> None:
    plan = build_plan(name="cpp", batch=2, sampler="renoise", rope_frame="absolute")
    shared, texts = c_plan(library, plan), prompts(plan, FIRST)
    assert np.array_equal(CRollout.create(shared, texts, [7]).frames(), CRollout.create(shared, texts, [7, 8]).frames())
    with pytest.raises(CError, match=r"^seed: got 3, expected 2, "):
        CRollout.create(shared, texts, [1, 2, 3])
    with pytest.raises(CError, match=r"^seed: .* less than 2\*\*64; "):
        CRollout.create(shared, texts, [2**64 - 1])


def test_threads_below_none_are_refused(library: Library, tiny_plan: Plan) -> None:
    with pytest.raises(CError, match=r"^threads: got -1 for onnxruntime, "):
        c_plan(library, tiny_plan, -1)


def test_a_graph_that_is_not_as_the_manifest_says(library: Library, plan_copy: Path) -> None:
    from small_plan import rebuilt

    engines = Plan.open(plan_copy).values()["engines"]
    name = next(iter(engines))
    engines[name]["inputs"][0]["name"] = "another"
    rebuilt(plan_copy, engines=engines)
    message = rf"^{name}.onnx: inputs: another: got none, expected int64 1x5 by manifest"
    with pytest.raises(CError, match=message) as caught:
        CPlan(library, plan_copy, 1)
    assert caught.value.status == BACKEND
