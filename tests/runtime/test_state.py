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
from small_plan import rebuilt

from videossm.runtime import Plan, Rollout, StateError
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
    assert metadata["stream_identity"] == tiny_plan.manifest.stream_identity and metadata["plan_name"] == "tiny"
    assert metadata["format_version"] == "2"
    header = {"prompts": ["a red circle"], "next_prompts": None, "seeds": ["0"], "chunk": "5"}
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
    assert f"stream_identity: got one of 'tiny' ({tiny_plan.manifest.stream_identity[:12]})" in message
    assert f"expected one of 'other' ({other.manifest.stream_identity[:12]})" in message


def test_newer_format(tiny_plan, state):
    rewrite(state, lambda metadata: metadata.update(format_version="3"))
    assert "format_version: got 3, expected 2" in refused(tiny_plan, state)


@pytest.mark.parametrize(
    ("field", "broken"),
    [
        ("chunk", {"chunk": 5}),
        ("chunk", {"chunk": "-1"}),
        ("chunk", {"chunk": "05"}),
        ("chunk", {"chunk": str(2**48)}),
        ("chunk", {"chunk": "9" * 5000}),
        ("seeds", {"seeds": []}),
        ("seeds", {"seeds": ["0", "1"]}),
        ("seeds.0", {"seeds": [str(2**64)]}),
        ("seeds.0", {"seeds": ["0x1"]}),
        ("seeds.0", {"seeds": [0]}),
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
    rewrite(state, change_tensors=lambda tensors: tensors.pop("1.memory"))
    assert "tensor 1.memory: got none" in refused(tiny_plan, state)
    rewrite(state, change_tensors=lambda tensors: tensors.update({"1.memory": np.zeros(3, np.float32)}))
    assert "tensor 1.memory: got shape (3,), expected (1, 2, 4, 4)" in refused(tiny_plan, state)


def test_dtype_of_other_sizes(tiny_plan, state):
    content = state.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            entry["dtype"] = "BF16"
            entry["shape"] = [2 * int(np.prod(entry["shape"]))]
    text = json.dumps(header).encode()
    state.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    assert ": got shape " in refused(tiny_plan, state)


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


def test_values_that_are_not_finite(tiny_plan, state):
    for value in (np.nan, np.inf):
        rewrite(state, change_tensors=lambda tensors, value=value: tensors["cache"].fill(value))
        assert "tensor cache: got a value that is not finite, expected numbers" in refused(tiny_plan, state)


def test_values_before_the_first_chunk(tiny_plan, state):
    def change(metadata):
        metadata["rollout"] = json.dumps({**json.loads(metadata["rollout"]), "chunk": "0"})

    rewrite(state, change)
    assert ": got values before the first chunk, expected zeros" in refused(tiny_plan, state)
    rewrite(state, change_tensors=lambda tensors: [values.fill(-0.0) for values in tensors.values()])
    assert Rollout.resume(tiny_plan, state).next_index == 0


def test_floats_of_another_width_are_converted_and_whole_numbers_are_not(tiny_plan, state):
    expected = load_file(state)["cache"].astype(np.float16)
    rewrite(state, change_tensors=lambda tensors: tensors.update(cache=expected))
    assert np.array_equal(Rollout.resume(tiny_plan, state).snapshot().tensors["cache"], expected.astype(np.float32))
    rewrite(state, change_tensors=lambda tensors: tensors.update(cache=expected.astype(np.int32)))
    assert "tensor cache: got I32, expected F32" in refused(tiny_plan, state)


@pytest.mark.parametrize("value", [1e5, -3.4e38])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_number_that_a_narrower_float_cannot_hold(tiny_plan, state, value, dtype):
    if (value, dtype) == (1e5, "bfloat16"):
        return  # which can
    states = [s.model_copy(update={"dtype": dtype}) if s.name == "cache" else s for s in tiny_plan.manifest.states]
    manifest = tiny_plan.manifest.model_copy(update={"states": tuple(states)})
    rewrite(state, change_tensors=lambda tensors: tensors["cache"].fill(value))
    with pytest.raises(StateError, match=rf"tensor cache: got \S+, expected what {dtype} can hold; resume with a plan"):
        load_state(state, manifest)


HOSTILE = {
    "length-of-2-to-the-63": lambda header, data: struct.pack("<Q", 2**63) + header + data,
    "length-beyond-the-file": lambda header, data: struct.pack("<Q", len(header) + len(data) + 1) + header + data,
    "length-0": lambda header, data: struct.pack("<Q", 0) + header + data,
    "nested-without-end": lambda header, data: _framed(b"[" * 100_000, data),
    "a-list": lambda header, data: _framed(b"[]", data),
    "no-object-of-a-tensor": lambda header, data: _framed(b'{"cache": 1}', data),
    "offsets-beyond-the-end": lambda header, data: _framed(
        header.replace(b'"data_offsets": [0', b'"data_offsets": [9'), data
    ),
    "negative-shape": lambda header, data: _framed(header.replace(b'"shape": [1, 1,', b'"shape": [-1, 1,'), data),
    "huge-shape": lambda header, data: _framed(
        header.replace(b'"shape": [1, 1,', b'"shape": [18446744073709551615, 1,'), data
    ),
    "unknown-dtype": lambda header, data: _framed(header.replace(b'"F32"', b'"F31"', 1), data),
    "metadata-of-numbers": lambda header, data: _framed(header.replace(b'"videossm-state"', b"7"), data),
    "a-name-twice": lambda header, data: _framed(header.replace(b'"0.memory"', b'"1.memory"'), data),
    "a-name-of-a-line-break": lambda header, data: _framed(header.replace(b'"cache"', b'"ca\\nche"'), data),
    "a-name-of-a-megabyte": lambda header, data: _framed(
        header.replace(b'"cache"', b'"' + b"c" * (1 << 20) + b'"'), data
    ),
    "not-utf-8": lambda header, data: _framed(header.replace(b'"cache"', b'"ca\xffche"'), data),
    "more-bytes": lambda header, data: _framed(header, data + bytes(8)),
    "forty-megabytes": lambda header, data: _framed(header + b" " * (40 << 20), data),
}


def _framed(header, data):
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_headers(tiny_plan, state, change):
    content = state.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    changed = change(content[8 : 8 + length], content[8 + length :])
    assert changed != content
    state.write_bytes(changed)
    assert len(refused(tiny_plan, state)) < 1000


@pytest.mark.parametrize("key", ["format_version", "stream_identity", "plan_name", "rollout"])
def test_metadata_of_a_megabyte_of_lines(tiny_plan, state, key):
    def change(metadata):
        metadata.update({key: "red\n" * 250_000, **({"stream_identity": "x"} if key == "plan_name" else {})})

    rewrite(state, change)
    assert len(refused(tiny_plan, state)) < 1000


def test_a_clip_that_is_over(plan_copy, tiny_plan, state):
    clip = rebuilt(plan_copy, stream={**tiny_plan.values()["stream"], "chunks": 4})
    assert "metadata: rollout.chunk: got 5, expected at most 4, the clip's chunks" in refused(clip, state)
