"""A second runtime, written from docs/plan-format.md by someone who had not read this one, gives the same bits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from oracle import Oracle

from videossm.runtime import Plan, Rollout

CHUNKS, SWITCH, SAVED = 9, 4, 6
RED, BLUE = "a red circle bounces on gray", "a blue square moves left on white"


def roll(plan: Plan, prompts: list[str] | None, path) -> list[np.ndarray]:
    """Samples and frames of CHUNKS chunks, with a prompt switch; the state after SAVED of them is written to `path`."""
    made = []
    with Rollout(plan, prompts, 7, threads=1) as rollout:
        for chunk in range(CHUNKS):
            if chunk == SWITCH and prompts:
                rollout.set_prompt([BLUE] * len(prompts))
            if chunk == SAVED:
                rollout.save(path)
            frames = next(rollout).frames
            made += [rollout.sample, frames]
    return made


def roll_oracle(plan: Plan, prompts: list[str] | None, path) -> list[np.ndarray]:
    made = []
    oracle = Oracle(plan.path, prompts, [7 + stream for stream in range(plan.manifest.stream.batch)])
    for chunk in range(CHUNKS):
        if chunk == SWITCH and prompts:
            oracle.set_prompt([BLUE] * len(prompts))
        if chunk == SAVED:
            oracle.save(path)
        made += [values.copy() for values in oracle.next()]
    return made


def check_equal(got: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(got) == len(expected)
    for index, (one, other) in enumerate(zip(got, expected, strict=True)):
        assert np.array_equal(one, other), f"{'sample' if index % 2 == 0 else 'frames'} of chunk {index // 2}"


@pytest.mark.parametrize("lowering", ["standard", "contrib"])
def test_the_same_bits(small_plan_in, lowering: str, tmp_path) -> None:
    plan, states = small_plan_in(lowering), [tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"]
    prompts = [RED] * plan.manifest.stream.batch
    expected = roll(plan, prompts, states[0])
    check_equal(roll_oracle(plan, prompts, states[1]), expected)
    with Rollout.resume(plan, states[1], threads=1) as rollout:
        resumed = [array for chunk in rollout.play(CHUNKS - SAVED) for array in (rollout.sample, chunk.frames)]
    check_equal(resumed, expected[2 * SAVED :])
    oracle = Oracle(plan.path, prompts, [0] * len(prompts))
    oracle.load(states[0])
    check_equal([array for _ in range(CHUNKS - SAVED) for array in map(np.copy, oracle.next())], expected[2 * SAVED :])


def test_it_is_short() -> None:
    import oracle

    with open(oracle.__file__, encoding="utf-8") as file:
        assert len(file.readlines()) <= 200


def test_an_altered_manifest(small_plan_in, tmp_path) -> None:
    folder = tmp_path / "copy.plan"
    folder.mkdir()
    for file in small_plan_in("standard").path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "name": "other"}, indent=1))
    with pytest.raises(AssertionError, match="checksum"):
        Oracle(folder, [RED], [0])
