"""State files: what Python refuses is refused by the same field, what it converts is converted to the same values."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_plan import rebuilt
from videossm_c import STATE, CError, CPlan, CRollout, Library

from videossm.runtime import Plan, Rollout, StateError

PROMPT = "a red circle"


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture
def saved(library: Library, tiny_plan: Plan, tmp_path: Path) -> Path:
    rollout = CRollout.create(CPlan(library, tiny_plan.path, 1), [PROMPT], [5])
    for _ in range(2):
        rollout.frames()
    rollout.save(tmp_path / "saved.state")
    return tmp_path / "saved.state"


def refused(library: Library, plan: Plan, path: Path) -> str:
    """C's message, after a look that Python's begins alike."""
    with pytest.raises(CError) as caught:
        CRollout.resume(CPlan(library, plan.path, 1), path)
    assert caught.value.status == STATE
    with pytest.raises(StateError) as mine:
        Rollout.resume(plan, path)
    message = str(caught.value)
    assert "\n" not in message and message.split(": got ")[0] == str(mine.value).split(": got ")[0], str(mine.value)
    return message


ROLLOUTS: list[tuple[dict[str, Any], str]] = [
    ({"prompts": ["a", "b"]}, "rollout.prompts: got 2, expected 1"),
    ({"prompts": []}, "rollout.prompts: got 0, expected 1"),
    ({"prompts": [1]}, "rollout.prompts.0: got 1"),
    ({"next_prompts": []}, "rollout.next_prompts: got 0"),
    ({"seeds": ["1", "2"]}, "rollout.seeds: got 2"),
    ({"seeds": ["01"]}, "rollout.seeds.0: got "),
    ({"seeds": [5]}, "rollout.seeds.0: got 5"),
    ({"seeds": ["18446744073709551616"]}, "rollout.seeds"),
    ({"chunk": "281474976710656"}, "rollout.chunk"),
    ({"chunk": "-1"}, "rollout.chunk"),
    ({"chunk": 3}, "rollout.chunk"),
    ({"more": 1}, "rollout.more"),
]


@pytest.mark.parametrize(("change", "expected"), ROLLOUTS)
def test_a_wrong_rollout(library: Library, tiny_plan: Plan, saved: Path, change: dict[str, Any], expected: str) -> None:
    header, data = parts(saved)
    rollout = {**json.loads(header["__metadata__"]["rollout"]), **change}
    header["__metadata__"]["rollout"] = json.dumps(rollout)
    write(saved, header, data)
    assert expected in refused(library, tiny_plan, saved)


@pytest.mark.parametrize("field", ["format", "format_version", "stream_identity"])
def test_another_file(library: Library, tiny_plan: Plan, saved: Path, field: str) -> None:
    header, data = parts(saved)
    header["__metadata__"][field] = "another"
    write(saved, header, data)
    refused(library, tiny_plan, saved)


def change_name(header: dict[str, Any], data: bytes) -> bytes:
    header["another"] = header.pop("cache")
    return data


def change_shape(header: dict[str, Any], data: bytes) -> bytes:
    header["cache"]["shape"].append(1)
    return data


def change_dtype(header: dict[str, Any], data: bytes) -> bytes:
    header["cache"]["dtype"] = "I32"
    return data


def not_finite(header: dict[str, Any], data: bytes) -> bytes:
    return data[:-4] + struct.pack("<f", float("nan"))


@pytest.mark.parametrize("change", [change_name, change_shape, change_dtype, not_finite])
def test_a_wrong_tensor(
    library: Library, tiny_plan: Plan, saved: Path, change: Callable[[dict[str, Any], bytes], bytes]
) -> None:
    header, data = parts(saved)
    data = change(header, data)
    write(saved, header, data)
    assert ": tensor " in refused(library, tiny_plan, saved)


def test_values_before_the_first_chunk(library: Library, tiny_plan: Plan, tmp_path: Path) -> None:
    rollout = CRollout.create(CPlan(library, tiny_plan.path, 1), [PROMPT], [5])
    rollout.save(tmp_path / "first.state")
    resumed = CRollout.resume(CPlan(library, tiny_plan.path, 1), tmp_path / "first.state")
    assert np.array_equal(resumed.frames(), rollout.frames())
    header, data = parts(tmp_path / "first.state")
    write(tmp_path / "first.state", header, data[:-4] + struct.pack("<f", 1.0))
    assert "values before the first chunk" in refused(library, tiny_plan, tmp_path / "first.state")


def test_every_cut_and_many_changed_bytes_are_told(library: Library, tiny_plan: Plan, saved: Path) -> None:
    content, plan = saved.read_bytes(), CPlan(library, tiny_plan.path, 1)
    for size in range(0, len(content), 37):
        saved.write_bytes(content[:size])
        with pytest.raises(CError, match=r"^state: "):
            CRollout.resume(plan, saved)
    (length,) = struct.unpack("<Q", content[:8])
    for place in range(0, 8 + length, 3):
        saved.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            CRollout.resume(plan, saved)  # what it changed may be a seed or a prompt
        except CError as error:
            assert str(error).startswith(("state: ", "prompt: ")), error


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_floats_of_another_precision(
    library: Library, plan_copy: Path, tiny_plan: Plan, tmp_path: Path, dtype: str
) -> None:
    """A state of fp32 in a plan that keeps it in two bytes, and back: the bytes are Python's."""
    from videossm.runtime.state import load_state, save_state

    mine = Rollout(tiny_plan, PROMPT, 5, threads=1)
    for _ in range(5):
        next(mine)
    mine.save(tmp_path / "fp32.state")
    states = [state.model_copy(update={"dtype": dtype}) if state.half else state for state in tiny_plan.manifest.states]
    kept = tiny_plan.manifest.model_copy(update={"states": tuple(states)})
    header, tensors = load_state(tmp_path / "fp32.state", kept)
    save_state(tmp_path / "half.state", kept, header, tensors)
    other = CRollout.resume(CPlan(library, tiny_plan.path, 1), tmp_path / "half.state")
    again = Rollout.resume(tiny_plan, tmp_path / "half.state", threads=1)
    for _ in range(3):
        assert np.array_equal(other.frames(), next(again).frames)


def test_a_clip_that_is_over(library: Library, plan_copy: Path, saved: Path) -> None:
    stream = Plan.open(plan_copy).values()["stream"]
    plan = rebuilt(plan_copy, stream={**stream, "chunks": 1})
    assert "rollout.chunk: got 2, expected at most 1" in refused(library, plan, saved)


def test_where_no_file_can_be_written(library: Library, tiny_plan: Plan, tmp_path: Path) -> None:
    rollout = CRollout.create(CPlan(library, tiny_plan.path, 1), [PROMPT], [5])
    rollout.frames()
    for path in (tmp_path / "none" / "x.state", tmp_path, Path("/proc/x.state")):
        with pytest.raises(CError, match=r"^state: ") as caught:
            rollout.save(path)
        assert caught.value.status == STATE
    assert list(tmp_path.iterdir()) == []
    rollout.save(tmp_path / "a name with ü.state")
    assert Rollout.resume(tiny_plan, tmp_path / "a name with ü.state").next_index == 1
