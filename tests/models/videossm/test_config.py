"""Configs that cannot work are refused in one line that names the field."""

from __future__ import annotations

import json

import pytest

from videossm.models.videossm.config import ConfigError, ModelConfig, SamplerConfig
from videossm.models.videossm.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    config = PRESETS[name]()
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_paper_schedule() -> None:
    assert SamplerConfig.warped("renoise", 4, 5.0).sigmas == pytest.approx(PRESETS["videossm-1.3b"]().sampler.sigmas)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 36}, "height: got 36, expected a multiple of 16"),
        ({"width": 0}, "width: got 0, expected at least 1"),
        ({"fps": -1.0}, "fps: got -1.0"),
        ({"transformer": {"text_len": 10**9}}, "text_len: got 1000000000, expected at most 1048576"),
        ({"batch": 2**20 + 1}, "batch: got 1048577, expected at most 1048576"),
        ({"window": {"window_frames": 10}}, "window_frames: got 10, expected a multiple of chunk_frames = 3"),
        ({"window": {"sink_frames": 9}}, "sink_frames: got 9"),
        ({"window": {"rope_frame": "global"}}, "rope_frame: got global"),
        ({"transformer": {"heads": 5}}, "dim: got 64, expected a multiple of heads = 5"),
        ({"transformer": {"prediction": "noise"}}, "prediction: got noise"),
        ({"sampler": {"sigmas": (1.0, 0.5, 0.5)}}, "sampler.sigmas: got (1.0, 0.5, 0.5), expected falling from 1"),
        ({"sampler": {"kind": "heun"}}, "sampler.kind: got heun"),
    ],
)
def test_wrong_values_name_the_field(change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        PRESETS["test"]().replace(**change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("height", "64", "config.height: got '64', expected int"),
        ("name", 5, "config.name: got 5, expected str"),
        ("batch", 1.0, "config.batch: got 1.0, expected int"),
        ("window", 3, "config.window: got 3, expected an object"),
        ("transformer.dim", 64.0, "config.transformer.dim: got 64.0, expected int"),
        ("transformer.eps", "1e-6", "config.transformer.eps: got '1e-6', expected float"),
        ("transformer.memory", "no", "config.transformer.memory: got 'no', expected bool"),
        ("transformer.patch", [1, 2], "patch: got (1, 2), expected (1, rows, columns)"),
        ("transformer.patch", [1, 0, 2], "patch: got (1, 0, 2)"),
        ("transformer.patch", 2, "config.transformer.patch: got 2, expected a list"),
        ("transformer.freq_dim", 255, "freq_dim: got 255, expected an even number"),
        ("transformer.rope_theta", float("inf"), "rope_theta: got inf"),
        ("transformer.prediction", "noise", "prediction: got noise, expected flow or x0"),
        ("text_encoder.layers", -1, "layers: got -1, expected at least 0"),
        ("sampler.sigmas", ["high"], "config.sampler.sigmas: got 'high', expected float"),
    ],
)
def test_wrong_types(field: str, value: object, message: str) -> None:
    values = PRESETS["test"]().to_dict()
    part, _, name = field.rpartition(".")
    (values[part] if part else values)[name] = value
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_dict(values)
    assert message in str(error.value)


def test_unknown_and_missing_fields() -> None:
    values = PRESETS["test"]().to_dict()
    with pytest.raises(ConfigError, match=r"config\.window: got unknown field 'stride'"):
        ModelConfig.from_dict({**values, "window": {**values["window"], "stride": 2}})
    del values["fps"]
    with pytest.raises(ConfigError, match="field 'fps' is missing"):
        ModelConfig.from_dict(values)
