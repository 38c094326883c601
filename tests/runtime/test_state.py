"""State files: whole or not at all, and refused by the name of what differs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from videossm.runtime import Plan, Rollout, StateError
from videossm.runtime.backends.memory import HostBuffer, HostStopwatch
from videossm.runtime.state import load_state


@pytest.fixture
def state(tiny_plan, tmp_path):
    """The file of a rollout after five chunks."""
    rollout = Rollout(tiny_plan, "a red circle")
    for _ in itertools.islice(rollout, 5):
        pass
    rollout.save(tmp_path / "state.safetensors")
    return tmp_path / "state.safetensors"


def metadata_of(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])["__metadata__"]


def rewrite(path, change_metadata=lambda _: None, change_tensors=lambda _: None):
    metadata, tensors = metadata_of(path), load_file(path)
    change_metadata(metadata)
    change_tensors(tensors)
    save_file(tensors, path, metadata)


def refused(plan, path):
    with pytest.raises(StateError) as caught:
        Rollout.resume(plan, path)
    assert "\n" not in str(caught.value), "one line"
    return str(caught.value)


def test_metadata_says_what_it_is_of(tiny_plan, state):
    metadata = metadata_of(state)
    assert metadata["plan"] == tiny_plan.identity and metadata["plan_name"] == "tiny"
    assert metadata["format_version"] == "1"
    header = {"prompts": ["a red circle"], "next_prompts": None, "seeds": [0], "chunk": 5}
    assert json.loads(metadata["rollout"]) == header


def test_no_file(tiny_plan, tmp_path):
    assert "which is no file" in refused(tiny_plan, tmp_path / "none.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999], ids=str)
def test_truncated(tiny_plan, state, kept):
    content = state.read_bytes()
    state.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    assert "truncated or damaged" in refused(tiny_plan, state)


def test_foreign_file(tiny_plan, state):
    save_file({"weight": np.zeros(3)}, state)
    assert "a safetensors file of something else" in refused(tiny_plan, state)


def test_not_even_safetensors(tiny_plan, state):
    state.write_text("a red circle moves left")
    assert "truncated or damaged" in refused(tiny_plan, state)


def test_other_plan(build_plan, tiny_plan, state):
    other = build_plan("other", fps=12.0)
    message = refused(other, state)
    assert f"plan: got one of the plan 'tiny' ({tiny_plan.identity[:12]})" in message
    assert f"expected one of 'other' ({other.identity[:12]})" in message


def test_newer_format(tiny_plan, state):
    rewrite(state, lambda metadata: metadata.update(format_version="2"))
    assert "format_version: got 2, expected 1" in refused(tiny_plan, state)


@pytest.mark.parametrize(
    ("field", "broken"),
    [
        ("chunk", {"chunk": "5"}),
        ("chunk", {"chunk": -1}),
        ("chunk", {"chunk": 2**48}),
        ("seeds", {"seeds": []}),
        ("seeds", {"seeds": [0, 1]}),
        ("seeds.0", {"seeds": [2**64]}),
        ("prompts", {"prompts": []}),
        ("prompts", {"prompts": ["a red circle", "a red circle"]}),
        ("next_prompts", {"next_prompts": []}),
        ("seeds", {"seeds": 3}),
        ("prompts", {"prompts": "red"}),
        ("colour", {"colour": 1}),
    ],
    ids=str,
)
def test_broken_header(tiny_plan, state, field, broken):
    def change(metadata):
        metadata["rollout"] = json.dumps({**json.loads(metadata["rollout"]), **broken})

    rewrite(state, change)
    assert f"metadata: rollout.{field}: got " in refused(tiny_plan, state)


def test_no_header(tiny_plan, state):
    rewrite(state, lambda metadata: metadata.pop("rollout"))
    assert "metadata: rollout: got ''" in refused(tiny_plan, state)


def test_other_tensors(tiny_plan, state):
    rewrite(state, change_tensors=lambda tensors: tensors.pop("memory/memory.1"))
    assert "tensor memory/memory.1: got none" in refused(tiny_plan, state)
    rewrite(state, change_tensors=lambda tensors: tensors.update({"memory/memory.1": np.zeros(3, np.float32)}))
    assert "tensor memory/memory.1: got ((3,)" in refused(tiny_plan, state)


def test_dtype_that_numpy_lacks(tiny_plan, state):
    """bfloat16, written by hand: the reader raises TypeError."""
    content = state.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            entry["dtype"] = "BF16"
            entry["shape"] = [2 * int(np.prod(entry["shape"]))]
    text = json.dumps(header).encode()
    state.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    refused(tiny_plan, state)


class Bits:
    """A backend whose engines leave random bits in every output, NaN and infinities among them."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def load(self, name, spec, file):
        return self

    def bind(self, inputs, outputs):
        bound = Bits()
        bound.run = lambda: [buffer.write(self.bits(buffer)) for buffer in outputs.values()]
        return bound

    def bits(self, buffer):
        return np.frombuffer(self.rng.bytes(buffer.array.nbytes), buffer.dtype).reshape(buffer.shape)

    def buffer(self, shape, dtype):
        return HostBuffer(np.zeros(shape, dtype))

    def copy(self, pairs):
        for source, target in pairs:
            target.write(source.array)

    def stopwatch(self):
        return HostStopwatch()


