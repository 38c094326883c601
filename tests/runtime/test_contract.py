"""A manifest whose parts do not fit is refused by the name of the first part."""

from __future__ import annotations

import json

import pytest

from videossm.runtime import PlanError
from videossm.runtime.contract import check_contract
from videossm.runtime.manifest import Manifest, TensorSpec


def tensor(values, engine, side, name):
    return next(tensor for tensor in values["engines"][engine][side] if tensor["name"] == name)


def drop(values, engine, side, name):
    tensors = values["engines"][engine][side]
    tensors.remove(tensor(values, engine, side, name))


def add(values, engine, side, name):
    values["engines"][engine][side].append({"name": name, "dtype": "float32", "shape": [1]})


BROKEN = {
    "stream.window_frames": lambda v: v["stream"].update(window_frames=8),
    "stream.sink_frames": lambda v: v["stream"].update(sink_frames=9),
    "sampler.sigmas": lambda v: v["sampler"].update(sigmas=[1.0, 0.5, 0.5]),
    "files: got no tokenizer.json": lambda v: v["files"].pop("tokenizer.json"),
    "files: got no step.onnx": lambda v: v["files"].pop("step.onnx"),
    "files: got manifest.json": lambda v: v["files"].update({"manifest.json": v["files"]["step.onnx"]}),
    "engines.text_encoder.inputs: got no tensor input_ids": lambda v: drop(v, "text_encoder", "inputs", "input_ids"),
    "engines.text_encoder.inputs.input_ids.shape: got [1, 5], expected [1, 6]": lambda v: v["text"].update(length=6),
    "engines.text_encoder.outputs: got no tensor prompt.9": lambda v: v["prompt"].append("prompt.9"),
    "engines.text_encoder.outputs: got a tensor prompt.0.key": lambda v: v["prompt"].remove("prompt.0.key"),
    "engines.step.inputs.latent.shape: got [1, 3, 1, 4, 4], expected [batch = 2": lambda v: (
        v["stream"].update(batch=2),
        [t.update(shape=[2, 5]) for t in v["engines"]["text_encoder"]["inputs"]],
    ),
    "engines.step.outputs.latent_next.dtype: got float16": lambda v: tensor(v, "step", "outputs", "latent_next").update(
        dtype="float16"
    ),
    "engines.step.inputs: got no tensor sigma_next": lambda v: drop(v, "step", "inputs", "sigma_next"),
    "engines.step.inputs: got no tensor noise": lambda v: v["sampler"].update(kind="renoise"),
    "engines.step.inputs: got a tensor noise that nothing feeds": lambda v: add(v, "step", "inputs", "noise"),
    "engines.step.inputs: got no tensor rho": lambda v: drop(v, "step", "inputs", "rho"),
    "engines.step.inputs.slot_position.shape": lambda v: tensor(v, "step", "inputs", "slot_position").update(shape=[8]),
    "engines.step.inputs.prompt.0.key.shape": lambda v: tensor(v, "step", "inputs", "prompt.0.key").update(shape=[1]),
    "engines.step.outputs: got no tensor present.9": lambda v: v["window"][0].update(present="present.9"),
    "engines.step.inputs: got no tensor past.9": lambda v: v["window"][0].update(past="past.9"),
    "engines.step.inputs: got a tensor past.0.key that nothing": lambda v: v["window"][0].update(past=None),
    "engines.step.inputs.past.0.key.shape": lambda v: tensor(v, "step", "inputs", "past.0.key")["shape"].reverse(),
    "engines.step.outputs: got a tensor extra": lambda v: add(v, "step", "outputs", "extra"),
    "engines.step.inputs: got a tensor twice": lambda v: v["engines"]["step"]["inputs"].append(
        tensor(v, "step", "inputs", "latent")
    ),
    "engines.memory: got none": lambda v: (v["engines"].pop("memory"), drop(v, "step", "inputs", "rho")),
    "engines.memory.inputs: got no tensor evicted.9": lambda v: v["window"][0].update(evicted="evicted.9"),
    "engines.memory.inputs: got a tensor evicted.0.key": lambda v: v["window"][0].update(evicted=None),
    "engines.memory.inputs.evicted.0.key.shape": lambda v: tensor(v, "memory", "inputs", "evicted.0.key").update(
        shape=[1, 2, 2, 4]
    ),
    "engines.memory.outputs: got no tensor memory_next.9": lambda v: v["memory"][0].update(present="memory_next.9"),
    "engines.step.inputs: got a tensor past.0.memory": lambda v: v["memory"][0].update(read="past.9.memory"),
    "engines.memory.outputs.memory_next.1.dtype": lambda v: tensor(v, "memory", "outputs", "memory_next.1").update(
        dtype="float16"
    ),
    "engines.step.inputs.latent.dtype: got float16, expected float32": lambda v: tensor(
        v, "step", "inputs", "latent"
    ).update(dtype="float16"),
    "engines.decoder.inputs.latents.dtype": lambda v: tensor(v, "decoder", "inputs", "latents").update(dtype="int32"),
    "engines.decoder.outputs.frames.shape": lambda v: v["stream"].update(height=64),
    "engines.decoder.inputs: got no tensor cache.9": lambda v: v["caches"][0].update(past="cache.9"),
    "engines.decoder.outputs.cache_next.0.shape": lambda v: tensor(v, "decoder", "outputs", "cache_next.0").update(
        shape=[1, 2, 1, 4, 4]
    ),
    "engines.decoder.inputs: got a tensor extra": lambda v: add(v, "decoder", "inputs", "extra"),
}


@pytest.mark.parametrize(("start", "change"), BROKEN.items(), ids=BROKEN.keys())
def test_broken_contract(tiny_plan, start, change):
    values = json.loads(tiny_plan.manifest.model_dump_json())
    change(values)
    with pytest.raises(PlanError) as caught:
        check_contract(Manifest.model_validate_json(json.dumps(values)))
    assert str(caught.value).startswith(f"manifest.json: {start}")


@pytest.mark.parametrize("changes", [{}, {"memory": False}, {"sampler": "renoise", "batch": 2}], ids=str)
def test_whole_contract(build_plan, changes):
    check_contract(build_plan(**changes).manifest)


@pytest.mark.parametrize(
    ("dtype", "host_dtype", "size_bytes"),
    [("float32", "float32", 24), ("float16", "float16", 12), ("bfloat16", "uint16", 12), ("uint8", "uint8", 6)],
)
def test_buffers_of_a_tensor(dtype, host_dtype, size_bytes):
    tensor = TensorSpec(name="x", dtype=dtype, shape=(2, 3))
    assert (str(tensor.host_dtype), tensor.size_bytes) == (host_dtype, size_bytes)