def test_bf16_is_kept_bit_by_bit(plan_copy):
    """In buffers, in a snapshot and in the file; there is no CPU that runs such a plan, so its engines do not count."""
    values = json.loads((plan_copy / "manifest.json").read_text())
    for engine in values["engines"].values():
        for tensor in (*engine["inputs"], *engine["outputs"]):
            if tensor["name"].endswith((".key", ".value")):
                tensor["dtype"] = "bfloat16"
    (plan_copy / "manifest.json").write_text(json.dumps(values))
    plan = Plan.open(plan_copy)
    rollout = Rollout(plan, "red", backend=Bits())
    for _ in itertools.islice(rollout, 5):
        pass
    saved = rollout.snapshot().tensors
    rollout.save(plan_copy.parent / "state.safetensors")
    _, loaded = load_state(plan_copy.parent / "state.safetensors", plan)
    dtypes = {name: "uint16" if name.endswith((".key", ".value")) else "float32" for name in saved}
    assert {name: str(values.dtype) for name, values in loaded.items()} == dtypes
    assert all(loaded[name].tobytes() == values.tobytes() for name, values in saved.items())
    other = Rollout(plan, "red", backend=Bits())
    other.restore(rollout.snapshot())
    assert all(values.tobytes() == saved[name].tobytes() for name, values in other.snapshot().tensors.items())


@pytest.mark.parametrize("name", ["", ".", "..", "folder"])
def test_a_folder_is_no_state_file(tiny_plan, tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StateError, match=r"^state: got .* which is a folder, expected a regular file"):
        Rollout(tiny_plan, "red").save(name)


def test_folder_that_does_not_exist(tiny_plan, tmp_path):
    with pytest.raises(StateError, match=r"none/state.safetensors, whose folder does not exist"):
        Rollout(tiny_plan, "red").save(tmp_path / "none" / "state.safetensors")


def test_a_failed_write_leaves_the_old_file_whole(tiny_plan, state, full_disk):
    old = state.read_bytes()
    rollout = Rollout.resume(tiny_plan, state)
    next(rollout)
    with full_disk(1000), pytest.raises(StateError, match="cannot write"):
        rollout.save(state)
    assert state.read_bytes() == old
    assert os.listdir(state.parent) == [state.name], "no temporary file is left"


def test_nothing_but_a_rename_touches_the_file(tiny_plan, state, monkeypatch):
    def fail(source, target):
        raise OSError(5, "Input/output error")

    old = state.read_bytes()
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StateError, match=r"cannot write .* \(Input/output error\)"):
        Rollout.resume(tiny_plan, state).save(state)
    assert state.read_bytes() == old and os.listdir(state.parent) == [state.name]


def test_a_copy_of_the_plan_is_the_same_plan(tiny_plan, state, tmp_path):
    copy = Plan.open(shutil.copytree(tiny_plan.path, tmp_path / "elsewhere.plan"))
    assert np.array_equal(next(Rollout.resume(copy, state)).frames, next(Rollout.resume(tiny_plan, state)).frames)
